"""`iostreamsrv.sansio.proxy`: what is a PROXY header, what it says, and at which byte something is known to be none."""

import os
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iostreamsrv.sansio.proxy import ProxyError, ProxyInfo, parse_header
from tests.support.tiers import EVERY_CASE

MUTATIONS = 10_000 if EVERY_CASE else 150

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\n"


# ---- a writer of headers, without any regard to whether they are right


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 4960 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            crc, out = crc >> 1, crc & 1 ^ byte >> bit & 1
            crc ^= 0x82F63B78 * out
    return crc ^ 0xFFFFFFFF


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(command: int, family: int, *blocks: bytes, checksum: bool = False) -> bytes:
    block = b"".join(blocks) + (tlv(3, bytes(4)) if checksum else b"")
    header = SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block
    return header[:-4] + crc32c(header).to_bytes(4) if checksum else header


def unix(path: bytes) -> bytes:
    return path.ljust(108, b"\0")


INET = bytes.fromhex("c0000201 c0000202 9c40 01bb")  # 192.0.2.1:40000 to 192.0.2.2:443
INET6 = bytes.fromhex("20010db8 00000000 00000000 00000001 20010db8 00000000 00000000 00000002 9c40 01bb")
FROM4, TO4 = ("192.0.2.1", 40000), ("192.0.2.2", 443)
FROM6, TO6 = ("2001:db8::1", 40000, 0, 0), ("2001:db8::2", 443, 0, 0)

LONGEST = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

HEADERS = {
    "TCP4": (V1, ProxyInfo(1, False, FROM4, TO4)),
    "TCP4, longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ProxyInfo(1, False, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "TCP4, shortest": (
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        ProxyInfo(1, False, ("0.0.0.0", 0), ("0.0.0.0", 0)),
    ),
    "TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 443\r\n", ProxyInfo(1, False, FROM6, TO6)),
    "TCP6, longest": (
        f"PROXY TCP6 {LONGEST} {LONGEST} 65535 65535\r\n".encode(),
        ProxyInfo(1, False, (LONGEST, 65535, 0, 0), (LONGEST, 65535, 0, 0)),
    ),
    "TCP6, written in another way": (
        b"PROXY TCP6 2001:0DB8:0:0::0001 2001:dB8:0000:0:0:0:0:2 40000 443\r\n",
        ProxyInfo(1, False, FROM6, TO6),
    ),
    "TCP6, IPv4-mapped": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n",
        ProxyInfo(1, False, ("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 2, 0, 0)),
    ),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", ProxyInfo(1)),
    "UNKNOWN, longest": (f"PROXY UNKNOWN {LONGEST} {LONGEST} 65535 65535\r\n".encode(), ProxyInfo(1)),
    "UNKNOWN, anything": (b"PROXY UNKNOWN  \n\0\xff PROXY TCP4 \r\n", ProxyInfo(1)),
    "INET": (v2(0x21, 0x11, INET), ProxyInfo(2, False, FROM4, TO4)),
    "INET6": (v2(0x21, 0x21, INET6), ProxyInfo(2, False, FROM6, TO6)),
    "INET6, IPv4-mapped": (
        v2(0x21, 0x21, bytes.fromhex("00000000 00000000 0000ffff c0000201" * 2), b"\0\1\0\2"),
        ProxyInfo(2, False, ("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.1", 2, 0, 0)),
    ),
    "UNIX": (
        v2(0x21, 0x31, unix(b"/run/client"), unix(b"/run/\xfc\0junk")),
        ProxyInfo(2, False, "/run/client", "/run/\udcfc"),
    ),
    "UNIX, longest": (v2(0x21, 0x31, b"a" * 108, b"b" * 108), ProxyInfo(2, False, "a" * 108, "b" * 108)),
    "UNIX, unnamed and abstract": (v2(0x21, 0x31, unix(b""), unix(b"\0a\0b")), ProxyInfo(2, False, "", "\0a\0b")),
    "TLVs": (
        v2(0x21, 0x11, INET, tlv(2, b"example.com"), tlv(4, bytes(2)), tlv(2, b"second"), tlv(0xE0, b"")),
        ProxyInfo(2, False, FROM4, TO4, ((2, b"example.com"), (4, bytes(2)), (2, b"second"), (0xE0, b""))),
    ),
    "checksum": (
        SIGNATURE + bytes.fromhex("21 11 0013") + INET + bytes.fromhex("03 0004 bb04841f"),
        ProxyInfo(2, False, FROM4, TO4, ((3, bytes.fromhex("bb04841f")),)),
    ),
    "4 KiB": (
        v2(0x21, 0x11, INET, tlv(5, bytes(4096 - 16 - 12 - 3))),
        ProxyInfo(2, False, FROM4, TO4, ((5, bytes(4065)),)),
    ),
    "LOCAL": (v2(0x20, 0), ProxyInfo(2, True)),
    "LOCAL with TLVs": (v2(0x20, 0, tlv(5, b"id"), tlv(4, b"")), ProxyInfo(2, True, tlvs=((5, b"id"), (4, b"")))),
    "LOCAL, its addresses ignored": (v2(0x20, 0x11, INET), ProxyInfo(2, True)),
    "LOCAL, its family ignored": (v2(0x20, 0xFF, b"?"), ProxyInfo(2, True)),
    "LOCAL with what may be addresses": (v2(0x20, 0, b"\1\0"), ProxyInfo(2, True)),
    "UNSPEC": (v2(0x21, 0), ProxyInfo(2)),
    "UNSPEC with a TLV": (v2(0x21, 0, tlv(1, b"h2")), ProxyInfo(2, tlvs=((1, b"h2"),))),
    "UNSPEC with what may be addresses": (v2(0x21, 0, b"\1\0\2?"), ProxyInfo(2)),
    "UNSPEC, a stream": (v2(0x21, 1, b"\1\0\0"), ProxyInfo(2)),
    "INET, transport UNSPEC": (v2(0x21, 0x10, INET), ProxyInfo(2)),
}

