"""`iostreamsrv.sansio.frames`: promises of each read of a whole message."""

import struct
from typing import Any

import pytest

from iostreamsrv.errors import FramingError
from iostreamsrv.sansio.buffers import ReadBuffer
from iostreamsrv.sansio.frames import ReadDelimited, ReadPrefixed
from iostreamsrv.sansio.reads import MORE, Read, ReadFailed

LONG = struct.Struct("!I")
SIGNED = struct.Struct("!h")


def filled(*chunks: bytes) -> ReadBuffer:
    buffer = ReadBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


def upper(line: bytes) -> str:
    if line == b"bad":
        raise FramingError("it is bad")
    return line.decode().upper()


def failure(read: Read, buffer: ReadBuffer) -> str:
    """What is wrong with what is in the buffer, where it stays."""
    before = bytes(buffer.contents())
    with pytest.raises(ReadFailed) as caught:
        read.take(buffer)
    assert buffer.contents() == before
    assert isinstance(caught.value.error, FramingError)
    return str(caught.value.error)


FRAMES: list[tuple[Read, bytes, Any]] = [
    (ReadDelimited(b"\n", 5), b"hello\n", b"hello"),
    (ReadDelimited(b"\n", 5), b"\n", b""),
    (ReadDelimited(b"\r\n", 5), b"a\nb\r\n", b"a\nb"),
    (ReadDelimited(b"\n", 1 << 62), b"hello\n", b"hello"),
    (ReadDelimited(b"\n", 5, upper), b"hello\n", "HELLO"),
    (ReadPrefixed(LONG, 5), b"\0\0\0\5hello", b"hello"),
    (ReadPrefixed(LONG, 1 << 62), b"\0\0\0\0", b""),
    (ReadPrefixed(SIGNED, 5), b"\0\1x", b"x"),
]


@pytest.mark.parametrize(("read", "frame", "message"), FRAMES)
def test_a_message_is_read_however_it_comes(read: Read, frame: bytes, message: Any) -> None:
    buffer = ReadBuffer()
    for end in range(len(frame) - 1):
        buffer.feed(frame[end : end + 1])
        assert read.take(buffer) is MORE
        assert buffer.size == end + 1
    buffer.feed(frame[-1:] + frame + b"\n")
    for _ in range(2):
        assert read.take(buffer) == message
    assert buffer.contents() == b"\n"


@pytest.mark.parametrize(("read", "frame", "message"), FRAMES)
def test_one_whole_message_may_be_accepted_and_nothing_else(read: Read, frame: bytes, message: Any) -> None:
    assert read.accept(frame) in (message, MORE)
    for other in (frame[:-1], frame + b"\n", frame * 2, b""):
        assert read.accept(other) is MORE or len(other) == 1


def test_most_messages_are_accepted() -> None:
    assert ReadDelimited(b"\n", 5).accept(b"hello\n") == b"hello"
    assert ReadPrefixed(LONG, 5).accept(b"\0\0\0\5hello") == b"hello"


def test_a_message_is_not_larger_than_its_limit() -> None:
    for frame in (b"hello!\n", b"hello!", b"hello! it is longer\n"):
        assert ReadDelimited(b"\n", 5).accept(frame) is MORE
        assert "larger than max_size, 5" in failure(ReadDelimited(b"\n", 5), filled(frame))
    assert "a message of 6 bytes or more" in failure(ReadDelimited(b"\n", 5), filled(b"hello!\nx"))
    assert ReadPrefixed(LONG, 5).accept(b"\0\0\0\6hello!") is MORE
    assert "a message of 6 bytes or more" in failure(ReadPrefixed(LONG, 5), filled(b"\0\0\0\6"))


def test_a_length_is_not_negative() -> None:
    assert ReadPrefixed(SIGNED, 5).accept(b"\xff\xff") is MORE
    assert "negative: -1" in failure(ReadPrefixed(SIGNED, 5), filled(b"\xff\xff"))


def test_what_is_no_message_stays() -> None:
    buffer = filled(b"bad\nrest\n")
    assert failure(ReadDelimited(b"\n", 5, upper), buffer) == "it is bad"
    buffer.take(4)
    assert ReadDelimited(b"\n", 5, upper).take(buffer) == "REST"


def test_a_peek_takes_nothing() -> None:
    buffer = filled(b"abcdef")
    assert buffer.peek(2) == b"ab"
    buffer.take(1)
    assert buffer.peek(2) == b"bc"
    buffer.feed(b"g")
    assert type(buffer.peek(6)) is bytes
    assert buffer.peek(6) == b"bcdefg"
