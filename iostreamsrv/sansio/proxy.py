"""The header of the PROXY protocol, with which a proxy reports the addresses of its client before the client's data.

Version 1 is a line of text, version 2 is binary; the specification is haproxy's doc/proxy-protocol.txt. All its "must"
rules are checked. Invalid data is detected at the first wrong byte, so a client that sends HTTP or TLS without a header
is detected at its first byte. The exception is the part of a version 2 header after its sixteenth byte, which is parsed
only when it is complete.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

V1_LIMIT = 107
"""Most bytes of a version 1 header with its CRLF, from the specification."""

V2_LIMIT = 4096
"""Most bytes of a version 2 header. The addresses take at most 232. The longest fields that proxies add are the
client's TLS details and names, some hundred bytes. The format would allow 64 KiB."""

V1_START = b"PROXY "
V2_START = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED = 16
"""Bytes of the fixed part of a version 2 header. The last two are the size of the rest."""

LOCAL, PROXY = 0x20, 0x21
"""The thirteenth byte: the version, which is 2, and the command."""

UNSPECIFIED, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31
"""The fourteenth byte: address family and transport."""

ADDRESSES_SIZE = {TCP4: 12, TCP6: 36, UNIX: 216}
"""Bytes of both addresses with their ports."""

CRC32C = 0x03
"""The type of the TLV with the header's checksum."""

MAPPED = bytes(10) + b"\xff\xff"
"""The first bytes of an IPv4 address that is mapped to IPv6."""

ENDINGS = ("", "0", ":", "::", "0.0", "0.0.0", "0.0.0.0", ".0", ".0.0", ".0.0.0")
"""An incomplete address or port is valid so far if it is valid with one of these endings."""

Address = tuple[str, int] | tuple[str, int, int, int] | str


class ProxyError(ValueError):
    """The bytes are not a PROXY header, nor the beginning of one. The message has the reason."""


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """The content of a PROXY header. ::

        if stream.proxy is not None and stream.proxy.source is not None:
            host, port, *_ = stream.proxy.source

    :ivar version: 1 or 2.
    :ivar local: whether the connection is the proxy's own and not for a client, as for a health check.
    :ivar source: the client's address in the form of ``getpeername``: ``(host, port)`` for IPv4, ``(host, port, 0, 0)``
        for IPv6, a str for a Unix socket, where an abstract name begins with a zero byte. None if the header has no
        address: then use the address of the connection itself.
    :ivar destination: the address that the client connected to, in the same form.
    :ivar tlvs: further fields of a version 2 header, as they were sent: pairs of a type, 0 to 255, and its value.
    """

    version: int
    local: bool = False
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, type: int) -> bytes | None:
        """The value of the first TLV of this type, or None. ::

        server_name = stream.proxy.tlv(0x02)  # the SNI name from the client's TLS handshake with the proxy
        """
        return next((value for kind, value in self.tlvs if kind == type), None)


def parse_header(data: bytes | bytearray) -> tuple[int, ProxyInfo] | None:
    """Parse the PROXY header at the beginning of ``data``. ::

        consumed, info = parse_header(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\\r\\nhello")
        assert (consumed, info.source) == (42, ("192.0.2.1", 40000))

    :param data: received bytes. What follows the header is ignored.
    :returns: the size of the header in bytes and its content, or None if more bytes are needed.
    :raises ProxyError: the bytes are not the beginning of a header: of version 1 with at most 107 bytes, or of version
        2 with at most 4 KiB.
    """
    if data.startswith(V1_START[: len(data)]):
        return _parse_v1(data)
    if data.startswith(V2_START[: len(data)]):
        return _parse_v2(data)
    raise ProxyError(f"no PROXY header: the connection begins with {bytes(data[:16])!r}")


# ---- version 1


def _parse_v1(data: bytes | bytearray) -> tuple[int, ProxyInfo] | None:
    line, end, rest = bytes(data[:V1_LIMIT]).decode("latin-1").partition("\r")
    if len(line) > V1_LIMIT - 2:
        raise ProxyError(f"PROXY header: no CRLF within {V1_LIMIT} bytes")
    if rest[:1] not in ("", "\n"):
        raise ProxyError(f"PROXY header: a CR without LF after {line!r}")
    try:
        addresses = _v1_addresses(line[len(V1_START) :], bool(end))
    except ValueError as error:
        raise ProxyError(f"PROXY header: {error}") from None
    return (len(line) + 2, ProxyInfo(1, False, *addresses)) if rest else None


def _v1_addresses(text: str, ended: bool) -> tuple[Address, Address] | tuple[()]:
    """Parse what follows ``PROXY``. If the line has not ``ended``, only check it so far."""
    family, space, rest = text.partition(" ")
    if family == "TCP4":
        return _v1_fields(rest.split(" "), ended, _ipv4, ())
    if family == "TCP6":
        return _v1_fields(rest.split(" "), ended, _ipv6, (0, 0))
    beginning = not space and not ended
    if family != "UNKNOWN" and not (beginning and any(name.startswith(family) for name in ("TCP", "UNKNOWN"))):
        raise ValueError(f"{family!r} is none of TCP4, TCP6, UNKNOWN")
    return ()  # the specification says to ignore what follows UNKNOWN


