"""Pending reads: each is one object that takes its result from a :class:`ReadBuffer`, or needs more bytes.

``take(buffer)`` returns the result, or :data:`MORE`; ``finish(buffer)`` is called when no more bytes will arrive;
``abandon(buffer)`` puts back what a cancelled or timed-out read had already taken. A read without state is shared by
all streams that wait for the same thing: its class has a method ``of``, which also checks the arguments.

The design follows ``websockets.streams`` and h11's receive buffer.
"""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from numbers import Integral
from typing import Any, Final, Literal

from ..errors import OptionError, UnsatisfiableReadError
from .buffers import ReadBuffer
from .search import find

# Number of cached reads for each of delimiters, patterns and sizes. A protocol has a handful; one with length prefixes
# makes a new read for each size that was not used recently.
READS_KEPT = 256

MAX_CONSECUTIVE_MATCHES = 16
"""Calls of a match function that returns MORE for bytes that are buffered already, after which other streams have their
turn."""


class _More(Enum):
    MORE = "more"


MORE: Final = _More.MORE
"""The return value of a read that needs more bytes."""

More = Literal[_More.MORE]


class ReadFailed(Exception):
    """A read fails with ``error``, which the caller has caused. The stream stays open, and no byte is lost."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Read:
    """A pending read. Each subclass is one way to read.

    :ivar plain: whether ``take`` neither calls a function of the user nor has a place for bytes that are still to
        arrive.
    :ivar restarted: whether the read has consumed bytes and continues with the next ones. The stream resets it.
    :ivar unfinished: whether ``take`` has returned before it had tried all bytes, so that other streams have their
        turn. Then it must be called again for the same bytes.
    """

    __slots__ = ("plain", "restarted", "unfinished")

    def __init__(self, plain: bool = True) -> None:
        self.plain = plain
        self.restarted = False
        self.unfinished = False

    def take(self, buffer: ReadBuffer) -> Any | More:
        """Remove the result from ``buffer`` and return it, or return :data:`MORE`.

        :raises UnsatisfiableReadError: no further bytes can satisfy the read.
        """
        raise NotImplementedError

    def accept(self, chunk: bytes) -> Any | More:
        """Called when ``chunk`` arrives and the buffer is empty: return ``chunk`` if it is exactly the result, else
        :data:`MORE`.

        Most requests arrive in one packet, and bypass the buffer in this way.
        """
        return MORE

    def finish(self, buffer: ReadBuffer) -> Any | More:
        """Called at EOF, after ``take`` returned :data:`MORE`: return the result, or :data:`MORE` if the read fails."""
        return MORE

    def abandon(self, buffer: ReadBuffer) -> None:
        """Put back into ``buffer`` what this read took and will not deliver."""


def _limit(max_bytes: int | None) -> int | None:
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
        raise OptionError("max_bytes", max_bytes, "must be a positive integer, or None for no limit")
    return max_bytes


def _unsatisfied(what: object, limit: int | None) -> UnsatisfiableReadError:
    return UnsatisfiableReadError(f"{what!r} not found within {limit} bytes")


class ReadUntil(Read):
    """Reads up to and including a delimiter."""

    __slots__ = ("delimiter", "max_bytes")

    def __init__(self, delimiter: bytes, max_bytes: int | None) -> None:
        Read.__init__(self)
        self.delimiter = delimiter
        self.max_bytes = max_bytes

    @staticmethod
    @lru_cache(READS_KEPT, typed=True)
    def of(delimiter: bytes, max_bytes: int | None) -> "ReadUntil":
        if type(delimiter) is not bytes or not delimiter:
            raise OptionError("delimiter", delimiter, "must be bytes, at least one")
        return ReadUntil(delimiter, _limit(max_bytes))

    def accept(self, chunk: bytes) -> bytes | More:
        delimiter = self.delimiter
        if find(chunk, delimiter) + len(delimiter) != len(chunk) or len(chunk) < len(delimiter):
            return MORE
        return chunk if self.max_bytes is None or len(chunk) <= self.max_bytes else MORE

    def take(self, buffer: ReadBuffer) -> bytes | More:
        try:
            line = buffer.take_until(self.delimiter, self.max_bytes)
        except OverflowError:
            raise _unsatisfied(self.delimiter, self.max_bytes) from None
        return MORE if line is None else line


class ReadUntilRegex(Read):
    """Reads up to and including the first match of a regular expression.

    Only the first ``max_bytes`` are searched, which bounds the cost of a pattern that backtracks.
    """

    __slots__ = ("max_bytes", "pattern")

    def __init__(self, pattern: re.Pattern[bytes], max_bytes: int | None) -> None:
        Read.__init__(self)
        self.pattern = pattern
        self.max_bytes = max_bytes

    @staticmethod
    @lru_cache(READS_KEPT, typed=True)
    def of(regex: bytes | re.Pattern[bytes], max_bytes: int | None) -> "ReadUntilRegex":
        pattern = re.compile(regex)
        if not isinstance(pattern.pattern, bytes):
            raise OptionError("regex", regex, "must be a pattern of bytes")
        return ReadUntilRegex(pattern, _limit(max_bytes))

    def take(self, buffer: ReadBuffer) -> bytes | More:
        limit = buffer.size if self.max_bytes is None else self.max_bytes
        if not buffer.size:
            return MORE
        end = buffer.search(self.pattern, limit)
        if end >= 0:
            return buffer.take(end)
        if buffer.size > limit:
            raise _unsatisfied(self.pattern.pattern, limit)
        return MORE


class ReadBytes(Read):
    """Reads exactly ``count`` bytes."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        Read.__init__(self)
        self.count = count

    @staticmethod
    @lru_cache(READS_KEPT, typed=True)
    def of(count: int) -> "ReadBytes":
        return ReadBytes(_count(count))

    def take(self, buffer: ReadBuffer) -> bytes | More:
        if buffer.size < self.count:
            return MORE
        return buffer.take(self.count) if self.count else b""


