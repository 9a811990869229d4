"""The constructor of a stream and the ways to close it, for every kind of descriptor.

``close()`` closes a stream now; ``aclose()`` first sends what is queued and gives the peer time to read it; ``abort()``
closes it with a reset. All end in ``terminate()``, which keeps the first reason.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from types import EllipsisType, TracebackType

import tornado.iostream
from tornado.ioloop import IOLoop

from ..compat.streams import TornadoStreamNames
from ..errors import CloseReason, KickedError, of_stream
from ..options import LINGER, READ_CHUNK_SIZE, check_flag, check_optional_timeout, check_size
from .closing import CloseSide
from .core import overridable
from .served import StreamOwner
from .state import CLOSED, FINISHING

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""


class BaseIOStream(CloseSide, TornadoStreamNames, tornado.iostream.BaseIOStream):  # type: ignore[misc]
    """Reads and writes a non-blocking descriptor; subclasses say which.

    A subclass overrides :meth:`fileno`, :meth:`close_fd`, :meth:`read_from_fd`, :meth:`write_to_fd` and perhaps
    :meth:`get_fd_error`. Make it where a loop is current, and use it in that loop's thread.

    :param max_buffer_size: most bytes to hold unread; default (None) 100 MiB, ``math.inf`` for no limit. A read that
        needs more closes the stream, reason ``buffer_full``.
    :param read_chunk_size: most bytes to receive at once; default 64 KiB, never over half of ``max_buffer_size``.
    :param max_write_buffer_size: most bytes to queue; default (None) no limit. A write beyond it raises
        `StreamBufferFullError`; a single larger write into an empty queue is taken.
    :param cork: whether writes made while more requests wait are sent together (see :meth:`write`).
    :param allow_half_open: whether the stream stays open after the peer's EOF. If so, reads raise
        `StreamClosedError`, reason ``eof``, and writes go on until :meth:`send_eof`, which then closes the stream. If
        not, as with Tornado, EOF closes the stream once what is queued is sent.
    :raises OptionError: a size is not a positive number.

    :ivar io_loop: the `IOLoop` of the stream.
    :ivar error: the exception that closed the stream, or None after an orderly close.
    :ivar close_reason: a `CloseReason` once the stream is closed, None before.
    :ivar allow_half_open: as the parameter; may be set.
    :ivar linger: how many seconds :meth:`aclose` waits for the peer's EOF, after the peer has taken everything; and how
        many seconds bytes before EOF may stay unread on a stream with a close callback. Default 2.0; may be set.
    :ivar id: a number that no other stream of this process has.
    :ivar opened_at: when the stream was made, as `time.time`.
    :ivar bytes_read: bytes received so far, including unread ones.
    :ivar bytes_written: bytes that the kernel has taken so far.
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

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the stream is closed, for any reason; None removes it. ::

            stream.set_close_callback(lambda: users.discard(stream.id))

        A stream with a close callback notices EOF also while no read is pending: it receives one chunk ahead. So a peer
        that half-closes after its request counts as gone, as with Tornado. If there are unread bytes before EOF, the
        stream is closed when nothing was read or written for ``linger`` seconds.

        The callback of a server's stream runs in that client's context; any other one runs with the context variables
        of this call.
        """
        self._hub.check()
        if callback is None:
            self._close_callback = None
            return
        self._close_callback = self.callback_context or copy_context(), callback
        if self._phase >= FINISHING:
            self._run_close_callback()
        elif self._connect_future is None:
            self._poll_for_eof_soon()

    def _call_close_callback(self, callback: Callable[[], None]) -> None:
        # Not in a module that may be compiled: from this frame the watchdog knows the stream.
        self.io_loop._run_callback(callback)

    def close(
        self,
        exc_info: None
        | bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] = False,
    ) -> None:
        """Close the stream now.

        A pending read and the writes whose futures are not done fail with `StreamClosedError`; what was reported done
        is delivered. Closing a closed stream does nothing. Use :meth:`aclose` to deliver everything. If the stream is
        closed before that is done, the peer gets a reset, so that it notices that data is missing. (On a stream of an
        `HTTPServer` this does what :meth:`aclose` does, in the background, unless ``exc_info`` has an error.)

        :param exc_info: the value of ``error``: an exception, a ``sys.exc_info()`` tuple, or True for the current one.
        """
        if isinstance(exc_info, tuple):
            error = exc_info[1]
        elif isinstance(exc_info, BaseException):
            error = exc_info
        else:
            error = sys.exception() if exc_info else None
        owner = self._owner
        if owner is not None and owner.closes_in_order and error is None and self._hub.loop.is_running():
            self._close_gracefully(owner)
        else:
            self.terminate(CloseReason.LOCAL, error)

    def _close_gracefully(self, owner: StreamOwner) -> None:
        """Report the stream as closed, and do in the background what ``aclose()`` does."""
        if self._phase >= FINISHING:
            return
        owner.close_gracefully(self, CloseReason.LOCAL if self._written_before is None else CloseReason.SHUTDOWN)
        if self._phase != CLOSED:
            self._phase = FINISHING
        if self._close_callback is not None:
            self._run_close_callback()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the stream gracefully: send what is queued, half-close, let the peer read it, close. ::

            await stream.write(b"bye\\n")
            await stream.aclose(timeout=5)

        The peer must make progress: it must take something within each ``write_timeout`` of the server (30 s without a
        server), and 240 bytes per second over each minute. Otherwise the stream is closed with a reset, under TLS
        without a close_notify, so that the peer notices that data is missing; reason ``write_timeout`` or ``min_rate``,
        with a warning in the log. While the peer makes progress, there is no time limit.

        When the peer has everything, it has ``linger`` seconds (2) to send EOF. What it still sends is discarded, and
        extends that time, up to 30 s and 64 MiB in all. A pending read fails at once. Buffered bytes stay readable.

        :param timeout: seconds for the whole close. After them the stream is closed; with a reset, reason
            ``write_timeout``, if the kernel has not taken all bytes. None: only the limits above.
        """
        timeout = check_optional_timeout("timeout", timeout)
        if self._hub.inherited:
            return self.terminate(CloseReason.LOCAL)
        if self._phase == CLOSED:
            return
        if self._closing is None:
            self._begin_closing(CloseReason.LOCAL)
            closing: Awaitable[None] = self._finish_closing()
        else:
            closing = asyncio.shield(self._closing)
        # Not asyncio.timeout(), which works only in a task.
        timer = None
        if timeout is not None:
            timer = self._hub.loop.call_later(timeout, self._aclose_timed_out, timeout, context=Context())
        try:
            await closing
        finally:
            if timer is not None:
                timer.cancel()

    def abort(self) -> None:
        """Close the stream now and discard what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._hub.check()
        self.abort_with(CloseReason.ABORTED)

    def kick(self, message: str = "") -> None:
        """Close the stream now, as :meth:`close` does; reason ``kicked``. ::

            stream.kick("too many wrong passwords")

        :param message: the text of the stream's ``error``, a `KickedError`. The error of a pending read has it, too.
        """
        self.terminate(CloseReason.KICKED, of_stream(KickedError(message), self.id))

    def set_timeouts(
        self,
        *,
        idle: float | EllipsisType | None = ...,
        read: float | EllipsisType | None = ...,
        write: float | EllipsisType | None = ...,
    ) -> None:
        """Set timeouts for this stream only, in place of its server's ``idle_timeout``, ``read_timeout`` and
        ``write_timeout``; those that are not given stay as they are. ::

            stream.set_timeouts(idle=None, read=5)  # after the login: it may be silent, but not slow

        On a stream without a server only ``write`` has an effect, and only in :meth:`aclose`.

        :param idle: seconds, or None for no limit; likewise the others.
        :raises OptionError: not a number of seconds above 0.
        """
        self._hub.check()
        given = {"idle": idle, "read": read, "write": write}
        changes = {name: check_optional_timeout(name, value) for name, value in given.items() if value is not ...}
        self.own_timeouts = {**(self.own_timeouts or {}), **changes}

    async def wait_draining(self) -> None:
        """Return when the stream's server begins to shut down (`TCPServer.shutdown`): for protocols that announce it.
        Without a server it never returns. ::

            async def announce_shutdown(stream):
                await stream.wait_draining()
                await stream.write(b"the server is shutting down\\n")
        """
        self._hub.check()
        await (asyncio.Event().wait() if self._owner is None else self._owner.wait_draining())


class TransportStream(BaseIOStream):
    """A stream whose bytes its transport moves, unless a user overrides these methods."""

    __slots__ = ()

    @overridable
    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return self._transport.recv_into(buf)
        except BlockingIOError:
            return None

    @overridable
    def write_to_fd(self, data: bytes | bytearray | memoryview) -> int:
        return self._transport.send(data)
