"""Framings: they define where the messages on a stream begin and end. ::

    from iostreamsrv.framing import JSONLines

    class Calculator(TCPServer):
        async def handle_stream(self, stream, address):
            requests = JSONLines(stream, max_size=10_000)
            async for request in requests:
                await requests.write({"sum": sum(request["numbers"])})

Each framing reads and writes one kind of message, and limits its size. ``async for`` ends at EOF between two messages.
A read that is cancelled or times out has consumed nothing.

**To define a framing**, subclass `Framing` and write two functions of bytes. They can be tested without a stream::

    class Chunks(Framing[bytes]):  # a length byte, then the message
        def decode(self, buffer):
            if len(buffer) < 1 + buffer[0]:
                return None
            return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

        def encode(self, message):
            return bytes([len(message)]) + message
"""

import json
import math
import re
import struct
from asyncio import Future
from typing import Any, Generic, Self, TypeVar

from .errors import CloseReason, FramingError, OptionError, StreamClosedError, of_stream
from .iostream import BaseIOStream
from .options import check_size
from .runtime.checks import check_int
from .sansio.frames import ReadDelimited, ReadPrefixed, too_large
from .sansio.reads import Read, ReadBytes

__all__ = [
    "Delimited",
    "FixedSize",
    "Framing",
    "JSONLines",
    "LengthPrefixed",
    "Netstrings",
    "Structs",
]

MAX_SIZE = 65536
"""Default limit of a message: what one receive may bring. It is less than the 1 MiB that a server's stream can hold."""

Message = TypeVar("Message")


class Framing(Generic[Message]):
    """Reads and writes messages on ``stream``. The base class of all framings.

    :param stream: the stream. Between two messages, it may be read directly.
    :param max_size: the most bytes of a message without its framing; default 65536. A larger message raises
        `FramingError`, in a read and in a write. It should be less than the stream's ``max_buffer_size``: beyond that,
        the stream is closed.
    :raises OptionError: ``max_size`` is not a number of bytes.
    """

    overhead = 64
    """The most bytes that the framing adds to a message: on the wire it has at most ``max_size + overhead`` bytes."""

    def __init__(self, stream: BaseIOStream, max_size: float = MAX_SIZE) -> None:
        self.stream = stream
        self.max_size = check_size("max_size", max_size) or MAX_SIZE
        self._frames: Read | None = None  # what reads the messages in place of decode()

    # ---- for subclasses to implement

    def decode(self, buffer: bytearray) -> tuple[int, Message] | None:
        """Decode the first message in ``buffer``. Must neither change nor keep the buffer.

        :param buffer: the received bytes, at least one.
        :returns: the size of the encoded message in bytes, and the message; None if the message is incomplete.
        :raises FramingError: the bytes are not a message, whatever follows.
        """
        raise NotImplementedError

    def encode(self, message: Message) -> bytes:
        """Encode a message as the bytes to send.

        :raises FramingError: the message is invalid or too large.
        """
        raise NotImplementedError

    # ---- reading and writing

    def read(self, *, timeout: float | None = None) -> "Future[Message]":
        """Read the next message.

        :param timeout: seconds; None, the default: no limit.
        :returns: a future with the message.
        :raises FramingError: from the future: the data is not a message, or too large. It stays in the buffer, because
            the start of the next message is unknown: reply, then close.
        :raises StreamClosedError: EOF, or the stream was closed.
        :raises StreamTimeoutError: from the future: the timeout passed. The stream stays open and keeps all bytes.
        """
        return self.stream.read_until_match(self._frames or self._match, timeout=timeout)

    def write(self, message: Message) -> "Future[None]":
        """Write a message. See `BaseIOStream.write` for the future and the other errors.

        :raises FramingError: the message is invalid, or larger than ``max_size``. Nothing was written.
        """
        try:
            data = self.encode(message)
            self._check_whole(len(data))
        except FramingError as error:
            error.operation = "write"  # marks it as an error of this side
            of_stream(error, self.stream.id)
            raise
        return self.stream.write(data)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.read()
        except StreamClosedError as error:
            if error.reason is not CloseReason.EOF:
                raise
            if self.stream.buffered:
                cut = FramingError(f"the stream ended within a message, after {self.stream.buffered} bytes")
                raise of_stream(cut, self.stream.id) from None
            raise StopAsyncIteration from None

    def _match(self, buffer: bytearray) -> tuple[int, Message] | None:
        found = self.decode(buffer)
        # A complete message and an incomplete one have the same limit.
        self._check_whole(len(buffer) + 1 if found is None else found[0])
        return found

    def _check_whole(self, size: int) -> None:
        """Raise an error if ``size``, the size of a message with its framing, exceeds the limit."""
        if size > self.max_size + self.overhead:
            raise self._too_large(size)

    def _check(self, size: int) -> None:
        """Raise an error if ``size``, the size of a message without its framing, exceeds the limit."""
        if size > self.max_size:
            raise self._too_large(size)

    def _too_large(self, size: int) -> FramingError:
        return too_large(size, self.max_size)

    def _decodes_as(self, ours: type["Framing[Any]"]) -> bool:
        """Whether ``decode`` is that of ``ours``: a subclass has not overridden it. Then a read of the compiled core
        does the same."""
        return type(self).decode is ours.decode


