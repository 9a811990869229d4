"""The reads that users call."""

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
    Read,
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

_last_until = ReadUntil.of(b"\n", None)
"""The last read of its kind. Most servers read the same one for each message, and even the cache of ``ReadUntil.of``
costs as much as all that is done to find a short line in the buffer."""


class ReadSide(CompletionSide):
    """Has every kind of read. Each makes an object of `iostreamsrv.sansio.reads`, which decides when it is done."""

    __slots__ = ()

    def read_until(
        self, delimiter: bytes, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> "Future[bytes]":
        """Read up to and including ``delimiter``. ::

            line = await stream.read_until(b"\\n", max_bytes=1000, timeout=60)

        :param delimiter: one byte or more.
        :param max_bytes: close the stream (reason ``buffer_full``) if the first ``max_bytes`` have no delimiter.
            None: ``max_buffer_size`` is the limit.
        :param timeout: seconds; None for no limit. After a timeout the stream stays open and no byte is lost.
        :returns: a future of the bytes, including the delimiter.
        :raises OptionError: an argument is invalid.
        :raises ConcurrentReadError: another read is pending.
        :raises StreamClosedError: from the call, if the stream is closed and has no such bytes in its buffer; from the
            future, if it is closed before they arrive, also because a limit was reached.
        :raises StreamTimeoutError: from the future.
        """
        global _last_until
        read = _last_until
        same = read.delimiter is delimiter or (type(delimiter) is bytes and read.delimiter == delimiter)
        if not same or read.max_bytes is not max_bytes:
            try:
                _last_until = ReadUntil.of(delimiter, max_bytes)
            except TypeError:
                raise OptionError("delimiter", delimiter, "must be bytes, at least one") from None
            read = _last_until
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
        :raises re.error: ``regex`` is not a regular expression.
        """
        return self._begin_read(ReadUntilRegex.of(regex, max_bytes), timeout)

    def read_bytes(self, num_bytes: int, partial: bool = False, *, timeout: float | None = None) -> "Future[bytes]":
        """Read ``num_bytes`` bytes; with ``partial`` as many as there are, at least one and at most ``num_bytes``. ::

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
            self._receive_ahead()  # EOF behind these bytes is left to a later read
        return self._begin_read(read, timeout)

    def read_into(
        self, buf: bytearray | memoryview, partial: bool = False, *, timeout: float | None = None
    ) -> "Future[int]":
        """Read into ``buf`` until it is full, or with ``partial`` until it has at least one byte; the future gives the
        number of bytes. ::

            frame = bytearray(1500)
            size = await stream.read_into(frame, partial=True)

        Bytes are put into ``buf`` as they arrive. It cannot be resized until the future is done. If the read times out
        or is cancelled, the bytes it has put there stay available to the next read.
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
        return self._begin_read(read, timeout, read)

    def read_until_close(self, *, timeout: float | None = None) -> "Future[bytes]":
        """Read everything up to EOF: at most ``max_buffer_size`` bytes. ::

            upload = await stream.read_until_close(timeout=30)

        A reset counts as EOF; any other error fails the read. Raises and ``timeout`` as :meth:`read_until`.
        """
        return self._begin_read(_UNTIL_CLOSE, timeout)

    def read_until_match(self, match: Matcher | Read, *, timeout: float | None = None) -> "Future[Any]":
        """Read a message that a function recognises.

        :param match: called with a ``bytearray`` of everything buffered, each time more has arrived. It returns
            None to wait for more bytes, or ``(consumed, result)``: ``consumed`` bytes are removed and the read gives
            ``result``. It must neither change the ``bytearray`` nor keep it. If it raises, the read raises the same
            error and the bytes stay. (A `StopIteration` becomes a `RuntimeError`, as in a generator.)

        Raises and ``timeout`` as :meth:`read_until`. ::

            def frame(buffer):  # one byte with the length, then the payload
                if buffer and len(buffer) > buffer[0]:
                    return 1 + buffer[0], bytes(buffer[1 : 1 + buffer[0]])

            payload = await stream.read_until_match(frame)

        While the read waits, ``match`` is called with the context variables of the task that awaits it.

        A function that processes the messages itself returns ``(consumed, MORE)``, with `iostreamsrv.iostream.MORE`:
        those bytes are removed, and it is called again for the rest, at once or when more has arrived.
        """
        # The framings of this package have reads of their own, which the compiled core knows.
        return self._begin_read(match if isinstance(match, Read) else ReadMatch(match), timeout)
