"""Messages over streams: what each framing reads and writes, and what it refuses."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iostreamsrv import (
    CloseReason,
    Event,
    FramingError,
    IOStream,
    OptionError,
    StreamClosedError,
    StreamTimeoutError,
    TCPClient,
    TCPServer,
)
from iostreamsrv.framing import Delimited, FixedSize, Framing, JSONLines, LengthPrefixed, Netstrings, Structs
from iostreamsrv.testing import memory_stream_pair, running
from tests.support.tiers import EVERY_CASE
from tests.support.waiting import eventually, turns

pytestmark = pytest.mark.usefixtures("io_loop")

CASES = 300 if EVERY_CASE else 15


class Chunks(Framing[bytes]):
    """One of one's own: a length byte, then so many bytes. It knows nothing of limits."""

    overhead = 1

    def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
        if len(buffer) < 1 + buffer[0]:
            return None
        return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

    def encode(self, message: bytes) -> bytes:
        return bytes([len(message)]) + message


Make = Callable[..., Framing[Any]]

KINDS: dict[str, tuple[Make, list[Any], bytes]] = {
    "lines": (Delimited, [b"hello", b"", b"\r", b"\xff\0"], b"hello\n\n\r\n\xff\0\n"),
    "a longer delimiter": (
        lambda stream, **limit: Delimited(stream, b"\r\n", **limit),
        [b"one", b"", b"two\r", b"\n"],
        b"one\r\n\r\ntwo\r\r\n\n\r\n",
    ),
    "JSON lines": (
        JSONLines,
        [{"a": [1, 2.5]}, None, "\u00e9\u2028", 0],
        b'{"a":[1,2.5]}\nnull\n"\xc3\xa9\xe2\x80\xa8"\n0\n',
    ),
    "length in front": (LengthPrefixed, [b"hello", b"", b"\0"], b"\0\0\0\5hello\0\0\0\0\0\0\0\1\0"),
    "another length": (
        lambda stream, **limit: LengthPrefixed(stream, "<h", **limit),
        [b"hello", b"", b"\0"],
        b"\5\0hello\0\0\1\0\0",
    ),
    "netstrings": (Netstrings, [b"hello world!", b"", b","], b"12:hello world!,0:,1:,,"),
    "fixed size": (lambda stream: FixedSize(stream, 3), [b"abc", b"\0\n\0"], b"abc\0\n\0"),
    "structs": (lambda stream: Structs(stream, "!Hb"), [(258, -1), (0, 1)], b"\1\2\xff\0\0\1"),
    "one's own": (Chunks, [b"hello", b"", b"\1"], b"\5hello\0\1\1"),
}
"""How each is made, messages, and these as they are sent."""

SIZED = ["lines", "a longer delimiter", "length in front", "another length", "netstrings", "one's own"]
"""Those with messages of bytes, of any size."""

of_every_kind = pytest.mark.parametrize("kind", KINDS)
of_every_size = pytest.mark.parametrize("kind", SIZED)


@pytest.fixture
def streams() -> Iterator[tuple[IOStream, IOStream]]:
    pair = memory_stream_pair()
    yield pair
    for stream in pair:
        stream.abort()


@pytest.fixture
def ours(streams: tuple[IOStream, IOStream]) -> IOStream:
    return streams[0]


@pytest.fixture
def theirs(streams: tuple[IOStream, IOStream]) -> IOStream:
    return streams[1]


async def listed(messages: Framing[Any]) -> list[Any]:
    return [message async for message in messages]


async def send_in_pieces(data: bytes, size: int, sender: IOStream, receiver: IOStream) -> None:
    """Send pieces of this size, each when the one before it has been received."""
    before = receiver.bytes_read
    for begin in range(0, len(data), size):
        await sender.write(data[begin : begin + size])
        await eventually(lambda end=begin + size: receiver.bytes_read - before == min(end, len(data)))


# ---- reading and writing


@of_every_kind
@pytest.mark.gen_test
async def test_messages_are_sent_as_their_format_has_it(kind: str, ours: IOStream, theirs: IOStream) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(ours)
    for message in messages:
        await framing.write(message)
    ours.close()
    assert await theirs.read_until_close() == wire


