"""Ask a service of ``iostreamsrv serve`` what it does, and tell it what to do, over its control socket. ::

    with ControlClient("/run/chat/control.sock") as control:
        for worker in control.workers():
            print(worker["number"], worker["open"])
        control.reload()

The language of the socket is in `iostreamsrv.control.protocol`.
"""

from .client import ControlClient
from .protocol import ControlError

__all__ = ["ControlClient", "ControlError"]