class Delimited(Framing[bytes]):
    """Messages that end with a delimiter, such as lines.

    :param delimiter: one byte or more; default ``b"\\n"``. The messages do not contain it.
    """

    def __init__(self, stream: BaseIOStream, delimiter: bytes = b"\n", max_size: float = MAX_SIZE) -> None:
        super().__init__(stream, max_size)
        if not isinstance(delimiter, bytes) or not delimiter:
            raise OptionError("delimiter", delimiter, "must be bytes, at least one")
        self.delimiter = delimiter
        self.overhead = len(delimiter)
        if self._decodes_as(Delimited):
            self._frames = ReadDelimited(delimiter, self.max_size)
        self._begin = -1  # position in the stream where the message begins that was searched last
        self._searched = 0  # how many of its bytes were searched without success

    def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
        return self._decode_from(buffer, 0)

    def _decode_from(self, buffer: bytearray, begin: int) -> tuple[int, bytes] | None:
        end = buffer.find(self.delimiter, begin)
        if end < 0:
            return None
        self._check(end)
        return end + len(self.delimiter), bytes(buffer[:end])

    def _match(self, buffer: bytearray) -> tuple[int, bytes] | None:
        begin = self.stream.bytes_read - len(buffer)
        if begin != self._begin:
            self._begin, self._searched = begin, 0
        found = self._decode_from(buffer, self._searched)
        if found is None:  # but the delimiter may have begun in the last bytes
            self._searched = max(0, len(buffer) - len(self.delimiter) + 1)
            self._check_whole(len(buffer) + 1)
        return found

    def encode(self, message: bytes) -> bytes:
        self._check(len(message))
        data = message + self.delimiter
        if data.find(self.delimiter) != len(message):  # a delimiter like "aa" may also begin at a message's end
            raise FramingError(f"the message contains the delimiter, {self.delimiter!r}, or would together with it")
        return data


class JSONLines(Framing[Any]):
    """One JSON value per line (https://jsonlines.org), in UTF-8. A line ends with ``\\n`` or ``\\r\\n``.

    ``NaN`` and ``Infinity``, which Python's `json` accepts, are errors here. So are values that could be read but not
    written again: a number too large for a float (``1e999``), and half of a surrogate pair (``"\\ud800"``).
    """

    def __init__(self, stream: BaseIOStream, max_size: float = MAX_SIZE) -> None:
        super().__init__(stream, max_size)
        self._lines = Delimited(stream, b"\n", max_size)
        if self._decodes_as(JSONLines):
            self._frames = ReadDelimited(b"\n", self.max_size, _parsed)

    def decode(self, buffer: bytearray) -> tuple[int, Any] | None:
        found = self._lines.decode(buffer)
        return None if found is None else (found[0], _parsed(found[1]))

    def encode(self, message: Any) -> bytes:
        try:
            line = _dumps(message)
        except (TypeError, ValueError, RecursionError) as error:
            raise FramingError(f"the message has no JSON form: {error}") from None
        return self._lines.encode(line)