def _v1_fields(
    fields: list[str], ended: bool, address: Callable[[str], str], more: tuple[int, int] | tuple[()]
) -> tuple[Address, Address] | tuple[()]:
    if len(fields) > 4 or (ended and len(fields) < 4):
        raise ValueError(f"{' '.join(fields)!r} is not two addresses and two ports, one space between them")
    if not ended:
        last = fields.pop()
        _check_beginning(_port if len(fields) > 1 else address, last)
    hosts = [address(field) for field in fields[:2]]
    ports = [_port(field) for field in fields[2:]]
    if not ended:
        return ()
    return (hosts[0], ports[0], *more), (hosts[1], ports[1], *more)


def _check_beginning(whole: Callable[[str], object], text: str) -> None:
    for ending in ENDINGS:
        try:
            whole(text + ending)
            return
        except ValueError as error:
            problem = error
    raise problem


def _ipv4(text: str) -> str:
    return str(IPv4Address(text))


def _ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError(f"{text!r} has a scope")
    return _show_ipv6(IPv6Address(text).packed)


def _show_ipv6(packed: bytes) -> str:
    """Format an address like the C library. (Before 3.13, Python formats a mapped IPv4 address in hexadecimal.)"""
    return f"::ffff:{IPv4Address(packed[12:])}" if packed.startswith(MAPPED) else str(IPv6Address(packed))


def _port(text: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]*", text) or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port")
    return int(text)


# ---- version 2


def _parse_v2(data: bytes | bytearray) -> tuple[int, ProxyInfo] | None:
    head = bytes(data[:V2_FIXED])
    _check_v2(head)
    if len(head) < V2_FIXED:
        return None
    size = V2_FIXED + int.from_bytes(head[14:])
    addresses = ADDRESSES_SIZE.get(head[13], 0) if head[12] == PROXY else 0
    if not V2_FIXED + addresses <= size <= V2_LIMIT:
        raise ProxyError(f"PROXY header: {size} bytes; must be {V2_FIXED + addresses} to {V2_LIMIT}")
    if len(data) < size:
        return None
    header = bytes(data[:size])
    source, destination = _v2_addresses(header[13], header[V2_FIXED : V2_FIXED + addresses])
    return size, ProxyInfo(2, head[12] == LOCAL, source, destination, _v2_tlvs(header, V2_FIXED + addresses))


def _check_v2(head: bytes) -> None:
    """Check version, command, family and transport, as far as they have arrived."""
    if len(head) > 12 and head[12] not in (LOCAL, PROXY):
        raise ProxyError(f"PROXY header: version and command are {head[12]:#04x}; must be {LOCAL:#x} or {PROXY:#x}")
    if len(head) > 13 and head[12] == PROXY and (head[13] >> 4 > 3 or head[13] & 15 > 1):
        raise ProxyError(f"PROXY header: address family and transport are {head[13]:#04x}, not those of a stream")


def _v2_addresses(family: int, block: bytes) -> tuple[Address, Address] | tuple[None, None]:
    """The two addresses. The block is empty in a LOCAL header and for unknown families."""
    if not block:
        return None, None
    if family == UNIX:
        return _unix(block[:108]), _unix(block[108:])
    ports = int.from_bytes(block[-4:-2]), int.from_bytes(block[-2:])
    if family == TCP4:
        return (str(IPv4Address(block[:4])), ports[0]), (str(IPv4Address(block[4:8])), ports[1])
    return (_show_ipv6(block[:16]), ports[0], 0, 0), (_show_ipv6(block[16:32]), ports[1], 0, 0)


def _unix(name: bytes) -> str:
    """The address of a Unix socket. A path ends at its first zero byte; an abstract name begins with one."""
    return os.fsdecode(name.rstrip(b"\0") if name.startswith(b"\0") else name.partition(b"\0")[0])


def _v2_tlvs(header: bytes, start: int) -> tuple[tuple[int, bytes], ...]:
    """The TLVs after the addresses. If a header has no known addresses, the data may be an address of an unknown kind,
    so data that is not TLVs is ignored."""
    if start == V2_FIXED and header[13] != UNSPECIFIED:
        return ()
    try:
        places = list(_places(header, start))
    except ProxyError:
        if start > V2_FIXED:
            raise
        return ()
    for kind, begin, end in places:
        if kind == CRC32C:
            _check_sum(header, begin, end)
    return tuple((kind, header[begin:end]) for kind, begin, end in places)


def _places(header: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """The type of each TLV, and the begin and end of its value."""
    while start < len(header):
        begin = start + 3
        end = begin + int.from_bytes(header[start + 1 : begin])
        if end > len(header):
            raise ProxyError(f"PROXY header: the TLV at byte {start} is longer than the header")
        yield header[start], begin, end
        start = end


def _check_sum(header: bytes, begin: int, end: int) -> None:
    """Check the checksum, which is computed over the header with zeros in its place."""
    expected = _crc32c(header[:begin] + bytes(end - begin) + header[end:])
    if header[begin:end] != expected.to_bytes(4):
        raise ProxyError("PROXY header: its CRC32C checksum is wrong")


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, its bits reversed
    return byte


_CRC_TABLE = [_crc_of(byte) for byte in range(256)]
