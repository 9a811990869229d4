"""What a pending read waits for: one object each, which takes its result from a :class:`ReadBuffer` or wants more.

``take(buffer)`` returns the result, or :data:`MORE`; ``finish(buffer)`` is asked once no more bytes will come;
``abandon(buffer)`` gives back what a cancelled or timed-out read had already taken. A read that has no state of its
own is shared by every stream that waits for the same thing: get it from its ``of`` method, which checks the arguments
as well.

The shape is that of ``websockets.streams`` and h11's receive buffer.
"""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar, Final, Literal

from ..errors import OptionError, UnsatisfiableReadError
from .buffers import ReadBuffer

# As many different delimiters, patterns and sizes as are kept ready. A protocol has a handful; one whose sizes
# come from length prefixes makes a new read for each size the cache has not seen lately.
READS_KEPT = 256

MATCHES_IN_A_ROW = 16
"""Times that a match function which asks for MORE is called for bytes that are there already, before other streams have
their turn."""


class _More(Enum):
    MORE = "more"


MORE: Final = _More.MORE
"""A read's word for: what there is does not do, more bytes are wanted."""

More = Literal[_More.MORE]


class ReadFailed(Exception):
    """A read fails with ``error``, by a fault of the caller's. The stream goes on, and no byte of it is lost."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Read:
    """A pending read. Each subclass is one way to read.

    :ivar begun_anew: whether it has consumed something and goes on with what comes behind it; to be set back.
    :ivar unfinished: whether ``take`` has stopped, for others to have their turn, before it had offered all there is:
        it is to be called again for the same bytes.
    """

    __slots__ = ()

    begun_anew: bool = False
    unfinished: bool = False

    holds_bytes: ClassVar[bool] = False
    """Whether ``take`` may keep bytes although it returns :data:`MORE`, which ``abandon`` then gives back."""

    calls_back: ClassVar[bool] = False
    """Whether ``take`` calls a function of the caller's."""

    def take(self, buffer: ReadBuffer) -> Any | More:
        """The result, removed from ``buffer``, or :data:`MORE`.

        :raises UnsatisfiableReadError: more bytes would not help.
        """
        raise NotImplementedError

    def accept(self, chunk: bytes) -> Any | More:
        """``chunk`` itself, where it arrived at an empty buffer and is just what this read waits for; else
        :data:`MORE`.

        Most requests come in one packet, and this way they never see the buffer.
        """
        return MORE

    def finish(self, buffer: ReadBuffer) -> Any | More:
        """The result when the stream has ended and ``take`` gave none, or :data:`MORE` where that is a failure."""
        return MORE

    def abandon(self, buffer: ReadBuffer) -> None:
        """Give back to ``buffer`` what this read took and will not deliver."""


def _limit(max_bytes: int | None) -> int | None:
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
        raise OptionError("max_bytes", max_bytes, "must be a positive integer, or None for no limit of this read's own")
    return max_bytes


def _unsatisfied(what: object, limit: int | None) -> UnsatisfiableReadError:
    return UnsatisfiableReadError(f"{what!r} not found within {limit} bytes")


class ReadUntil(Read):
    """Up to and including a delimiter."""

    __slots__ = ("delimiter", "max_bytes")

    def __init__(self, delimiter: bytes, max_bytes: int | None) -> None:
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
        if chunk.find(delimiter) + len(delimiter) != len(chunk) or len(chunk) < len(delimiter):
            return MORE
        return chunk if self.max_bytes is None or len(chunk) <= self.max_bytes else MORE

    def take(self, buffer: ReadBuffer) -> bytes | More:
        try:
            line = buffer.take_until(self.delimiter, self.max_bytes)
        except OverflowError:
            raise _unsatisfied(self.delimiter, self.max_bytes) from None
        return MORE if line is None else line


class ReadUntilRegex(Read):
    """Up to and including the first match of a regular expression.

    Only the first ``max_bytes`` are ever searched, which bounds what a pattern that backtracks can cost.
    """

    __slots__ = ("max_bytes", "pattern")

    def __init__(self, pattern: re.Pattern[bytes], max_bytes: int | None) -> None:
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
    """Exactly ``count`` bytes."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
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
    """At least one byte, at most ``count``."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
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
    """Into a buffer of the caller's, which shows the bytes as they come. No view of it is kept in between."""

    __slots__ = ("filled", "partial", "target")

    holds_bytes: ClassVar[bool] = True

    def __init__(self, target: bytearray | memoryview, partial: bool) -> None:
        with memoryview(target) as view:
            if view.readonly or not view.c_contiguous:
                raise OptionError("buf", target, "must be a writable, contiguous buffer")
        self.target = target
        self.partial = partial
        self.filled = 0

    def take(self, buffer: ReadBuffer) -> int | More:
        with memoryview(self.target) as view, view.cast("B") as target:
            if len(target) < self.filled:
                raise ReadFailed(BufferError("the buffer of a pending read_into was cut"))
            count = min(buffer.size, len(target) - self.filled)
            if count:
                target[self.filled : self.filled + count] = buffer.take(count)
                self.filled += count
            complete = self.filled == len(target) or (self.partial and self.filled)
        return self.filled if complete else MORE

    def abandon(self, buffer: ReadBuffer) -> None:
        try:
            with memoryview(self.target) as view, view.cast("B") as target:
                buffer.unread(bytes(target[: self.filled]))
        except ValueError:
            pass  # the caller has released the view it gave us, and its bytes with it


class ReadUntilClose(Read):
    """All there is until the end of the stream."""

    __slots__ = ()

    def take(self, buffer: ReadBuffer) -> More:
        return MORE

    def finish(self, buffer: ReadBuffer) -> bytes:
        return buffer.take(buffer.size) if buffer.size else b""


Matcher = Callable[[bytearray], tuple[int, Any] | None]
"""What :class:`ReadMatch` asks: given all that is buffered, None for "more", or (bytes consumed, result).

With :data:`MORE` for a result the bytes are consumed, and it is asked again for what is left.
"""


class ReadMatch(Read):
    """Whatever a function of the caller's makes of the buffered bytes."""

    __slots__ = ("begun_anew", "match", "unfinished")

    calls_back: ClassVar[bool] = True

    def __init__(self, match: Matcher) -> None:
        if not callable(match):
            raise OptionError("match", match, "must be a function of the buffered bytes")
        self.match = match
        self.begun_anew = False
        self.unfinished = False

    def take(self, buffer: ReadBuffer) -> Any | More:
        self.unfinished = False
        turns = MATCHES_IN_A_ROW
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
                    raise OptionError("consumed", consumed, f"must be 0 to {buffer.size}, as many bytes as there were")
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a CancelledError is none of Exception's
                raise ReadFailed(error) from error
            if consumed == buffer.size:
                buffer.clear()
            elif consumed:
                buffer.take(consumed)
            if result is not MORE or not consumed:
                return result
            self.begun_anew = True
        return MORE


class Discard(Read):
    """Nothing: drops what comes beyond the bytes that were there, until ``limit`` of them came or the stream ends."""

    __slots__ = ("keep", "limit")

    def __init__(self, buffer: ReadBuffer, limit: int) -> None:
        self.keep = buffer.size
        self.limit = limit

    def take(self, buffer: ReadBuffer) -> None | More:
        self.limit -= buffer.size - self.keep
        buffer.truncate(self.keep)
        return MORE if self.limit > 0 else None

    def finish(self, buffer: ReadBuffer) -> None:
        return None
