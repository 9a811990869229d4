"""Pending reads of whole messages, for :mod:`iostreamsrv.framing`.

What is no message, or is too large, fails the read with a `FramingError` and stays in the buffer.
"""

import struct
from collections.abc import Callable
from typing import Any

from ..errors import FramingError
from .buffers import ReadBuffer
from .reads import MORE, More, Read, ReadFailed
from .search import find


def too_large(size: int, max_size: int) -> FramingError:
    """The error of a message that has ``size`` bytes at least."""
    return FramingError(f"a message of {size} bytes or more is larger than max_size, {max_size}")


class ReadDelimited(Read):
    """Reads what is before a delimiter.

    :param max_size: most bytes of a message.
    :param parse: makes the message of these bytes, or raises `FramingError`; None for the bytes themselves.
    """

    __slots__ = ("delimiter", "limit", "max_size", "parse")

    def __init__(self, delimiter: bytes, max_size: int, parse: Callable[[bytes], Any] | None = None) -> None:
        Read.__init__(self)
        self.delimiter = delimiter
        self.max_size = max_size
        self.limit = max_size + len(delimiter)
        self.parse = parse

    def accept(self, chunk: bytes) -> Any | More:
        if self.parse is not None:
            return MORE
        end = find(chunk, self.delimiter)
        if end < 0 or end + len(self.delimiter) != len(chunk) or len(chunk) > self.limit:
            return MORE
        return chunk[:end]

    def take(self, buffer: ReadBuffer) -> Any | More:
        try:
            line = buffer.take_until(self.delimiter, self.limit)
        except OverflowError:
            found = buffer.contents().find(self.delimiter)
            raise ReadFailed(too_large(buffer.size + 1 if found < 0 else found, self.max_size)) from None
        if line is None:
            if buffer.size >= self.limit:
                raise ReadFailed(too_large(buffer.size + 1, self.max_size))
            return MORE
        message = line[: len(line) - len(self.delimiter)]
        if self.parse is None:
            return message
        try:
            return self.parse(message)
        except FramingError as error:
            buffer.unread(line)
            raise ReadFailed(error) from error


class ReadPrefixed(Read):
    """Reads what follows its length, which ``prefix`` unpacks."""

    __slots__ = ("head", "max_size", "unpack")

    def __init__(self, prefix: struct.Struct, max_size: int) -> None:
        Read.__init__(self)
        self.head = prefix.size
        self.unpack = prefix.unpack
        self.max_size = max_size

    def accept(self, chunk: bytes) -> bytes | More:
        head = self.head
        if len(chunk) >= head:
            (size,) = self.unpack(chunk[:head])
            if size == len(chunk) - head and size <= self.max_size:
                return chunk[head:]
        return MORE

    def take(self, buffer: ReadBuffer) -> bytes | More:
        head = self.head
        if buffer.size < head:
            return MORE
        (size,) = self.unpack(buffer.peek(head))
        if size < 0:  # the prefix may be a signed type
            raise ReadFailed(FramingError(f"the length is negative: {size}"))
        if size > self.max_size:
            raise ReadFailed(too_large(size, self.max_size))
        if buffer.size - head < size:
            return MORE
        buffer.take(head)
        return buffer.take(size) if size else b""
