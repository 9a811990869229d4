"""The two buffers of a stream: what came in and was not read, what was written and has not left.

Both are written for the common case in which they are empty: a chunk that arrives at an empty :class:`ReadBuffer`
is kept as it is, and leaves as it is when one read takes all of it, so a request that comes in one packet is never
copied. Only what is left over when more arrives is joined into a ``bytearray``.
"""

from collections import deque
from re import Pattern

# Pieces are joined up to this size when they leave, so that many small writes are one send; above it a copy costs more
# than the extra system call.
SMALL_WRITE = 65536

BY_REFERENCE = 64
"""``bytes`` of this size or more are kept by reference, so that all streams to which the same bytes are written share
them. Smaller ones are copied: a reference costs more."""

PIECE_SIZE = 64
"""Bytes that a piece takes beside its own: the header of a ``bytes``, what the allocator rounds up, a place in the
queue."""


class Region:
    """Bytes that are elsewhere and wait to be sent: a part of a file.

    :ivar left: how many bytes are still to be sent.
    """

    __slots__ = ("left",)

    left: int

    def advance(self, count: int) -> None:
        """The next ``count`` bytes have left."""
        raise NotImplementedError


class ReadBuffer:
    """Bytes that were received and not yet read.

    It never searches a byte twice for the same delimiter: how far a fruitless search came is kept until the next.

    :ivar size: how many bytes there are.
    """

    __slots__ = ("_data", "_needle", "_searched", "_start", "size")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._start = 0
        self.size = 0
        self._needle: bytes | None = None
        self._searched = 0

    def feed(self, chunk: bytes) -> None:
        """Append what arrived."""
        if not self.size:
            self._data = chunk
            self._start = 0
            self._needle = None
        else:
            data = self.contents()
            try:
                data += chunk
            except BufferError:  # somebody kept a memoryview of what contents() gave them: leave that one to them
                self._data = data = bytearray(data)
                data += chunk
        self.size += len(chunk)

    def take(self, count: int) -> bytes:
        """Remove and return the first ``count`` bytes; there must be so many."""
        data = self._data
        start = self._start
        end = start + count
        if type(data) is bytes:
            taken = data[start:end]
        else:
            with memoryview(data) as view:
                taken = bytes(view[start:end])
        self._start = end
        self.size -= count
        if not self.size:
            self._data = b""
        return taken

    def take_until(self, needle: bytes, limit: int | None) -> bytes | None:
        """Remove and return all up to and including ``needle``, or return None where there is none yet.

        :raises OverflowError: the first ``limit`` bytes don't have it.
        """
        data = self._data
        start = self._start
        begin = start if self._needle is not needle or self._searched < start else self._searched
        found = data.find(needle, begin)
        count = found + len(needle) - start if found >= 0 else self.size
        if limit is not None and count > limit:
            raise OverflowError
        if found < 0:
            # The needle may have begun in the last bytes.
            self._needle = needle
            self._searched = start + max(0, self.size - len(needle) + 1)
            return None
        return self.take(count)

    def search(self, pattern: Pattern[bytes], limit: int) -> int:
        """How many bytes there are up to the end of the first match within ``limit`` bytes, or -1."""
        match = pattern.search(self.contents(), 0, limit)
        return match.end() if match else -1

    def contents(self) -> bytearray:
        """All there is, as the buffer itself: to look at, not to keep or change."""
        data = self._data
        start = self._start
        if type(data) is not bytearray:
            self._data = data = bytearray(data[start:] if start else data)
        elif start:
            try:
                del data[:start]
            except BufferError:  # as in feed()
                self._data = data = bytearray(data[start:])
        if start:
            self._start = 0
            self._searched = max(0, self._searched - start)
        return data

    def unread(self, taken: bytes) -> None:
        """Put back in front what a read took and could not deliver."""
        if taken:
            self._data = bytearray(taken) + self.contents()
            self.size += len(taken)
            self._needle = None

    def truncate(self, count: int) -> None:
        """Forget everything after the first ``count`` bytes."""
        if count < self.size:
            self._data = self.contents()[:count]
            self.size = count
            self._needle = None

    def clear(self) -> None:
        """Forget everything."""
        self._data = b""
        self._start = 0
        self.size = 0
        self._needle = None


