"""The beginning and the ends of a stream, whatever its descriptor.

``close()`` ends a stream now, ``aclose()`` after what is queued has left and the peer had time to read it,
``abort()`` with a reset. All meet in ``_close``, which keeps the first reason.
"""

import asyncio
import errno
import logging
import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from types import EllipsisType, TracebackType

from tornado.ioloop import IOLoop

from ..errors import CloseReason, KickedError, StreamTimeoutError, of_stream, without_frames
from ..options import LINGER, READ_CHUNK_SIZE, WRITE_TIMEOUT, check_flag, check_optional_timeout, check_size
from ..sansio.reads import Discard
from .hub import BROKEN, READABLE, WRITABLE
from .progress import ProgressWatch
from .reading import ReadSide
from .served import StreamOwner

MAX_BUFFER_SIZE = 100 * 1024 * 1024
"""Tornado's default for a stream made by hand. `TCPServer` gives its streams 1 MiB."""

LINGER_BYTES = 1 << 26
"""For how many bytes ``aclose()`` goes on receiving after its half-close. Closing a socket with unread input makes the
kernel send a reset, which can destroy the last reply on its way (nginx: lingering_close). A client that uploads a file
often reads the answer, that it was refused, only when it has sent all of it."""

LINGER_TIME = 30.0
"""Seconds for which a peer that goes on sending keeps a stream open that has sent its last byte (nginx:
lingering_time)."""