@of_every_kind
@pytest.mark.gen_test
async def test_messages_are_read_from_pieces_of_every_size(kind: str) -> None:
    make, messages, wire = KINDS[kind]
    for size in range(1, len(wire) + 1):
        ours, theirs = memory_stream_pair()
        reading = asyncio.ensure_future(listed(make(theirs)))
        await turns(1)
        await send_in_pieces(wire, size, ours, theirs)
        ours.close()
        assert await reading == messages
        theirs.close()


@of_every_kind
@pytest.mark.gen_test
async def test_decode_takes_the_first_message_and_waits_while_it_is_not_there_as_a_whole(
    kind: str, ours: IOStream
) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(ours)
    first = len(framing.encode(messages[0]))
    for size in range(1, len(wire) + 1):
        buffer = bytearray(wire[:size])
        assert framing.decode(buffer) == (None if size < first else (first, messages[0]))
        buffer += b"nobody holds it"
        assert buffer.startswith(wire[:size])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
LENGTHS = st.binary(max_size=255)

MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "lines": LENGTHS.filter(lambda message: b"\n" not in message),
    "a longer delimiter": st.text("\r\nx", max_size=9).map(str.encode).filter(lambda message: b"\r\n" not in message),
    "JSON lines": JSON,
    "length in front": LENGTHS,
    "another length": LENGTHS,
    "netstrings": LENGTHS,
    "fixed size": st.binary(min_size=3, max_size=3),
    "structs": st.tuples(st.integers(0, 65535), st.integers(-128, 127)),
    "one's own": LENGTHS,
}


@of_every_kind
@settings(max_examples=CASES, deadline=None)
@given(data=st.data())
def test_whatever_is_written_is_what_is_read(kind: str, data: st.DataObject) -> None:
    messages = data.draw(st.lists(MESSAGES[kind], max_size=5))
    size = data.draw(st.integers(1, 400), label="pieces of")
    assert asyncio.run(passed_on(KINDS[kind][0], messages, size)) == messages


async def passed_on(make: Make, messages: list[Any], size: int) -> list[Any]:
    """What is read of messages that are cut into pieces on their way."""
    ours, relay = memory_stream_pair()
    sender, theirs = memory_stream_pair()
    framing = make(ours)
    for message in messages:
        await framing.write(message)
    ours.close()
    reading = asyncio.ensure_future(listed(make(theirs)))
    await send_in_pieces(await relay.read_until_close(), size, sender, theirs)
    sender.close()
    found = await reading
    theirs.close()
    return found


@pytest.mark.gen_test
async def test_json_lines_may_end_with_a_carriage_return(ours: IOStream, theirs: IOStream) -> None:
    await ours.write(b'{"a": 1}\r\n 2 \r\n')
    ours.close()
    assert await listed(JSONLines(theirs)) == [{"a": 1}, 2]


@pytest.mark.gen_test
async def test_a_delimiter_that_could_overlap_with_itself_parts_what_was_written(
    ours: IOStream, theirs: IOStream
) -> None:
    framing = Delimited(ours, b"aa")
    with pytest.raises(FramingError):
        framing.write(b"a")
    await framing.write(b"ab")
    await framing.write(b"b")
    ours.close()
    assert await listed(Delimited(theirs, b"aa")) == [b"ab", b"b"]


@of_every_kind
@pytest.mark.gen_test
async def test_something_else_may_be_read_between_messages(kind: str, ours: IOStream, theirs: IOStream) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(theirs)
    first = len(framing.encode(messages[0]))
    await ours.write(b"one: " + wire[:first] + b"two: " + wire[first:])
    assert await theirs.read_bytes(5) == b"one: "
    assert await framing.read() == messages[0]
    assert await theirs.read_bytes(5) == b"two: "
    assert await framing.read() == messages[1]


@pytest.mark.gen_test
async def test_a_delimiter_is_found_in_what_is_left_by_another_read_of_a_message_that_has_begun(
    ours: IOStream, theirs: IOStream
) -> None:
    framing = Delimited(theirs)
    await ours.write(b"0123456789")
    with pytest.raises(StreamTimeoutError):
        await framing.read(timeout=0.01)  # it has looked at 10 bytes
    assert await theirs.read_bytes(9) == b"012345678"
    await ours.write(b"\nsecond\n")
    assert await framing.read() == b"9"
    assert await framing.read() == b"second"