every_header = pytest.mark.parametrize("header, info", HEADERS.values(), ids=list(HEADERS))


def outcome(data: bytes) -> tuple[int, ProxyInfo] | str | None:
    """What the parser says, where ``"refused"`` is an error."""
    try:
        return parse_header(data)
    except ProxyError:
        return "refused"


# ---- what is a header


@every_header
def test_a_header_is_read(header: bytes, info: ProxyInfo) -> None:
    assert parse_header(header) == (len(header), info)
    assert parse_header(bytearray(header)) == (len(header), info)


@every_header
def test_every_beginning_of_a_header_wants_more(header: bytes, info: ProxyInfo) -> None:
    buffer = bytearray()
    for byte in header:
        assert parse_header(buffer) is None
        buffer.append(byte)
    assert parse_header(buffer) == (len(header), info)


@every_header
@settings(max_examples=100 if EVERY_CASE else 10, deadline=None)
@given(
    behind=st.binary(min_size=1) | st.sampled_from([b"\n", b"\r\n", b"GET / HTTP/1.1\r\n", b"\x16\3\1", V1, SIGNATURE])
)
def test_what_is_behind_a_header_is_not_looked_at(header: bytes, info: ProxyInfo, behind: bytes) -> None:
    assert parse_header(header + behind) == (len(header), info)
    assert parse_header(bytearray(header + behind)) == (len(header), info)


def test_the_bytes_are_left_as_they_are() -> None:
    buffer = bytearray(V1 + b"hello")
    parse_header(buffer)
    assert buffer == V1 + b"hello"
    buffer.clear()  # and nobody holds them


def test_the_first_tlv_of_a_type_is_found() -> None:
    _, info = parse_header(HEADERS["TLVs"][0]) or (0, ProxyInfo(0))
    assert info.tlv(2) == b"example.com"
    assert info.tlv(0xE0) == b""
    assert info.tlv(1) is None


