"""The beginning and the ends of a stream, whatever its descriptor.

``close()`` ends a stream now, ``aclose()`` after what is queued has left and the peer had time to read it,
``abort()`` with a reset. All meet in ``_close``, which keeps the first reason.
"""

import asyncio
import errno
import logging
import sys
from collections.abc import Callable
from types import EllipsisType, TracebackType

from tornado.ioloop import IOLoop

from ..errors import CloseReason, KickedError, without_frames
from ..hub import BROKEN, READABLE, WRITABLE
from ..options import LINGER, READ_CHUNK_SIZE, check_flag, check_optional_timeout, check_size, check_timeout
from ..sansio.reads import Discard
from .reading import ReadSide

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""

LINGER_BYTES = 1 << 20
"""For how many bytes ``aclose()`` goes on receiving after its half-close. Closing a socket with unread input makes the
kernel send a reset, which can destroy the last reply on its way (nginx: lingering_close)."""

CLOSE_TIMEOUT = 30.0
"""Default bound of ``aclose()``, in seconds."""


class BaseIOStream(ReadSide):
    """Reads and writes a non-blocking descriptor; subclasses say which.

    A subclass overrides :meth:`fileno`, :meth:`close_fd`, :meth:`read_from_fd`, :meth:`write_to_fd` and perhaps
    :meth:`get_fd_error`. Must be made where a loop is current, and used in that loop's thread.

    :param max_buffer_size: most bytes to hold unread; default (None) 100 MiB, ``math.inf`` for no limit. A read that
        needs more closes the stream, reason ``buffer_full``.
    :param read_chunk_size: most bytes to receive at once; default 64 KiB, never over half of ``max_buffer_size``.
    :param max_write_buffer_size: most bytes to queue; default (None) no limit. A write beyond it raises
        `StreamBufferFullError`; a single larger write into an empty queue is taken.
    :param cork: whether writes made while more requests wait are sent together (see :meth:`write`).
    :param allow_half_open: whether the stream stays open when the peer has ended its side. Reads then raise
        `StreamClosedError`, reason ``eof``, and writes go on, until :meth:`send_eof` has ended this side as well;
        that closes the stream. Otherwise, as with Tornado, the peer's end closes it, once what is queued has left.
    :raises OptionError: a size is not a positive number.

    :ivar io_loop: the `IOLoop` of the stream.
    :ivar error: what closed the stream, or None after an orderly close.
    :ivar close_reason: a `CloseReason` once the stream is closed, None before.
    :ivar allow_half_open: as the parameter; may be set.
    :ivar linger: seconds that :meth:`aclose` waits for the peer's end after its half-close, and that a close callback
        waits for who may still read what came before the peer's end; 2.0. May be set.
    :ivar id: a number no other stream of this process has.
    :ivar opened_at: when the stream was made, `time.time`.
    :ivar bytes_read: received so far, the unread ones included.
    :ivar bytes_written: taken by the kernel so far.
    """

    __slots__ = ()

    def __init__(
        self,
        max_buffer_size: float | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: float | None = None,
        *,
        cork: bool = True,
        allow_half_open: bool = False,
    ) -> None:
        self._start(
            IOLoop.current(),
            check_size("max_buffer_size", max_buffer_size) or MAX_BUFFER_SIZE,
            check_size("read_chunk_size", read_chunk_size) or READ_CHUNK_SIZE,
            check_size("max_write_buffer_size", max_write_buffer_size),
            check_flag("cork", cork),
            check_flag("allow_half_open", allow_half_open),
            LINGER,
        )

    def _dispatch_at_the_ends(self, events: int) -> None:
        if self._closed:
            if events & (WRITABLE | BROKEN):
                self._deliver_owed()
        elif events != READABLE:  # that alone is somebody who asked for another dispatch
            self._connected(events)

    def _connected(self, events: int) -> None:
        raise NotImplementedError

    # ---- ending

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the stream is closed, for whatever reason; None takes it back. ::

            stream.set_close_callback(lambda: users.discard(stream.id))

        A stream with a close callback notices the peer's end also while nobody reads: it then receives one chunk ahead.
        So a peer that half-closes after its request is taken as gone, as with Tornado. With unread bytes before the end
        the stream is closed when nothing was read or written for ``linger`` seconds.
        """
        self._close_callback = callback
        if self._closed:
            self._run_close_callback()
        elif callback is not None and self._connect_future is None:
            self._look_for_end_later()

    def _run_close_callback(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self.io_loop.add_callback(callback)

    def close(
        self,
        exc_info: None
        | bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] = False,
    ) -> None:
        """Close the stream now.

        A pending read and the writes whose futures are not done fail with `StreamClosedError`; what was reported done
        is delivered. Closing a closed stream does nothing. To have everything delivered: :meth:`aclose`.

        :param exc_info: what to set ``error`` to: an exception, a ``sys.exc_info()`` tuple, or True for the current
            one.
        """
        if isinstance(exc_info, tuple):
            error = exc_info[1]
        elif isinstance(exc_info, BaseException):
            error = exc_info
        else:
            error = sys.exception() if exc_info else None
        self._close(CloseReason.LOCAL, error)

    async def aclose(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Close the stream in order: send what is queued, half-close, let the peer read it, close. ::

            await stream.write(b"good bye\\n")
            await stream.aclose(timeout=5)

        After the half-close the peer has ``linger`` seconds (2) to end its side; up to 1 MiB that it still sends is
        thrown away. A pending read fails at once. Bytes that are buffered stay readable.

        :param timeout: seconds for all of it, then the stream is closed as by :meth:`close`; None for no limit but
            ``linger``.
        """
        await self._aclose(CloseReason.LOCAL, timeout)

    async def _aclose(self, reason: CloseReason, timeout: float | None) -> None:
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._closed:
            return
        if self._closing is not None:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.shield(self._closing)
            except TimeoutError:
                self._close(reason)
            return None
        self._closing = closing = self._hub.loop.create_future()
        self.close_reason = reason
        self._fail_read(self._closed_error("read"))
        try:
            async with asyncio.timeout(timeout):
                await self.drain()
                if self._has_half_close and self.linger and not self._eof and not self._closed:
                    await self._linger()
        except (TimeoutError, OSError):
            pass
        finally:
            self._close(reason)
            closing.set_result(None)

    async def _linger(self) -> None:
        if not self._sending_eof:
            self._shutdown_writes()
            self._sending_eof = True
        await self._begin_read(Discard(self._buffer, LINGER_BYTES), self.linger)

    def abort(self) -> None:
        """Close the stream now and throw away what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._corked = None
        if self._closed:
            return self._give_up_owed()
        self._write_buffer = None
        self._close(CloseReason.ABORTED)

    def kick(self, message: str = "") -> None:
        """Close the stream now, as :meth:`close` does; reason ``kicked``. ::

            stream.kick("too many wrong passwords")

        :param message: why; it becomes the text of the stream's ``error``, a `KickedError`, and so of what a pending
            read raises.
        """
        self._close(CloseReason.KICKED, KickedError(message))

    def set_timeouts(
        self,
        *,
        idle: float | EllipsisType | None = ...,
        read: float | EllipsisType | None = ...,
        write: float | EllipsisType | None = ...,
    ) -> None:
        """Give this stream timeouts of its own, in place of its server's ``idle_timeout``, ``read_timeout`` and
        ``write_timeout``; those that are not given stay as they are. ::

            stream.set_timeouts(idle=None, read=5)  # after the login: it may be silent, but not slow

        On a stream without a server they mean nothing.

        :param idle: seconds, or None for no limit; likewise the others.
        :raises OptionError: not a number of seconds above 0.
        """
        given = {"idle": idle, "read": read, "write": write}
        changes = {name: check_optional_timeout(name, value) for name, value in given.items() if value is not ...}
        self._timeouts = {**(self._timeouts or {}), **changes}

    async def wait_draining(self) -> None:
        """Return when the stream's server begins to shut down (`TCPServer.shutdown`), for a protocol that says goodbye.
        Without a server it never returns. ::

            async def say_goodbye(stream):
                await stream.wait_draining()
                await stream.write(b"the server is shutting down\\n")
        """
        await (asyncio.Event() if self._owner is None else self._owner.draining).wait()

    def _close(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Every stream ends here, whoever ended it."""
        if self._corked is not None:
            self.uncork()  # which may find the stream broken, and close it
        if self._closed:
            return
        self._closed = True
        self._readable = False
        self.close_reason = self.close_reason or reason
        self.error = error
        if self._hub.loop.is_closed():
            self._forget_all()  # nobody can be told, and nothing more be sent
        self._end_read(error)
        self._keep_what_is_owed()
        self._fail_writes()
        if self._write_buffer is not None or not self._part():
            self._owed_timer = self._hub.loop.call_later(CLOSE_TIMEOUT, self._give_up_owed)
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._close_callback is not None:
            self._run_close_callback()

    def _forget_all(self) -> None:
        self._forget_read()
        self._write_buffer = None
        self._unsent_futures = None
        self._connect_future = None

    def _close_descriptor(self) -> None:
        if self._owed_timer is not None:
            self._owed_timer.cancel()
        try:
            self._hub.unwatch(self)
            self.close_fd()
        except Exception as error:  # close_fd() may be a user's own
            if not isinstance(error, OSError) or error.errno != errno.EBADF:  # that is closed, as it was to be
                text = f"error on close: {error!r}"
                self._report("error", logging.WARNING, text, self.close_reason, without_frames(error))
        finally:
            if self._owner is not None:
                owner, self._owner = self._owner, None
                owner._finish(self)