@of_every_kind
@pytest.mark.gen_test
async def test_a_read_that_times_out_has_taken_nothing(kind: str, ours: IOStream, theirs: IOStream) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(theirs)
    for end in range(len(framing.encode(messages[0]))):
        with pytest.raises(StreamTimeoutError):
            await framing.read(timeout=0.001)
        await ours.write(wire[end : end + 1])
    assert await framing.read() == messages[0]


@of_every_kind
@pytest.mark.gen_test
async def test_a_read_that_is_cancelled_has_taken_nothing(kind: str, ours: IOStream, theirs: IOStream) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(theirs)
    for end in range(len(framing.encode(messages[0]))):
        reading = framing.read()
        await ours.write(wire[end : end + 1])
        reading.cancel()  # whether the byte has come by now or not
        await turns(1)
    assert await framing.read() == messages[0]


# ---- ends


@of_every_kind
@pytest.mark.gen_test
async def test_an_end_between_messages_ends_the_loop_and_one_within_a_message_raises(kind: str) -> None:
    make, messages, wire = KINDS[kind]
    framing = make(memory_stream_pair()[0])
    ends = [0]
    for message in messages:
        ends.append(ends[-1] + len(framing.encode(message)))
    for size in range(len(wire) + 1):
        ours, theirs = memory_stream_pair()
        await ours.write(wire[:size])
        ours.close()
        found: list[Any] = []
        if size in ends:
            found = await listed(make(theirs))
        else:
            with pytest.raises(FramingError, match="ended within a message"):
                async for message in make(theirs):
                    found.append(message)
        assert found == messages[: sum(end <= size for end in ends[1:])]
        theirs.close()


@pytest.mark.gen_test
async def test_a_reset_does_not_end_the_loop_as_an_end_does(ours: IOStream, theirs: IOStream) -> None:
    await ours.write(b"one\n")
    framing = Delimited(theirs)
    assert await framing.read() == b"one"
    ours.abort()
    with pytest.raises(StreamClosedError) as caught:
        await listed(framing)
    assert caught.value.reason is CloseReason.RESET


@pytest.mark.gen_test
async def test_a_close_on_this_side_does_not_end_the_loop_as_an_end_does(theirs: IOStream) -> None:
    reading = asyncio.ensure_future(listed(Delimited(theirs)))
    await turns(1)
    theirs.close()
    with pytest.raises(StreamClosedError) as caught:
        await reading
    assert caught.value.reason is CloseReason.LOCAL


@pytest.mark.gen_test
async def test_read_raises_at_the_end_what_every_read_raises(ours: IOStream, theirs: IOStream) -> None:
    ours.close()
    with pytest.raises(StreamClosedError) as caught:
        await Delimited(theirs).read()
    assert caught.value.reason is CloseReason.EOF


# ---- limits


@of_every_size
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.gen_test
async def test_a_message_of_the_greatest_size_is_read_and_a_larger_one_refused_however_it_comes(
    kind: str, size: int
) -> None:
    make = KINDS[kind][0]
    encode = make(memory_stream_pair()[0]).encode
    ours, theirs = memory_stream_pair()
    framing = make(theirs, max_size=100)
    largest, larger = b"x" * 100, b"x" * 101
    reading = asyncio.ensure_future(both(framing))
    await turns(1)
    await send_in_pieces(encode(largest), size, ours, theirs)
    await ours.write(encode(larger))
    found = await reading
    assert found[0] == largest
    assert isinstance(found[1], FramingError)
    assert "larger than max_size, 100" in str(found[1])
    for stream in (ours, theirs):
        stream.abort()


async def both(framing: Framing[bytes]) -> list[Any]:
    return [await framing.read(), *await asyncio.gather(framing.read(), return_exceptions=True)]


@of_every_size
@pytest.mark.gen_test
async def test_a_message_that_is_too_large_is_refused_before_all_of_it_has_come(
    kind: str, ours: IOStream, theirs: IOStream
) -> None:
    make = KINDS[kind][0]
    reading = make(theirs, max_size=100).read()
    await ours.write(make(ours).encode(b"x" * 250)[:150])
    with pytest.raises(FramingError):
        await reading