def test_a_proxy_info_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ProxyInfo(1).source = ("10.0.0.1", 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "data, checksum", [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"123456789", 0xE3069283)]
)
def test_the_checksum_of_these_tests_is_the_one_of_the_rfcs(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


# ---- what is none, and since which byte


REFUSED_AT_THE_LAST_BYTE = {
    "HTTP": b"G",
    "TLS": b"\x16",
    "a zero": b"\0",
    "lower case": b"p",
    "a space before": b" ",
    "POST": b"PO",
    "a tab": b"PROXY\t",
    "no family": b"PROXY  ",
    "no line": b"PROXY \r",
    "UDP4": b"PROXY U" + b"D",
    "UNIX": b"PROXY UNI",
    "UNKNOWNS": b"PROXY UNKNOWNS",
    "UNKNOWN in a line of LF": b"PROXY UNKNOWN\n",
    "UNKNOWN, a CR alone": b"PROXY UNKNOWN \r\r",
    "UNKNOWN, too long": b"PROXY UNKNOWN ".ljust(106, b"x"),
    "half a word": b"PROXY TCP\r",
    "TCP5": b"PROXY TCP5",
    "TCP46": b"PROXY TCP46",
    "no addresses": b"PROXY TCP4\r",
    "two spaces": b"PROXY TCP4  ",
    "two spaces between": b"PROXY TCP4 192.0.2.1  ",
    "a tab between": b"PROXY TCP4 192.0.2.1\t",
    "no ports": b"PROXY TCP4 192.0.2.1 192.0.2.2\r",
    "one port": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r",
    "a fifth field": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
    "an empty port": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \r",
    "LF without CR": V1[:-2] + b"\n",
    "CR without LF": V1[:-1] + b"x",
    "an address of 3 numbers": b"PROXY TCP4 192.0.2 ",
    "an address of 5 numbers": b"PROXY TCP4 192.0.2.1.",
    "a number above 255": b"PROXY TCP4 192.256",
    "an octal number": b"PROXY TCP4 01",
    "a hexadecimal number": b"PROXY TCP4 0x",
    "IPv6 in TCP4": b"PROXY TCP4 :",
    "IPv4 in TCP6": b"PROXY TCP6 192.",
    "a name": b"PROXY TCP4 l",
    "a network": b"PROXY TCP4 192.0.2.1/",
    "a digit of another alphabet": b"PROXY TCP4 \xb2",
    "IPv6: five digits": b"PROXY TCP6 2001:12345",
    "IPv6: nine groups": b"PROXY TCP6 1:2:3:4:5:6:7:8:",
    "IPv6: a group too few": b"PROXY TCP6 1:2:3:4:5:6:7 ",
    "IPv6: two gaps": b"PROXY TCP6 1::2::",
    "IPv6: three colons": b"PROXY TCP6 1:::",
    "IPv6: one colon first": b"PROXY TCP6 :1",
    "IPv6: a scope": b"PROXY TCP6 fe80::1%",
    "IPv6: brackets": b"PROXY TCP6 [",
    "IPv6: IPv4 in the middle": b"PROXY TCP6 ::1.2.3.4:",
    "IPv6: half an IPv4": b"PROXY TCP6 ::1.2.3 ",
    "a port above 65535": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536",
    "a port of six digits": b"PROXY TCP4 192.0.2.1 192.0.2.2 123456",
    "a port with a zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 00",
    "a port with a plus": b"PROXY TCP4 192.0.2.1 192.0.2.2 +",
    "a port with a minus": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 -",
    "a port with a line": b"PROXY TCP4 192.0.2.1 192.0.2.2 1_",
    "a port with a newline": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
    "a port by name": b"PROXY TCP4 192.0.2.1 192.0.2.2 h",
    "another signature": SIGNATURE[:-1] + b"\r",
    "an empty line": b"\r\n\r\n\r",
    "version 1, binary": SIGNATURE + b"\x11",
    "version 3": SIGNATURE + b"\x31",
    "another command": SIGNATURE + b"\x22",
    "IPv4, datagrams": SIGNATURE + b"\x21\x12",
    "IPv6, datagrams": SIGNATURE + b"\x21\x22",
    "Unix, datagrams": SIGNATURE + b"\x21\x32",
    "another transport": SIGNATURE + b"\x21\x13",
    "another family": SIGNATURE + b"\x21\x41",
    "above 4 KiB": SIGNATURE + b"\x21\x11\x0f\xf1",
    "64 KiB": SIGNATURE + b"\x20\x00\xff\xff",
    "IPv4: a byte too few": SIGNATURE + b"\x21\x11\0\x0b",
    "IPv6: a byte too few": SIGNATURE + b"\x21\x21\0\x23",
    "Unix: a byte too few": SIGNATURE + b"\x21\x31\0\xd7",
    "INET without addresses": SIGNATURE + b"\x21\x11\0\0",
    "a TLV without a length": v2(0x21, 0x11, INET, b"\1"),
    "a TLV with half a length": v2(0x21, 0x11, INET, b"\1\0"),
    "a TLV with a byte too few": v2(0x21, 0x11, INET, b"\1\0\1"),
    "a TLV beyond the header": v2(0x21, 0x11, INET, tlv(1, b"h2"), b"\2\xff\xff1234"),
    "a wrong checksum": v2(0x21, 0x11, INET, tlv(3, b"\xbb\x04\x84\x1e")),
    "a checksum of no bytes": v2(0x21, 0x11, INET, tlv(3, b"")),
    "a checksum of five bytes": v2(0x21, 0x11, INET, tlv(3, bytes(5))),
    "a wrong checksum in LOCAL": v2(0x20, 0, tlv(3, bytes(4))),
}


@pytest.mark.parametrize("data", REFUSED_AT_THE_LAST_BYTE.values(), ids=list(REFUSED_AT_THE_LAST_BYTE))
def test_what_is_no_header_is_refused_at_the_first_byte_that_shows_it(data: bytes) -> None:
    assert [outcome(data[:size]) for size in range(len(data))] == [None] * len(data)
    for behind in (b"", b"\n", b"\r\n", b"0", b"\0" * 300):
        assert outcome(data + behind) == "refused"
        assert outcome(bytearray(data + behind)) == "refused"


FIRST = {SIGNATURE[0], V1[0]}


def test_a_first_byte_that_no_header_has_is_refused() -> None:
    for byte in set(range(256)) - FIRST:
        with pytest.raises(ProxyError, match=r"^no PROXY header: the connection begins with b['\"]"):
            parse_header(bytes([byte]))


@pytest.mark.parametrize(
    "data, message",
    [
        (
            b"GET / HTTP/1.1\r\nHost: example.com\r\n",
            "no PROXY header: the connection begins with b'GET / HTTP/1.1\\r\\n'",
        ),
        (b"PROXY UDP4 ", "PROXY header: 'UDP4' is none of TCP4, TCP6, UNKNOWN"),
        (b"PROXY TCP4 1 2\r\n", "PROXY header: '1 2' is not two addresses and two ports, one space between them"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 99999 ", "PROXY header: '99999' is not a port"),
        (b"PROXY TCP6 fe80::1%eth0 ", "PROXY header: 'fe80::1%eth0' has a scope"),
        (b"PROXY UNKNOWN \r ", "PROXY header: a CR without LF after 'PROXY UNKNOWN '"),
        (b"PROXY UNKNOWN " + bytes(999), "PROXY header: no CRLF within 107 bytes"),
        (SIGNATURE + b"\x12", "PROXY header: version and command are 0x12; must be 0x20 or 0x21"),
        (SIGNATURE + b"\x21\x12", "PROXY header: address family and transport are 0x12, not those of a stream"),
        (SIGNATURE + b"\x21\x11\0\0", "PROXY header: 16 bytes; must be 28 to 4096"),
        (v2(0x21, 0x11, INET, b"\1"), "PROXY header: the TLV at byte 28 is longer than the header"),
        (v2(0x21, 0x11, INET, tlv(3, bytes(4))), "PROXY header: its CRC32C checksum is wrong"),
    ],
)
def test_the_error_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ProxyError) as caught:
        parse_header(data)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


# ---- every header there can be


many = settings(max_examples=2000 if EVERY_CASE else 40, deadline=None, derandomize=True)
ports = st.integers(0, 65535)
ipv6 = st.ip_addresses(v=6)
mapped = st.ip_addresses(v=4).map(lambda address: IPv6Address((0xFFFF << 32) + int(address)))
spelling = st.sampled_from([str, lambda address: address.exploded, lambda address: address.exploded.upper()])
rests = st.binary(max_size=50)


def getpeername(address: Any, port: int) -> Any:
    """As the kernel and the C library show it."""
    if address.version == 4:
        return str(address), port
    deprecated = address in IPv6Network("::/96")  # the C library's ::1.2.3.4
    return str(address) if deprecated else socket.inet_ntop(socket.AF_INET6, address.packed), port, 0, 0


@st.composite
def pairs(draw: Any) -> tuple[Any, Any, int, int]:
    addresses = draw(st.sampled_from([st.ip_addresses(v=4), ipv6, ipv6 | mapped]))
    return draw(addresses), draw(addresses), draw(ports), draw(ports)


@many
@given(pair=pairs(), spell=spelling, rest=rests)
def test_every_version_1_header_is_read_as_it_was_written(
    pair: tuple[Any, Any, int, int], spell: Callable[[Any], str], rest: bytes
) -> None:
    source, destination, from_port, to_port = pair
    header = f"PROXY TCP{source.version} {spell(source)} {spell(destination)} {from_port} {to_port}\r\n".encode()
    assume(len(header) <= 107)  # since Python 3.13 two mapped addresses may have more when they are spelled out
    info = ProxyInfo(1, False, getpeername(source, from_port), getpeername(destination, to_port))
    assert parse_header(header + rest) == (len(header), info)
    assert all(parse_header(header[:size]) is None for size in range(len(header)))


tlvs = st.lists(st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40)), max_size=6)