GIVEN_UP = frozenset({CloseReason.WRITE_TIMEOUT, CloseReason.MIN_RATE})
"""Ends of a stream whose peer did not take what was sent to it."""


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

        It runs in the context of the client, on a stream of a server, and else with the context variables that are set
        here.
        """
        self._hub.check()
        if callback is None:
            self._close_callback = None
            return
        self._close_callback = self.callback_context or copy_context(), callback
        if self._closed or self._leaving:
            self._run_close_callback()
        elif self._connect_future is None:
            self._look_for_end_later()

    def _run_close_callback(self) -> None:
        registered, self._close_callback = self._close_callback, None
        if registered is not None and not self._hub.loop.is_closed():
            context, callback = registered
            self._hub.loop.call_soon(self._call, callback, context=context)

    def _call(self, callback: Callable[[], None]) -> None:
        self.io_loop._run_callback(callback)  # the watchdog sees from this frame whose it is

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
            self._leave(owner)
        else:
            self.terminate(CloseReason.LOCAL, error)

    def _leave(self, owner: StreamOwner) -> None:
        """Be closed from now on, as far as anybody sees, and do in the background what ``aclose()`` does."""
        if self._closed or self._leaving:
            return
        owner.close_gracefully(self, CloseReason.LOCAL if self._written_before is None else CloseReason.SHUTDOWN)
        self._leaving = True
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
        if self._closed:
            return
        if self._closing is None:
            self._begin_closing(CloseReason.LOCAL)
            await self._finish_closing(timeout)
            return
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._closing)
        except TimeoutError:
            self._end_late(timeout or 0)

    def _begin_closing(self, reason: CloseReason) -> None:
        """From now on nothing more is read or written. :meth:`_finish_closing` has to follow."""
        self._closing = self._hub.loop.create_future()
        self.close_reason = reason
        self._fail_read(self._closed_error("read"))

    def close_in_background(self, reason: CloseReason) -> "asyncio.Task[None] | None":
        """See `ServedStream`."""
        if self.close_reason is not None:
            return None
        self._begin_closing(reason)
        task = self._hub.loop.create_task(self._finish_closing(), context=Context())
        # A task that is cancelled before its first step, as at the end of a loop, closes nothing.
        task.add_done_callback(lambda _: None if self._closed else self.close_or_abort(reason), context=Context())
        return task

    async def _finish_closing(self, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._deliver()
        except TimeoutError:
            self._end_late(timeout or 0)
        except OSError:
            pass
        finally:
            self.close_or_abort(CloseReason.LOCAL)

    async def _deliver(self) -> None:
        """Send what is queued and the end, and let the peer read it."""
        if self._hub.inherited:
            return
        self.uncork()
        if self._write_buffer is not None:
            self._watch_progress()
        await self.drain()
        if self._has_half_close and self.linger and not self._eof and not self._closed:
            if not self._sending_eof:
                self._shutdown_writes()
                self._sending_eof = True
            await self._linger()

    async def _linger(self) -> None:
        """Receive, and throw it away, until the peer ends its side, or has had all for long enough."""
        discard = Discard(self._buffer, LINGER_BYTES)
        late = self._hub.time() + LINGER_TIME
        while not self._closed:
            received = self.receive_progress()
            try:
                await self._begin_read(discard, self.linger)
                return
            except StreamTimeoutError:
                if self._is_sending():
                    self._watch_progress()
                    late = self._hub.time() + LINGER_TIME
                elif self.receive_progress() == received or self._hub.time() > late:
                    return

    def has_lingered(self, seconds: float) -> bool:
        """Whether the peer has had all, and not ended its side, for so long."""
        return (
            isinstance(self._read, Discard) and self._hub.time() - self._read_since > seconds and not self._is_sending()
        )

    def _is_sending(self) -> bool:
        """Whether the peer has not taken all yet."""
        return self._write_buffer is not None or self.unacknowledged() > 0

    def _end_late(self, seconds: float) -> None:
        """An ``aclose()`` has not been done in its time."""
        error = StreamTimeoutError("write", seconds, f"not sent within {seconds:g} s") if self._loses_bytes() else None
        if error is not None:
            self.abort_with(CloseReason.WRITE_TIMEOUT, error)
        else:
            self.terminate(CloseReason.LOCAL)

    def close_or_abort(self, reason: CloseReason) -> None:
        """Close the stream; if something that was written is lost by that, so that the peer notices."""
        if self._loses_bytes():
            self.abort_with(self.close_reason or reason)
        else:
            self.terminate(reason)

    def _watch_progress(self) -> None:
        if self._progress_watch is None:
            self._progress_watch = ProgressWatch(self)

    def _write_timeout(self) -> float | None:
        """For the watch."""
        if self.own_timeouts is not None and "write" in self.own_timeouts:
            return self.own_timeouts["write"]
        return WRITE_TIMEOUT if self._owner is None else self._owner.write_timeout

    def _give_up(self, reason: CloseReason, error: StreamTimeoutError) -> None:
        """For the watch: end a stream that was closed in order, or closed and owes something still."""
        text = f"closing a connection before its peer has all that was sent: {error}"
        self._report("limit", logging.WARNING, text, reason, error)
        self.abort_with(reason, error)

    def abort(self) -> None:
        """Close the stream now and throw away what is queued; a TCP peer gets a reset. Reason ``aborted``."""
        self._hub.check()
        self.abort_with(CloseReason.ABORTED)

    def abort_with(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """End the stream now, with a reset where the transport has one: the peer must not take it for the end."""
        self._corked = None
        self._ask_for_reset()
        if reason in GIVEN_UP:
            self.close_reason = reason  # it was to end in another way, and did not
        if self._closed:
            self.error = self.error or error
            return self.discard_output()
        self._write_buffer = None
        self.terminate(reason, error)

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
        """Return when the stream's server begins to shut down (`TCPServer.shutdown`), for a protocol that says goodbye.
        Without a server it never returns. ::

            async def say_goodbye(stream):
                await stream.wait_draining()
                await stream.write(b"the server is shutting down\\n")
        """
        self._hub.check()
        await (asyncio.Event().wait() if self._owner is None else self._owner.wait_draining())

    def terminate(self, reason: CloseReason, error: BaseException | None = None) -> None:
        """Every stream ends here, whoever ended it."""
        self._hub.check()
        if self._hub.inherited:
            self.forget_output()
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
            self._watch_progress()
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._closing is not None and not self._closing.done() and not self._hub.loop.is_closed():
            self._closing.set_result(None)
        if self._close_callback is not None:
            self._run_close_callback()

    def _forget_all(self) -> None:
        self._forget_read()
        self._write_buffer = None
        self._unsent_futures = None
        self._connect_future = None

    def _close_descriptor(self) -> None:
        if self._progress_watch is not None:
            self._progress_watch.stop()
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
                owner.stream_closed(self)
