"""Tell the service manager (systemd) how the service is: the protocol of sd_notify(3)."""

import contextlib
import os
import socket
from collections.abc import Mapping

from ..runtime.clock import real_time_ns

WATCHDOG_SHARE = 2
"""How often systemd's watchdog is told in each of its intervals: sd_watchdog_enabled(3) recommends twice."""


class Notifier:
    """Sends to the socket that ``NOTIFY_SOCKET`` names; does nothing where there is none.

    :ivar watchdog: seconds between two signs of life that are due; None if systemd does not wait for them.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog = _watchdog(environment) if path else None

    def ready(self, status: str) -> None:
        """The service accepts, or has ended a reload."""
        self._send("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self, status: str) -> None:
        """A reload begins. With ``Type=notify-reload`` systemd waits for :meth:`ready`, and needs the time."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={real_time_ns() // 1000}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The service ends."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """What ``systemctl status`` shows."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), self._address)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, if it is for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 / WATCHDOG_SHARE if text.isascii() and text.isdigit() and int(text) else None