def _parsed(line: bytes) -> Any:
    try:
        text = str(line, "utf-8")
        value = _loads(text)
        if "\\" in text and _SURROGATE.search(text):
            _dumps(value)  # fails if it is half of a pair
        return value
    except (ValueError, RecursionError) as error:
        raise FramingError(f"the line is not JSON: {error}") from None


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that is half of a surrogate pair. Unescaped, UTF-8 has none."""


def _dumps(value: Any) -> bytes:
    return _encode(value).encode()


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not allowed")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large for a float")
    return number


# As json.loads and json.dumps, which would make one of these for each message.
_loads = json.JSONDecoder(parse_constant=_no_json, parse_float=_finite).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class LengthPrefixed(Framing[bytes]):
    """Messages with a length prefix.

    :param format: the format of the prefix as for `struct`, one integer; default ``"!I"``: four bytes, unsigned, in
        network byte order.
    :raises OptionError: ``format`` is invalid.
    """

    def __init__(self, stream: BaseIOStream, format: str = "!I", max_size: float = MAX_SIZE) -> None:
        super().__init__(stream, max_size)
        self._prefix = _layout(format)
        if [type(value) for value in self._prefix.unpack(bytes(self._prefix.size))] != [int]:
            raise OptionError("format", format, "must be a struct format of one integer")
        self.overhead = self._prefix.size
        if self._decodes_as(LengthPrefixed):
            self._frames = ReadPrefixed(self._prefix, self.max_size)

    def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
        begin = self._prefix.size
        if len(buffer) < begin:
            return None
        (size,) = self._prefix.unpack_from(buffer)
        if size < 0:  # the prefix may be a signed type
            raise FramingError(f"the length is negative: {size}")
        self._check(size)
        return None if len(buffer) < begin + size else (begin + size, bytes(buffer[begin : begin + size]))

    def encode(self, message: bytes) -> bytes:
        self._check(len(message))
        try:
            return self._prefix.pack(len(message)) + message
        except struct.error:
            raise FramingError(f"{len(message)} bytes are more than the length prefix can hold") from None


class Netstrings(Framing[bytes]):
    """Netstrings (https://cr.yp.to/proto/netstrings.txt): ``5:hello,``."""

    digits = 10
    """The most digits of a length."""
    overhead = digits + 2

    def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
        colon = buffer.find(b":", 0, self.digits + 1)
        size = self._size(bytes(buffer[: self.digits + 1 if colon < 0 else colon]))
        end = colon + 1 + size
        if colon < 0 or len(buffer) <= end:
            return None
        if buffer[end : end + 1] != b",":
            raise FramingError("there is no comma after the netstring")
        return end + 1, bytes(buffer[colon + 1 : end])

    def _size(self, digits: bytes) -> int:
        """Parse a length, or the beginning of one."""
        if not digits.isdigit() or len(digits) > self.digits or (len(digits) > 1 and digits.startswith(b"0")):
            raise FramingError(f"{digits!r} is not a netstring's length")
        self._check(int(digits))
        return int(digits)

    def encode(self, message: bytes) -> bytes:
        self._check(len(message))
        return b"%d:%b," % (len(message), message)


class FixedSize(Framing[bytes]):
    """Messages of a fixed size.

    :param size: the size in bytes, 1 or more.
    :raises OptionError: ``size`` is invalid.
    """

    overhead = 0

    def __init__(self, stream: BaseIOStream, size: int) -> None:
        check_int("size", size, 1, what="a number of bytes")
        super().__init__(stream, size)
        self.size = size
        if self._decodes_as(FixedSize):
            self._frames = ReadBytes.of(size)

    def decode(self, buffer: bytearray) -> tuple[int, bytes] | None:
        return None if len(buffer) < self.size else (self.size, bytes(buffer[: self.size]))

    def encode(self, message: bytes) -> bytes:
        if len(message) != self.size:
            raise FramingError(f"a message has {self.size} bytes, not {len(message)}")
        return bytes(message)


class Structs(Framing[tuple[Any, ...]]):
    """Records of a fixed layout, read and written as tuples. ::

        async for device, value in Structs(stream, "!Hd"):
            ...

    :param format: the layout, as for `struct`.
    :raises OptionError: ``format`` is invalid.
    """

    overhead = 0

    def __init__(self, stream: BaseIOStream, format: str) -> None:
        self._layout = _layout(format)
        super().__init__(stream, self._layout.size)

    def decode(self, buffer: bytearray) -> tuple[int, tuple[Any, ...]] | None:
        size = self._layout.size
        return None if len(buffer) < size else (size, self._layout.unpack_from(buffer))

    def encode(self, message: tuple[Any, ...]) -> bytes:
        try:
            return self._layout.pack(*message)
        except (struct.error, TypeError, OverflowError) as error:
            raise FramingError(f"{message!r} does not fit {self._layout.format!r}: {error}") from None


def _layout(format: str) -> struct.Struct:
    try:
        layout = struct.Struct(format)
    except (struct.error, TypeError, ValueError) as error:
        raise OptionError("format", format, f"must be a struct format: {error}") from None
    if not layout.size:
        raise OptionError("format", format, "must describe at least one byte")
    return layout