@many
@given(pair=pairs(), more=tlvs, checksum=st.booleans(), rest=rests)
def test_every_version_2_header_is_read_as_it_was_written(
    pair: tuple[Any, Any, int, int], more: list[tuple[int, bytes]], checksum: bool, rest: bytes
) -> None:
    source, destination, from_port, to_port = pair
    block = source.packed + destination.packed + struct.pack("!HH", from_port, to_port)
    header = v2(0x21, {4: 0x11, 6: 0x21}[source.version], block, *(tlv(*item) for item in more), checksum=checksum)
    more += [(3, header[-4:])] if checksum else []
    info = ProxyInfo(2, False, getpeername(source, from_port), getpeername(destination, to_port), tuple(more))
    assert parse_header(header + rest) == (len(header), info)
    assert all(parse_header(header[:size]) is None for size in range(len(header)))


paths = st.binary(max_size=108).filter(lambda path: b"\0" not in path)


@many
@given(source=paths, destination=paths, more=tlvs, rest=rests)
def test_every_path_is_read_as_the_system_would_decode_it(
    source: bytes, destination: bytes, more: list[tuple[int, bytes]], rest: bytes
) -> None:
    header = v2(0x21, 0x31, unix(source), unix(destination), *(tlv(*item) for item in more))
    info = ProxyInfo(2, False, os.fsdecode(source), os.fsdecode(destination), tuple(more))
    assert parse_header(header + rest) == (len(header), info)