class WriteBuffer:
    """Bytes that were written and have not left, in pieces.

    ``bytes`` are kept by reference, but for the smallest; what the caller could change afterwards is copied. Small
    pieces are joined when they leave, and not before, as streams share them. A part of a file is a piece, too.

    :ivar size: how many bytes there are.
    :ivar in_files: how many of them are in files, and not in memory.
    :ivar files: how many parts of files there are.
    """

    __slots__ = ("_offset", "_pieces", "files", "in_files", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray | memoryview | Region] = deque()
        self._offset = 0  # into the first piece
        self.size = 0
        self.in_files = 0
        self.files = 0

    @property
    def overhead(self) -> int:
        """Bytes of memory that the pieces take beside their own."""
        return PIECE_SIZE * len(self._pieces)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data``; it is the caller's again as soon as this returns."""
        count = len(data)
        if not count:
            return
        self.size += count
        pieces = self._pieces
        last = pieces[-1] if pieces else None
        if type(last) is bytearray:
            if count < BY_REFERENCE and len(last) < SMALL_WRITE:
                last += data
                return
            pieces[-1] = bytes(last)  # a bytearray that grew has up to an eighth in reserve
        if count < BY_REFERENCE:
            pieces.append(bytearray(data))
        elif type(data) is bytes or (count >= SMALL_WRITE and type(data) is memoryview and type(data.obj) is bytes):
            pieces.append(data)
        else:
            pieces.append(bytes(data))

    def append_file(self, region: Region) -> None:
        """Queue a part of a file."""
        self.size += region.left
        self.in_files += region.left
        self.files += 1
        self._pieces.append(region)

    def peek(self) -> memoryview | Region:
        """What is to leave next. A view must be released before the buffer is touched again."""
        if not self._offset and len(self._pieces) > 1:
            self._join()
        first = self._pieces[0]
        return first if isinstance(first, Region) else memoryview(first)[self._offset :]

    def _join(self) -> None:
        """Make one piece of the first ones, as far as they are small. (Not of one that has begun to leave: so no byte
        is copied twice.)"""
        pieces = self._pieces
        size = 0
        joined: list[bytes | bytearray | memoryview] = []
        while pieces:
            first = pieces[0]
            if isinstance(first, Region) or size + len(first) > SMALL_WRITE:
                break
            size += len(first)
            joined.append(first)
            pieces.popleft()
        if joined:
            pieces.appendleft(joined[0] if len(joined) == 1 else b"".join(joined))

    def advance(self, count: int) -> None:
        """Forget the first ``count`` bytes, which must be within what :meth:`peek` gave: they have left."""
        first = self._pieces[0]
        self.size -= count
        if isinstance(first, Region):
            self.in_files -= count
            first.advance(count)
            if not first.left:
                self.files -= 1
                self._pieces.popleft()
            return
        self._offset += count
        if self._offset == len(first):
            self._pieces.popleft()
            self._offset = 0

    def skip_file(self) -> int:
        """Forget the part of a file that is first: the file has become shorter. How many bytes that makes less."""
        region = self._pieces.popleft()
        assert isinstance(region, Region)
        self.size -= region.left
        self.in_files -= region.left
        self.files -= 1
        return region.left

    def truncate(self, count: int) -> None:
        """Forget everything after the first ``count`` bytes, and each file that does not end before."""
        while self.size > count:
            last = self._pieces.pop()
            if isinstance(last, Region):
                self.size -= last.left
                self.in_files -= last.left
                self.files -= 1
                continue
            begin = self._offset if not self._pieces else 0
            self.size -= len(last) - begin
            if self.size < count:
                kept = memoryview(last)[: begin + count - self.size]
                self._pieces.append(kept.tobytes())
                self.size = count
        if not self.size:
            self._offset = 0