@of_every_size
@pytest.mark.gen_test
async def test_a_message_that_is_too_large_is_not_written(kind: str, ours: IOStream, theirs: IOStream) -> None:
    framing = KINDS[kind][0](ours, max_size=100)
    with pytest.raises(FramingError, match="larger than max_size, 100") as caught:
        framing.write(b"x" * 101)
    assert caught.value.operation == "write"
    await framing.write(b"x" * 100)
    ours.close()
    assert await theirs.read_until_close() == framing.encode(b"x" * 100)


@pytest.mark.gen_test
async def test_json_lines_are_limited_as_they_are_sent(ours: IOStream, theirs: IOStream) -> None:
    framing = JSONLines(ours, max_size=10)
    await framing.write("x" * 8)
    with pytest.raises(FramingError):
        framing.write("x" * 9)
    await ours.write(b'"' + b"x" * 9 + b'"\n')
    limited = JSONLines(theirs, max_size=10)
    assert await limited.read() == "x" * 8
    with pytest.raises(FramingError):
        await limited.read()


@pytest.mark.gen_test
async def test_the_limit_is_64_kib_unless_it_is_given(ours: IOStream, theirs: IOStream) -> None:
    framing = LengthPrefixed(theirs)
    LengthPrefixed(ours).write(bytes(65536))
    assert await framing.read() == bytes(65536)
    ours.write(b"\0\1\0\1")
    with pytest.raises(FramingError):
        await framing.read()
    unlimited = LengthPrefixed(theirs, max_size=math.inf)
    ours.write(bytes(65537))
    assert await unlimited.read() == bytes(65537)


@of_every_size
@pytest.mark.gen_test
async def test_beyond_the_buffer_of_the_stream_the_stream_is_closed(kind: str) -> None:
    make = KINDS[kind][0]
    ours, theirs = memory_stream_pair(max_buffer_size=64)
    reading = make(theirs, max_size=10_000).read()
    ours.write(make(memory_stream_pair()[0]).encode(b"x" * 200))
    with pytest.raises(StreamClosedError) as caught:
        await reading
    assert caught.value.reason is CloseReason.BUFFER_FULL
    ours.abort()


# ---- what is no message


BAD: list[tuple[str, bytes]] = [
    ("JSON lines", b"\n"),
    ("JSON lines", b"{'a': 1}\n"),
    ("JSON lines", b"1 2\n"),
    ("JSON lines", b"NaN\n"),
    ("JSON lines", b"[-Infinity]\n"),
    ("JSON lines", b'"\xff"\n'),
    ("JSON lines", "1\n".encode("utf-16")),
    ("JSON lines", b"\xef\xbb\xbf1\n"),
    ("JSON lines", b"[" * 60_000 + b"\n"),
    ("JSON lines", b"9" * 5000 + b"\n"),
    ("another length", b"\xff\xff"),
    ("netstrings", b"hello,"),
    ("netstrings", b":"),
    ("netstrings", b"-1:"),
    ("netstrings", b" 1:a,"),
    ("netstrings", b"1_0:"),
    ("netstrings", b"00:,"),
    ("netstrings", b"01:a,"),
    ("netstrings", b"1:ab"),
    ("netstrings", b"99999999999:"),
    ("netstrings", b"65537"),
]


@pytest.mark.parametrize(("kind", "data"), BAD, ids=[f"{kind}: {data[:20]!r}" for kind, data in BAD])
@pytest.mark.gen_test
async def test_a_bad_message_is_refused_its_bytes_stay_and_it_can_be_answered(
    kind: str, data: bytes, ours: IOStream, theirs: IOStream
) -> None:
    framing = KINDS[kind][0](theirs)
    await ours.write(data)
    for _ in range(2):  # nobody knows where the next one begins
        with pytest.raises(FramingError) as caught:
            await framing.read()
        assert caught.value.operation != "write"
    assert theirs.buffered == len(data)
    await theirs.write(b"what?\n")
    assert await ours.read_until(b"\n") == b"what?\n"


