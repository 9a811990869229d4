"""The access log: a line for each connection, at its end."""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from ..errors import OptionError
from ..events import Event
from ..iostream import IOStream, SSLIOStream
from ..runtime.addresses import show
from ..runtime.text import printable
from ..tcpserver import TCPServer
from .logfile import LogFile

Format = Literal["text", "json"]
"""What the lines are: fields like ``reason=eof``, or JSON objects."""

LOG = "log"
"""The key of ``stream.data`` under which a handler puts fields of its own."""


def check_format(name: str, value: Any) -> Format:
    """A format of lines.

    :raises OptionError: it is none.
    """
    if value not in get_args(Format):
        raise OptionError(name, value, "must be 'text' or 'json'")
    found: Format = value
    return found


class Begun(NamedTuple):
    """What is known of a connection only while it is open."""

    local: str | None
    tls: Mapping[str, str | None]


PLAIN = MappingProxyType(dict.fromkeys(("tls", "cipher", "alpn", "subject")))

UNKNOWN = Begun(None, PLAIN)


class AccessLog:
    """Writes a line for each connection of a server, at its end. ::

        log = AccessLog("/var/log/chat/access.log")
        log.attach(server)

    A handler adds fields of its own by ``stream.data["log"] = {"user": name}``.

    Nothing here waits: a thread writes the lines. If the disk is full, or 10,000 lines wait, further ones are lost;
    :attr:`lost` counts them, and the log says so. Several processes may write to one file.

    :param path: a file, which is appended to; "-" for stdout.
    :param format: "text" or "json".
    :param worker: the number of this process among several; None if it is alone.
    :raises OptionError: opening the file fails, or there is no such format.
    """

    def __init__(self, path: str | os.PathLike[str], format: Format = "text", worker: int | None = None) -> None:
        check_format("access_log_format", format)
        self._line: Callable[[dict[str, Any]], str] = as_text if format == "text" else as_json
        self._file = LogFile("access_log", path)
        self._worker = worker
        self._begun: dict[int, Begun] = {}  # by the ids of streams

    @property
    def lost(self) -> int:
        """How many lines could not be written so far."""
        return self._file.lost

    def attach(self, server: TCPServer) -> None:
        """Log the connections of a server from now on. Those that are open are logged without their local address and
        TLS."""
        server.events.subscribe(self._see, "open", "close")

    def detach(self, server: TCPServer) -> None:
        """Log them no more."""
        server.events.unsubscribe(self._see)

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was renamed. It is opened in the thread; if that
        fails, the log says so, and the old file goes on. Stdout stays."""
        self._file.reopen()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, and close the file. What is logged later is lost.

        :param timeout: seconds to wait for a disk that hangs.
        """
        self._file.close(timeout)

    def _see(self, event: Event) -> None:
        stream = event.stream
        if not isinstance(stream, IOStream):
            return
        if event.kind == "open":
            self._begun[stream.id] = Begun(show(stream.local_address) or None, _tls(stream))
        else:
            self._file.write(self._line_of(self._record(event, stream)))

    def _line_of(self, record: dict[str, Any]) -> str:
        try:
            return self._line(record)
        except Exception as error:  # a handler's own fields are a circle, or one of them has no text
            return self._line({**record, LOG: {"error": f"{type(error).__name__}: {error}"}})

    def _record(self, event: Event, stream: IOStream) -> dict[str, Any]:
        begun = self._begun.pop(stream.id, UNKNOWN)
        own = stream.data.get(LOG)
        proxied = stream.proxy is not None and stream.proxy.destination is not None
        return {
            "time": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
            "worker": self._worker,
            "id": stream.id,
            "peer": show(event.address) if event.address else None,
            "local": begun.local,
            "proxied_to": show(stream.proxy.destination) if proxied else None,
            **begun.tls,
            "received": stream.bytes_read,
            "sent": stream.bytes_written,
            "seconds": round(max(event.at - stream.opened_at, 0.0), 3),
            "reason": str(event.reason),
            "error": None if event.error is None else str(event.error),
            "groups": sorted(map(str, event.groups)),
            LOG: own if isinstance(own, dict) else None,
        }


def _tls(stream: IOStream) -> Mapping[str, str | None]:
    if not isinstance(stream, SSLIOStream):
        return PLAIN
    socket: Any = stream.socket
    cipher = socket.cipher()
    certificate = stream.peer_certificate
    return {
        "tls": socket.version(),
        "cipher": cipher and cipher[0],
        "alpn": stream.alpn,
        "subject": certificate and _subject(certificate),
    }


def _subject(certificate: dict[str, Any]) -> str:
    """The subject of a peer's certificate: "CN=device-7,O=Example"."""
    pairs = [pair for names in certificate.get("subject", ()) for pair in names]
    return ",".join(f"{SHORT.get(name, name)}={value}" for name, value in reversed(pairs))


SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


def as_json(record: dict[str, Any]) -> str:
    """A record as a JSON object on one line. Characters that are not ASCII are escaped. What JSON does not have, of a
    handler's own fields, is a text.

    :raises ValueError: there is a circle, or a number that JSON does not have: nan.
    """
    return json.dumps(record, default=str, skipkeys=True, allow_nan=False)


def as_text(record: dict[str, Any]) -> str:
    """A record as fields like ``reason=eof`` behind the time, without those that are empty. A value with a space, a
    quote or an unprintable character is in quotes, and escaped as in JSON."""
    fields = {**record, **{f"{LOG}.{name}": value for name, value in (record[LOG] or {}).items()}}
    time = fields.pop("time")
    del fields[LOG]
    fields["groups"] = ",".join(record["groups"])
    shown = [f"{_bare(name)}={_quoted(value)}" for name, value in fields.items() if value not in (None, "")]
    return " ".join([time, *shown])


def _bare(name: str) -> str:
    return printable(name).replace(" ", "_").replace("=", "_")


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(each in text for each in ' "=\\')
    return text if plain else json.dumps(text)