class ReadPartial(Read):
    """Reads at least one byte and at most ``count``."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        Read.__init__(self)
        self.count = count

    @staticmethod
    @lru_cache(READS_KEPT, typed=True)
    def of(count: int) -> "ReadPartial":
        return ReadPartial(_count(count))

    def accept(self, chunk: bytes) -> bytes | More:
        return chunk if len(chunk) <= self.count else MORE

    def take(self, buffer: ReadBuffer) -> bytes | More:
        if not self.count:
            return b""
        size = buffer.size
        if not size:
            return MORE
        return buffer.take(size if size < self.count else self.count)


def _count(count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise OptionError("num_bytes", count, "must be an integer, 0 or more")
    return int(count)


class ReadInto(Read):
    """Reads into the caller's buffer, where the bytes appear as they arrive. No view of the buffer is kept between two
    calls."""

    __slots__ = ("filled", "partial", "target")

    def __init__(self, target: bytearray | memoryview, partial: bool) -> None:
        Read.__init__(self, plain=False)
        with memoryview(target) as view:
            if view.readonly or not view.c_contiguous:
                raise OptionError("buf", target, "must be a writable, contiguous buffer")
        self.target = target
        self.partial = partial
        self.filled = 0

    def take(self, buffer: ReadBuffer) -> int | More:
        return self.fill(buffer.take_into)

    def fill(self, receive: Callable[[memoryview], int]) -> int | More:
        """Let ``receive`` put bytes where they belong: it returns how many. Return as :meth:`take` does."""
        with memoryview(self.target) as view, view.cast("B") as target:
            if len(target) < self.filled:
                raise ReadFailed(BufferError("the buffer of a pending read_into was shortened"))
            with target[self.filled :] as space:
                self.filled += receive(space)
            complete = self.filled == len(target) or (self.partial and self.filled)
        return self.filled if complete else MORE

    def abandon(self, buffer: ReadBuffer) -> None:
        try:
            with memoryview(self.target) as view, view.cast("B") as target:
                buffer.unread(bytes(target[: self.filled]))
        except ValueError:
            pass  # the caller has released the memoryview, and gives up the bytes in it


class ReadUntilClose(Read):
    """Reads everything until EOF."""

    __slots__ = ()

    def take(self, buffer: ReadBuffer) -> More:
        return MORE

    def finish(self, buffer: ReadBuffer) -> bytes:
        return buffer.take(buffer.size) if buffer.size else b""


Matcher = Callable[[bytearray], tuple[int, Any] | None]
"""The function of a :class:`ReadMatch`. It gets all buffered bytes, and returns None if it needs more, or (bytes
consumed, result).

With :data:`MORE` as the result, the bytes are consumed, and the function is called again for what is left.
"""


class ReadMatch(Read):
    """Reads what the user's function makes of the buffered bytes."""

    __slots__ = ("match",)

    def __init__(self, match: Matcher) -> None:
        if not callable(match):
            raise OptionError("match", match, "must be a function of the buffered bytes")
        self.plain = self.restarted = self.unfinished = False  # as Read.__init__, without a call for each message
        self.match = match

    def take(self, buffer: ReadBuffer) -> Any | More:
        self.unfinished = False
        turns = MAX_CONSECUTIVE_MATCHES
        while buffer.size:
            if not turns:
                self.unfinished = True
                break
            turns -= 1
            try:
                found = self.match(buffer.contents())
                if found is None:
                    break
                if not isinstance(found, tuple) or len(found) != 2:
                    raise OptionError("match", self.match, f"must return None or (consumed, result), not {found!r}")
                consumed, result = found
                if type(consumed) is not int or not 0 <= consumed <= buffer.size:
                    raise OptionError("consumed", consumed, f"must be 0 to {buffer.size}, the number of buffered bytes")
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # CancelledError is not a subclass of Exception
                raise ReadFailed(error) from error
            if consumed == buffer.size:
                buffer.clear()
            elif consumed:
                buffer.take(consumed)
            if result is not MORE or not consumed:
                return result
            self.restarted = True
        return MORE


class Discard(Read):
    """Reads nothing: keeps the buffered bytes and drops what arrives, until ``limit`` bytes were dropped or EOF."""

    __slots__ = ("keep", "limit")

    def __init__(self, buffer: ReadBuffer, limit: int) -> None:
        Read.__init__(self)
        self.keep = buffer.size
        self.limit = limit

    def take(self, buffer: ReadBuffer) -> None | More:
        self.limit -= buffer.size - self.keep
        buffer.truncate(self.keep)
        return MORE if self.limit > 0 else None

    def finish(self, buffer: ReadBuffer) -> None:
        return None
