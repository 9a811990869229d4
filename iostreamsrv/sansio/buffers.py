"""The two buffers of a stream: received data that was not read, and written data that was not sent.

Both are optimised for the common case in which they are empty. A chunk that arrives at an empty :class:`ReadBuffer` is
stored without a copy, and returned without a copy if one read takes all of it. So a request that arrives in one packet
is never copied. Only if unread data is left when more arrives, both are joined into a ``bytearray``.
"""

from collections import deque
from re import Pattern

from .search import find

# Before a send, pieces are joined up to this size, so that many small writes become one send. Above it, a copy costs
# more than another system call.
SMALL_WRITE = 65536

BY_REFERENCE = 64
"""``bytes`` of this size or more are kept by reference, so that streams to which the same object is written share it.
Smaller ones are copied, because a reference costs more."""

PIECE_SIZE = 64
"""Bytes of memory that a piece takes in addition to its data: the header of a ``bytes``, the allocator's rounding, an
entry in the queue."""


class Region:
    """A part of a file that is to be sent.

    :ivar left: how many bytes are still to be sent.
    """

    __slots__ = ("left",)

    left: int

    def advance(self, count: int) -> None:
        """Record that the next ``count`` bytes were sent."""
        self.left -= count


class ReadBuffer:
    """Bytes that were received and not yet read.

    No byte is searched twice for the same delimiter: the next search starts where the last one ended. A delimiter is
    recognised by identity, which works because `ReadUntil.of` caches the reads.

    :ivar size: the number of bytes.
    """

    __slots__ = ("_data", "_needle", "_searched", "_start", "size")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._start = 0
        self.size = 0
        self._needle: bytes | None = None
        self._searched = 0

    def feed(self, chunk: bytes) -> None:
        """Append received data."""
        if not self.size:
            self._data = chunk
            self._start = 0
            self._needle = None
        else:
            data = self.contents()
            try:
                data += chunk
            except BufferError:  # a caller of contents() kept a memoryview: leave that object unchanged
                self._data = data = bytearray(data)
                data += chunk
        self.size += len(chunk)

    def take(self, count: int) -> bytes:
        """Remove and return the first ``count`` bytes, which must be there."""
        data = self._data
        start = self._start
        end = start + count
        if type(data) is bytes:
            if count == self.size and not start:
                taken = data
            else:
                whole = data
                raw = whole  # in the compiled core a pointer: a part of it is copied without an object for the slice
                taken = raw[start:end]
        else:
            with memoryview(data) as view:
                taken = bytes(view[start:end])
        self._start = end
        self.size -= count
        if not self.size:
            self._data = b""
        return taken

    def peek(self, count: int) -> bytes:
        """The first ``count`` bytes, which must be there."""
        return bytes(self._data[self._start : self._start + count])

    def take_into(self, space: memoryview) -> int:
        """Move as many bytes as there are, and as fit, into ``space``; return how many."""
        count = min(self.size, len(space))
        if count:
            space[:count] = self.take(count)
        return count

    def take_until(self, needle: bytes, limit: int | None) -> bytes | None:
        """Remove and return everything up to and including ``needle``; return None if it is not there yet.

        :raises OverflowError: ``needle`` does not end within the first ``limit`` bytes.
        """
        data = self._data
        start = self._start
        begin = start if self._needle is not needle or self._searched < start else self._searched
        found = find(data, needle, begin) if type(data) is bytes else data.find(needle, begin)
        count = found + len(needle) - start if found >= 0 else self.size
        if limit is not None and count > limit:
            raise OverflowError
        if found < 0:
            # The last bytes may be the beginning of the needle.
            self._needle = needle
            self._searched = start + max(0, self.size - len(needle) + 1)
            return None
        return self.take(count)

    def search(self, pattern: Pattern[bytes], limit: int) -> int:
        """Search the first ``limit`` bytes; return the end of the first match, or -1."""
        match = pattern.search(self.contents(), 0, limit)
        return match.end() if match else -1

    def contents(self) -> bytearray:
        """All bytes, as the buffer object itself. Must be neither kept nor changed."""
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
        """Put back at the front the bytes that a read took and did not deliver."""
        if taken:
            self._data = bytearray(taken) + self.contents()
            self.size += len(taken)
            self._needle = None

    def truncate(self, count: int) -> None:
        """Drop everything after the first ``count`` bytes."""
        if count < self.size:
            self._data = self.contents()[:count]
            self.size = count
            self._needle = None

    def clear(self) -> None:
        """Drop everything."""
        self._data = b""
        self._start = 0
        self.size = 0
        self._needle = None


class WriteBuffer:
    """Bytes that were written and not yet sent, in pieces.

    ``bytes`` are kept by reference, except very small ones, and so are large views; other objects that the caller could
    change are copied. Small pieces are joined only when they are sent, because streams share them. A part of a file is
    also a piece.

    :ivar size: the number of bytes.
    :ivar in_files: how many of them are in files, not in memory.
    :ivar files: the number of parts of files.
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
        """Bytes of memory that the pieces take in addition to their data."""
        return PIECE_SIZE * len(self._pieces)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data``. The caller may change it afterwards, except what a large view shows."""
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
            pieces[-1] = bytes(last)  # a bytearray that has grown may hold an eighth more memory than it needs
        if count < BY_REFERENCE:
            pieces.append(bytearray(data))
        elif type(data) is bytes:
            pieces.append(data)
        elif count >= SMALL_WRITE and type(data) is memoryview:
            pieces.append(memoryview(data))  # one that the caller does not release
        else:
            pieces.append(bytes(data))

    def append_file(self, region: Region) -> None:
        """Queue a part of a file."""
        self.size += region.left
        self.in_files += region.left
        self.files += 1
        self._pieces.append(region)

    def peek(self) -> memoryview | Region:
        """The next piece to send. Release a view before the next call of the buffer."""
        if not self._offset and len(self._pieces) > 1:
            self._join()
        first = self._pieces[0]
        return first if isinstance(first, Region) else memoryview(first)[self._offset :]

    def _join(self) -> None:
        """Join the first pieces, as far as they are small, into one. (Not one that was sent in part: so no byte is
        copied twice.)"""
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
        """Drop the first ``count`` bytes, which were sent. They must be part of what :meth:`peek` returned."""
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
        """Drop the first piece, a part of a file that has become shorter. Returns how many bytes were dropped."""
        region = self._pieces.popleft()
        assert isinstance(region, Region)
        self.size -= region.left
        self.in_files -= region.left
        self.files -= 1
        return region.left

    def truncate(self, count: int) -> None:
        """Drop everything after the first ``count`` bytes, and every part of a file that does not end before that."""
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
