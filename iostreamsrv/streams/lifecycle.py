"""The beginning and the ends of a stream, whatever its descriptor.

``close()`` ends a stream now, ``aclose()`` after what is queued has left and the peer had time to read it,
``abort()`` with a reset. All meet in ``terminate()``, which keeps the first reason.
"""

import asyncio
import sys
from collections.abc import Callable
from contextvars import copy_context
from types import EllipsisType, TracebackType

import tornado.iostream
from tornado.ioloop import IOLoop

from ..errors import CloseReason, KickedError, of_stream
from ..options import LINGER, READ_CHUNK_SIZE, check_flag, check_optional_timeout, check_size
from .closing import CloseSide
from .served import StreamOwner
from .state import CLOSED, FINISHING

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""


class BaseIOStream(CloseSide, tornado.iostream.BaseIOStream):  # type: ignore[misc]
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
    :ivar linger: seconds that :meth:`aclose` waits, after the peer has all of it, for the peer's end, and that a close
        callback waits for who may still read what came before the peer's end; 2.0. May be set.
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

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the stream is closed, for whatever reason; None takes it back. ::

            stream.set_close_callback(lambda: users.discard(stream.id))

        A stream with a close callback notices the peer's end also while nobody reads: it then receives one chunk ahead.
        So a peer that half-closes after its request is taken as gone, as with Tornado. With unread bytes before the end
        the stream is closed when nothing was read or written for ``linger`` seconds.

        It runs in the context of the client, on a stream of a server, and else with the context variables that are set
        here.
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

    def close(
        self,
        exc_info: None
        | bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] = False,
    ) -> None:
        """Close the stream now.

        A pending read and the writes whose futures are not done fail with `StreamClosedError`; what was reported done
        is delivered. Closing a closed stream does nothing. To have everything delivered: :meth:`aclose`. (A stream of
        an `HTTPServer` is closed so in any case, behind the back of whoever calls this; but not with an error.)

        :param exc_info: what to set ``error`` to: an exception, a ``sys.exc_info()`` tuple, or True for the current
            one.
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
        """Be closed from now on, as far as anybody sees, and do in the background what ``aclose()`` does."""
        if self._phase >= FINISHING:
            return
        owner.close_gracefully(self, CloseReason.LOCAL if self._written_before is None else CloseReason.SHUTDOWN)
        if self._phase != CLOSED:
            self._phase = FINISHING
        if self._close_callback is not None:
            self._run_close_callback()

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the stream in order: send what is queued, half-close, let the peer read it, close. ::

            await stream.write(b"good bye\\n")
            await stream.aclose(timeout=5)

        That takes as long as it takes, but the peer must go on taking: something in each ``write_timeout`` of the
        server (30 s without one), and 240 bytes per second over each minute. Otherwise the stream ends with a reset,
        under TLS without a close_notify, so that nobody takes what has come for all of it; reason ``write_timeout`` or
        ``min_rate``, with a warning in the log.

        When the peer has all, it has ``linger`` seconds (2) to end its side. What it still sends is thrown away, and
        prolongs that, up to 30 s and 64 MiB in all. A pending read fails at once. Bytes that are buffered stay
        readable.

        :param timeout: seconds for all of it. Then, if there are bytes that the kernel could not take yet, the stream
            ends with a reset, reason ``write_timeout``; otherwise it is closed. None: no limit but those.
        """
        timeout = check_optional_timeout("timeout", timeout)
        if self._hub.inherited:
            return self.terminate(CloseReason.LOCAL)
        if self._phase == CLOSED:
            return
        if self._closing is None:
            self._begin_closing(CloseReason.LOCAL)
            await self._finish_closing(timeout)
            return
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._closing)
        except TimeoutError:
            self._aclose_timed_out(timeout or 0)

    def abort(self) -> None:
        """Close the stream now and throw away what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._hub.check()
        self.abort_with(CloseReason.ABORTED)

    def kick(self, message: str = "") -> None:
        """Close the stream now, as :meth:`close` does; reason ``kicked``. ::

            stream.kick("too many wrong passwords")

        :param message: why; it becomes the text of the stream's ``error``, a `KickedError`, and so of what a pending
            read raises.
        """
        self.terminate(CloseReason.KICKED, of_stream(KickedError(message), self.id))

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

        On a stream without a server only ``write`` means something, and only for its end (:meth:`aclose`).

        :param idle: seconds, or None for no limit; likewise the others.
        :raises OptionError: not a number of seconds above 0.
        """
        self._hub.check()
        given = {"idle": idle, "read": read, "write": write}
        changes = {name: check_optional_timeout(name, value) for name, value in given.items() if value is not ...}
        self.own_timeouts = {**(self.own_timeouts or {}), **changes}

    async def wait_draining(self) -> None:
        """Return when the stream's server begins to shut down (`TCPServer.shutdown`), for a protocol with a last
        message. Without a server it never returns. ::

            async def say_goodbye(stream):
                await stream.wait_draining()
                await stream.write(b"the server is shutting down\\n")
        """
        self._hub.check()
        await (asyncio.Event().wait() if self._owner is None else self._owner.wait_draining())