# ---- headers that somebody has spoiled


def plainly(data: bytes) -> tuple[int, ProxyInfo] | None:
    """The header that ``data`` begins with, if there is one: read by other means, and only as a whole."""
    return plainly_v1(data[:107]) or plainly_v2(data)


LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r]*)?|TCP(?P<version>[46]) (?P<source>[^ \r]*) (?P<destination>[^ \r]*)"
    rb" (?P<from>[0-9]+) (?P<to>[0-9]+))\r\n"
)


def plainly_v1(data: bytes) -> tuple[int, ProxyInfo] | None:
    line = LINE.match(data)
    if line is None or not line["version"]:
        return line and (line.end(), ProxyInfo(1))
    family = socket.AF_INET if line["version"] == b"4" else socket.AF_INET6
    try:
        hosts = [socket.inet_pton(family, line[name].decode()) for name in ("source", "destination")]
        from_port, to_port = struct.unpack("!HH", struct.pack("!HH", int(line["from"]), int(line["to"])))
    except (OSError, ValueError, struct.error):
        return None
    if b"%d %d" % (from_port, to_port) != line["from"] + b" " + line["to"]:
        return None
    return line.end(), ProxyInfo(1, False, shown(hosts[0], from_port), shown(hosts[1], to_port))


def shown(host: bytes, *port: int) -> Any:
    if port:
        return getpeername(ip_address(host), *port)
    path, zero, _ = host.partition(b"\0")
    return os.fsdecode(path if path or not zero else host.rstrip(b"\0"))


def plainly_v2(data: bytes) -> tuple[int, ProxyInfo] | None:
    if len(data) < 16 or data[:12] != SIGNATURE:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    header = data[: 16 + length]
    if command not in (0x20, 0x21) or len(header) < 16 + length or length > 4080:
        return None
    if command == 0x20 or family in (0x00, 0x01, 0x10, 0x20, 0x30):
        found = items(header[16:]) if family == 0 else None
        addresses = (None, None)
    else:
        form = {0x11: "!4s4sHH", 0x21: "!16s16sHH", 0x31: "!108s108s"}.get(family)
        if form is None or length < struct.calcsize(form):
            return None
        source, destination, *numbers = struct.unpack_from(form, header, 16)
        addresses = shown(source, *numbers[:1]), shown(destination, *numbers[1:])
        found = items(header[16 + struct.calcsize(form) :])
        if found is None:
            return None
    for kind, value, left in found or ():
        blank = header[:-left] + bytes(len(value)) + header[len(header) - left + len(value) :]
        if kind == 3 and value != crc32c(blank).to_bytes(4):
            return None
    return len(header), ProxyInfo(2, command == 0x20, *addresses, tuple(item[:2] for item in found or ()))