@pytest.mark.gen_test
async def test_a_netstring_is_refused_at_the_same_byte_whatever_the_limit_and_however_it_comes() -> None:
    for size in (1, 20):
        ours, theirs = memory_stream_pair()
        reading = Netstrings(theirs, max_size=math.inf).read()
        await send_in_pieces(b"9999999999", size, ours, theirs)
        assert not reading.done()
        await ours.write(b"9")
        with pytest.raises(FramingError):
            await reading
        for stream in (ours, theirs):
            stream.abort()


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lines", b"one\ntwo"),
        ("a longer delimiter", b"\r\n"),
        ("JSON lines", {1, 2}),
        ("JSON lines", math.nan),
        ("JSON lines", "\ud800"),
        ("JSON lines", DEEP),
        ("another length", bytes(32768)),
        ("fixed size", b"ab"),
        ("fixed size", b"abcd"),
        ("structs", (1,)),
        ("structs", (1, 2, 3)),
        ("structs", (65536, 0)),
        ("structs", ("1", 0)),
        ("structs", None),
    ],
)
@pytest.mark.gen_test
async def test_what_cannot_be_a_message_is_not_written(
    kind: str, message: Any, ours: IOStream, theirs: IOStream
) -> None:
    framing = KINDS[kind][0](ours)
    with pytest.raises(FramingError) as caught:
        framing.write(message)
    assert caught.value.operation == "write"
    ours.close()
    assert await theirs.read_until_close() == b""


@pytest.mark.gen_test
async def test_a_float_that_its_layout_cannot_hold_is_not_written(ours: IOStream) -> None:
    with pytest.raises(FramingError):
        Structs(ours, "!f").write((1e300,))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda stream: Delimited(stream, max_size=0), "max_size"),
        (lambda stream: Netstrings(stream, max_size="10"), "max_size"),
        (lambda stream: Delimited(stream, b""), "delimiter"),
        (lambda stream: Delimited(stream, "\n"), "delimiter"),
        (lambda stream: LengthPrefixed(stream, "!f"), "format"),
        (lambda stream: LengthPrefixed(stream, "?"), "format"),
        (lambda stream: LengthPrefixed(stream, "!HH"), "format"),
        (lambda stream: LengthPrefixed(stream, "4s"), "format"),
        (lambda stream: LengthPrefixed(stream, "no"), "format"),
        (lambda stream: LengthPrefixed(stream, None), "format"),
        (lambda stream: Structs(stream, ""), "format"),
        (lambda stream: Structs(stream, "4"), "format"),
        (lambda stream: Structs(stream, "\u00e9"), "format"),
        (lambda stream: FixedSize(stream, 0), "size"),
        (lambda stream: FixedSize(stream, None), "size"),
        (lambda stream: FixedSize(stream, math.inf), "size"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(make: Make, option: str, ours: IOStream) -> None:
    with pytest.raises(OptionError) as caught:
        make(ours)
    assert caught.value.option == option


# ---- on a server


class Calculator(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        requests = JSONLines(stream, max_size=10_000)
        async for request in requests:
            total = sum(request["numbers"])
            await requests.write({"sum": total if total < 100 else {total}})  # a set is no JSON


def told(server: TCPServer) -> list[Event]:
    """The errors that the server will tell of."""
    events: list[Event] = []
    server.events.subscribe(events.append, "error")
    return events


@pytest.mark.gen_test
async def test_a_server_of_messages_serves_over_a_socket_until_its_client_ends() -> None:
    server = Calculator()
    events = told(server)
    async with running(server) as address:
        stream = await TCPClient().connect(*address)
        answers = JSONLines(stream)
        await answers.write({"numbers": [1, 2]})
        await answers.write({"numbers": []})
        stream.send_eof()
        assert await listed(answers) == [{"sum": 3}, {"sum": 0}]
        stream.close()
    assert not events


@pytest.mark.gen_test
async def test_a_bad_message_that_the_handler_does_not_catch_closes_its_client_without_a_traceback() -> None:
    server = Calculator()
    events = told(server)
    async with running(server) as address:
        stream = await TCPClient().connect(*address)
        await stream.write(b'{"numbers": [1]}\nhello\n')
        assert await stream.read_until_close() == b'{"sum":1}\n'
    assert [(event.level, event.reason) for event in events] == [(logging.INFO, CloseReason.LOCAL)]
    assert "is not JSON" in events[0].text


@pytest.mark.gen_test
async def test_a_message_that_the_handler_cannot_write_is_an_error_of_the_handler() -> None:
    server = Calculator()
    events = told(server)
    async with running(server) as address:
        stream = await TCPClient().connect(*address)
        await stream.write(b'{"numbers": [100]}\n')
        assert await stream.read_until_close() == b""
    assert [(event.level, event.reason) for event in events] == [(logging.ERROR, CloseReason.HANDLER_ERROR)]
