"""The side of a stream that receives: the reads that users call."""

from asyncio import Future
from re import Pattern
from typing import Any

from ..errors import (
    OptionError,
)
from ..options import check_timeout
from ..sansio.reads import (
    MORE,
    Matcher,
    ReadBytes,
    ReadInto,
    ReadMatch,
    ReadPartial,
    ReadUntil,
    ReadUntilClose,
    ReadUntilRegex,
)
from .completion import CompletionSide

_UNTIL_CLOSE = ReadUntilClose()


class ReadSide(CompletionSide):
    """Has every kind of read. Each makes an object of `iostreamsrv.sansio.reads`, which says when it has enough."""

    __slots__ = ()

    def read_until(
        self, delimiter: bytes, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including ``delimiter``. ::

            line = await stream.read_until(b"\\n", max_bytes=1000, timeout=60)

        :param delimiter: one byte or more.
        :param max_bytes: close the stream (reason ``buffer_full``) when the first ``max_bytes`` have no delimiter.
            None: ``max_buffer_size`` is the limit.
        :param timeout: seconds; None for no limit. Afterwards the stream goes on and no byte is lost.
        :returns: a future of the bytes, with the delimiter.
        :raises OptionError: an argument that cannot be.
        :raises ConcurrentReadError: another read is pending.
        :raises StreamClosedError: at the call, when the stream is closed and holds no such bytes; from the future, when
            it is closed before they have come, also for a limit that was reached.
        :raises StreamTimeoutError: from the future.
        """
        try:
            read = ReadUntil.of(delimiter, max_bytes)
        except TypeError:
            raise OptionError("delimiter", delimiter, "must be bytes, at least one") from None
        return self._begin_read(read, timeout)

    def read_until_regex(
        self, regex: bytes | Pattern[bytes], max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including the first match of ``regex``. ::

            head = await stream.read_until_regex(rb"\\r?\\n\\r?\\n", max_bytes=8192)

        The pattern is searched for in the first ``max_bytes`` only (None: ``max_buffer_size``). Each time bytes
        arrive it is searched from the beginning, so give ``max_bytes`` for a pattern that backtracks. Otherwise as
        :meth:`read_until`.

        :param regex: of bytes, compiled or not.
        :raises re.error: it is not a regular expression.
        """
        return self._begin_read(ReadUntilRegex.of(regex, max_bytes), timeout)

    def read_bytes(self, num_bytes: int, partial: bool = False, *, timeout: float | None = None) -> "Future[bytes]":
        """Read ``num_bytes`` bytes, or with ``partial`` as many as there are, from one to ``num_bytes``. ::

            (length,) = struct.unpack(">I", await stream.read_bytes(4))
            some = await stream.read_bytes(65536, partial=True)

        :param num_bytes: 0 or more. More than ``max_buffer_size`` without ``partial`` closes the stream.

        Raises and ``timeout`` as :meth:`read_until`.
        """
        read = ReadPartial.of(num_bytes) if partial else ReadBytes.of(num_bytes)
        if not num_bytes:
            return self._empty_read(b"")
        if (
            partial
            and self._readable
            and not self._recv_until_eagain
            and 0 < self._buffer.size < num_bytes
            and self._read is None
        ):
            self._receive_ahead()  # the end behind it is for a later read to meet
        return self._begin_read(read, timeout)

    def read_into(
        self, buf: bytearray | memoryview, partial: bool = False, *, timeout: float | None = None
    ) -> "Future[int]":
        """Read into ``buf`` until it is full, or with ``partial`` until it has at least one byte; gives the number of
        bytes. ::

            frame = bytearray(1500)
            size = await stream.read_into(frame, partial=True)

        ``buf`` shows the bytes as they come, and can be resized again as soon as the future is done. What a read
        that times out or is cancelled had put there is put back for the next read.
        Raises and ``timeout`` as :meth:`read_until`.
        """
        if not len(buf):
            return self._empty_read(0)
        if timeout is not None:
            check_timeout("timeout", timeout)  # before any byte moves
        read = ReadInto(buf, partial)
        at_once = self._buffer.size and self._read is None and self._written_before is None
        if at_once and read.take(self._buffer) is not MORE:
            return self._done_future(read.filled)
        return self._begin_read(read, timeout)

    def read_until_close(self, *, timeout: float | None = None) -> "Future[bytes]":
        """Read all until the end of the stream: at most ``max_buffer_size`` bytes. ::

            upload = await stream.read_until_close(timeout=30)

        A reset counts as an end; another error fails the read. Raises and ``timeout`` as :meth:`read_until`.
        """
        return self._begin_read(_UNTIL_CLOSE, timeout)

    def read_until_match(self, match: Matcher, *, timeout: float | None = None) -> "Future[Any]":
        """Read whatever ``match`` makes of the bytes.

        :param match: called with a ``bytearray`` of all that is buffered, whenever there is more of it. It returns
            None to wait for more bytes, or ``(consumed, result)``: ``consumed`` bytes are removed and the read gives
            ``result``. It must neither change the ``bytearray`` nor keep it. What it raises, the read raises; the
            bytes stay. (A `RuntimeError` in place of a `StopIteration` and its like, as in a generator.)

        Raises and ``timeout`` as :meth:`read_until`. ::

            def frame(buffer):  # a length byte, then so many bytes
                if buffer and len(buffer) > buffer[0]:
                    return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

            payload = await stream.read_until_match(frame)

        While the read waits, ``match`` is called with the context variables of the task that awaits it.

        A function that does all the work itself returns ``(consumed, MORE)``, with `iostreamsrv.iostream.MORE`: those
        bytes are removed, and it is called again for what is left, at once or when there is more.
        """
        return self._begin_read(ReadMatch(match), timeout)