def items(block: bytes) -> list[tuple[int, bytes, int]] | None:
    """Type and value of each TLV, and how many bytes there are from the value's first on; None if they are none."""
    found = []
    while block:
        size = int.from_bytes(block[1:3])
        if len(block) < 3 + size:
            return None
        found.append((block[0], block[3 : 3 + size], len(block) - 3))
        block = block[3 + size :]
    return found


def spoil(header: bytes, chance: random.Random) -> bytes:
    """The header with one to three changes."""
    data = bytearray(header)
    for _ in range(chance.randint(1, 3)):
        place = chance.randint(0, min(len(data), chance.choice([20, 400])))
        piece = chance.choice([b"", b" ", b"\r", b"\n", b"\r\n", b"0", b":", b"::", b".", b"+", b"%1", b"\0", b"\xff"])
        change = chance.randrange(5)
        if change == 0:
            data[place:place] = piece
        elif change == 1:
            data[place : place + len(piece)] = piece
        elif change == 2:
            del data[place : place + chance.randint(1, 3)]
        elif change == 3:
            data[place:] = chance.choice(list(HEADERS.values()))[0][place:]
        elif place < len(data):
            data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def spoiled() -> Iterator[bytes]:
    """Spoiled headers, the same in each run; half of them have something behind."""
    chance = random.Random(1)
    headers = [header for header, _ in HEADERS.values()]
    for number in range(MUTATIONS):
        yield spoil(headers[number % len(headers)], chance) + chance.randbytes(number % 2 * 20)


def test_of_spoiled_headers_only_those_that_are_headers_are_taken() -> None:
    taken = 0
    for data in spoiled():
        said = outcome(data)
        assert (None if said == "refused" else said) == plainly(data), data
        taken += plainly(data) is not None
    assert MUTATIONS / 10 < taken < MUTATIONS / 2  # there are enough of both


def test_of_spoiled_headers_the_same_is_said_however_they_are_cut() -> None:
    chance = random.Random(2)
    for data in spoiled():
        said = outcome(data)
        for size in sorted(chance.sample(range(len(data) + 1), min(10, len(data)))):
            before = outcome(data[:size])
            assert before == said or before is None, (data, size)


def test_what_another_implementation_reads_from_spoiled_headers_is_the_same() -> None:
    other = pytest.importorskip(
        "proxyprotocol.detect", reason="needs the package proxy-protocol: pip install '.[test]'"
    )
    compared = 0
    for data in spoiled():
        said = outcome(data)
        if not isinstance(said, tuple) or not isinstance(said[1].source, tuple):
            continue  # it is not as strict, and reads no path that is not ASCII
        size, info = said
        result = other.ProxyProtocolDetect().unpack(data[:size])
        sides = [(result.source, info.source), (result.dest, info.destination)]
        assert [getpeername(*theirs) for theirs, _ in sides] == [ours for _, ours in sides], data
        assert dict(result.tlv) == dict(info.tlvs), data
        compared += 1
    assert compared > MUTATIONS / 50


ENDINGS = [b"%c" % byte for byte in b"\n\r :.0PROXYUNKWNTCP46" + SIGNATURE]
"""Bytes to complete a header with, those first that come nearer to its end."""


def completed(data: bytes) -> bytes:
    """``data`` and what makes it a header, found byte by byte: there is no way back."""
    while outcome(data) is None:
        if data.startswith(SIGNATURE):
            return data + v2(0x20, 0)[len(data) :]
        data = next(longer for byte in ENDINGS if outcome(longer := data + byte) != "refused")
    return data


def test_of_spoiled_headers_whatever_wants_more_can_become_a_header() -> None:
    waiting = {data[:size] for data in spoiled() for size in range(50) if outcome(data[:size]) is None}
    assert len(waiting) > MUTATIONS / 10
    for data in waiting:
        if len(data) < 12 or not data.startswith(SIGNATURE):
            assert plainly(completed(data)), data
