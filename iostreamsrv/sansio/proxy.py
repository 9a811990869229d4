"""The PROXY protocol's header: what a proxy says, before the client's first byte, of the client it speaks for.

Version 1 is a line of text, version 2 is binary: the specification is haproxy's doc/proxy-protocol.txt. Everything
in it that is a must is checked, and what cannot become a header is refused at the first byte that shows it: a client
that speaks HTTP or TLS without a header is known by its first. Only what a version 2 header has behind its sixteenth
byte is looked at when all of it is there.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

V1_LIMIT = 107
"""Most bytes of a version 1 header, its CRLF included: the specification's."""

V2_LIMIT = 4096
"""Most bytes of a version 2 header. Addresses take 232 at most; the longest that proxies add are a client's TLS
details and its names, some hundred bytes. The format would allow 64 KiB."""

V1_START = b"PROXY "
V2_START = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED = 16
"""Bytes of a version 2 header that are always there; the last two say how many follow."""

LOCAL, PROXY = 0x20, 0x21
"""The thirteenth byte: the version, which is 2, and the command."""

UNSPECIFIED, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31
"""The fourteenth byte: address family and transport."""

ADDRESSES_SIZE = {TCP4: 12, TCP6: 36, UNIX: 216}
"""Bytes of both addresses, with their ports."""

CRC32C = 0x03
"""The TLV with the header's checksum."""

MAPPED = bytes(10) + b"\xff\xff"
"""How the IPv6 form of an IPv4 address begins."""

ENDINGS = ("", "0", ":", "::", "0.0", "0.0.0", "0.0.0.0", ".0", ".0.0", ".0.0.0")
"""The beginning of an address or a port is one of those that can still become one if one of these makes it whole."""

Address = tuple[str, int] | tuple[str, int, int, int] | str


class ProxyError(ValueError):
    """These bytes are not, and cannot become, a PROXY header. The message says why."""


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """What a PROXY header says of a connection. ::

        if stream.proxy is not None and stream.proxy.source is not None:
            host, port, *_ = stream.proxy.source

    :ivar version: 1 or 2.
    :ivar local: whether the proxy speaks for itself, as in a health check.
    :ivar source: the client's address, as ``getpeername`` would give it: ``(host, port)``, ``(host, port, 0, 0)`` for
        IPv6, a str for a Unix socket, where an abstract name begins with a zero byte. None where the proxy names none:
        then the address of the connection itself counts.
    :ivar destination: the address the client connected to, likewise.
    :ivar tlvs: what else a version 2 header has, as it was sent: pairs of a type, 0 to 255, and its value.
    """

    version: int
    local: bool = False
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, type: int) -> bytes | None:
        """The value of the first TLV of this type, or None. ::

        server_name = stream.proxy.tlv(0x02)  # what the client asked for in its TLS handshake with the proxy
        """
        return next((value for kind, value in self.tlvs if kind == type), None)


def parse_header(data: bytes | bytearray) -> tuple[int, ProxyInfo] | None:
    """Read the PROXY header that ``data`` begins with. ::

        consumed, info = parse_header(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\\r\\nhello")
        assert (consumed, info.source) == (42, ("192.0.2.1", 40000))

    :returns: how many bytes the header has and what it says, or None where more bytes are wanted. What follows the
        header is not looked at.
    :raises ProxyError: the bytes cannot become a header, whatever follows: version 1 of at most 107 bytes, or version
        2 of at most 4 KiB.
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
    """What is behind ``PROXY``: checked as far as it goes, read if it has ``ended``."""
    family, space, rest = text.partition(" ")
    if family == "TCP4":
        return _v1_fields(rest.split(" "), ended, _ipv4, ())
    if family == "TCP6":
        return _v1_fields(rest.split(" "), ended, _ipv6, (0, 0))
    beginning = not space and not ended
    if family != "UNKNOWN" and not (beginning and any(name.startswith(family) for name in ("TCP", "UNKNOWN"))):
        raise ValueError(f"{family!r} is none of TCP4, TCP6, UNKNOWN")
    return ()  # what follows UNKNOWN is to be ignored


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
    """As the C library does; Python has IPv4 addresses in their IPv6 form in hexadecimal before 3.13."""
    return f"::ffff:{IPv4Address(packed[12:])}" if packed.startswith(MAPPED) else str(IPv6Address(packed))


def _port(text: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]*", text) or int(text) > 65535:
        raise ValueError(f"{text!r} is no port")
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
    """Version, command, family and transport, as far as they are there."""
    if len(head) > 12 and head[12] not in (LOCAL, PROXY):
        raise ProxyError(f"PROXY header: version and command are {head[12]:#04x}; must be {LOCAL:#x} or {PROXY:#x}")
    if len(head) > 13 and head[12] == PROXY and (head[13] >> 4 > 3 or head[13] & 15 > 1):
        raise ProxyError(f"PROXY header: address family and transport are {head[13]:#04x}, which is no stream's")


def _v2_addresses(family: int, block: bytes) -> tuple[Address, Address] | tuple[None, None]:
    """The two addresses; none in an empty block, which is what others than the proxy's client have."""
    if not block:
        return None, None
    if family == UNIX:
        return _unix(block[:108]), _unix(block[108:])
    ports = int.from_bytes(block[-4:-2]), int.from_bytes(block[-2:])
    if family == TCP4:
        return (str(IPv4Address(block[:4])), ports[0]), (str(IPv4Address(block[4:8])), ports[1])
    return (_show_ipv6(block[:16]), ports[0], 0, 0), (_show_ipv6(block[16:32]), ports[1], 0, 0)


def _unix(name: bytes) -> str:
    """A path ends at its first zero byte, an abstract name begins with one."""
    return os.fsdecode(name.rstrip(b"\0") if name.startswith(b"\0") else name.partition(b"\0")[0])


def _v2_tlvs(header: bytes, start: int) -> tuple[tuple[int, bytes], ...]:
    """What is behind the addresses. Where there are none, it may as well be an address of an unknown kind."""
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
    """The type of each TLV, and where its value begins and ends."""
    while start < len(header):
        begin = start + 3
        end = begin + int.from_bytes(header[start + 1 : begin])
        if end > len(header):
            raise ProxyError(f"PROXY header: the TLV at byte {start} is longer than the header")
        yield header[start], begin, end
        start = end


def _check_sum(header: bytes, begin: int, end: int) -> None:
    """The checksum is that of the header with zeros in its place."""
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
