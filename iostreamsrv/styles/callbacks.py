"""A server that calls functions for what happens: a client is there, has sent something, has gone.

**Data that stays.** ``on_data`` is called within the stream's pending read (`IOStream.read_until_match`), so what it
does not consume stays in the stream: the limits, timeouts and counters of the stream hold for it, and a shutdown sees
that half a message is there. As ``bytes`` it is kept beside the stream in a `io.BytesIO`, whose ``getvalue()`` is not
a copy: it gives out the very object it writes to, and copies it only if somebody still holds that when more arrives.
So a message that comes in n pieces costs n appends.
"""

import asyncio
import io
import logging
from asyncio import Future
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, copy_context
from inspect import isawaitable, signature
from types import EllipsisType
from typing import Any

from tornado.ioloop import IOLoop

from ..errors import CloseReason, Operation, StreamBufferFullError, StreamClosedError, of_stream
from ..events import Event
from ..iostream import MORE, IOStream
from ..options import UNLIMITED, Full, check_optional_timeout
from ..runtime.callables import check_function
from ..runtime.contexts import run_for
from ..runtime.loops import current_loop
from ..server.groups import Slow
from ..tcpserver import TCPServer

__all__ = ["CallbackServer"]

FAULTS = frozenset(
    {
        CloseReason.RESET,
        CloseReason.TRUNCATED,
        CloseReason.TLS_ERROR,
        CloseReason.BUFFER_FULL,
        CloseReason.HANDLER_ERROR,
        CloseReason.WRITE_TIMEOUT,
        CloseReason.MIN_RATE,
    }
)
"""Ends that are told to ``on_error`` as well: something went wrong. All others are the normal course of things."""

IN_A_ROW = 16
"""Calls of ``on_data`` for bytes that are there already, after which other clients have their turn."""


class CallbackServer(TCPServer):
    """A server that calls functions. Each is a method to be overridden, or a keyword, and a plain function or a
    coroutine. ::

        def packets(stream, data):
            end = data.find(b"</pkt>") + 6
            if end < 6:
                return 0  # not all of it yet
            print(data[:end])
            return end

        server = CallbackServer(on_data=packets, max_connections=50, idle_timeout=60)
        server.listen(8888)
        iostreamsrv.run(server)

    - ``on_listen(address)``: an address is listened on.
    - ``on_connect(stream)``: a client is there.
    - ``on_data(stream, data)``: it has sent something. Returns how many bytes are consumed; see :meth:`on_data`.
    - ``on_write(stream)``: all that was written has been taken by the kernel.
    - ``on_disconnect(stream, unread, error)``: it is gone. Once for each ``on_connect``.
    - ``on_error(stream, error)``: something went wrong with it, or there was no place for it.
    - ``on_tick(stream)``: every ``tick_interval`` seconds, for each client.

    For one client they are called one after another, never two at a time, and in that client's context (`contextvars`).
    What one of them raises closes that client's connection in order, reason ``handler_error``, and is logged once. They
    may write, close, kick, stop and shut down whatever they like; after a callback that awaited ``shutdown()`` its own
    client is closed.

    Per client there are, on the stream, ``remote_address``, ``opened_at``, ``idle_time``, ``write_idle_time``,
    ``read_chunk_size`` (most that is received at once; may be set), ``buffered``, and ``data``, a dict that is still
    there in ``on_disconnect``. `TCPServer.streams` counts and lists the clients, ``broadcast`` writes to all.

    :param tick_interval: seconds; None, the default, for no ticks.
    :raises OptionError: no function, one of other arguments, or not a number of seconds above 0.
    :raises TypeError: there is no such callback, or no such option.

    The other parameters are those of `TCPServer`. A class may have ``tick_interval`` as an attribute.
    """

    tick_interval: float | None = None
    when_full: Full = "reject"  # who is one too many is to hear it

    def __init__(self, *arguments: Any, tick_interval: float | None = None, **keywords: Any) -> None:
        for name in [name for name in keywords if name.startswith("on_")]:
            if name not in CALLBACKS:
                raise TypeError(f"no such callback: {name!r} (there are {', '.join(CALLBACKS)})")
            setattr(self, name, keywords.pop(name))
        for name in CALLBACKS:
            check_function(name, getattr(self, name), CALLBACKS[name])
        super().__init__(*arguments, **keywords)
        interval = self.tick_interval if tick_interval is None else tick_interval
        self.tick_interval = check_optional_timeout("tick_interval", interval)
        self._conversations: dict[int, Conversation] = {}
        self._ticking: object | None = None
        self._unstarted: list[tuple[Context, Awaitable[None]]] = []
        self.events.subscribe(self._listening, "listen")
        self.events.subscribe(self._rejected, "reject")

    # ---- what users override

    def on_listen(self, address: Any) -> Awaitable[None] | None:
        """``address`` is listened on; port 0 has become a real one."""
        return None

    def on_connect(self, stream: IOStream) -> Awaitable[None] | None:
        """A client is there."""
        return None

    def on_data(self, stream: IOStream, data: bytes) -> Awaitable[int | None] | int | None:
        """A client has sent something.

        :param data: all that it has sent and that was not consumed.
        :returns: how many bytes of it are consumed. What is left is offered again: at once, if some were consumed; else
            when more has come. If the buffer (``max_buffer_size``) is full by then the client is closed. None is 0, and
            -1 or more than there are is all.

        While a coroutine is at work nothing is received, so a fast client has to wait. Each call of one begins the
        ``read_timeout`` and ``min_rate`` of the server anew. It must not read from ``stream`` itself.
        """
        return len(data)

    def on_write(self, stream: IOStream) -> Awaitable[None] | None:
        """All that was written to ``stream`` by its callbacks, or by ``broadcast`` of the server, has been taken by the
        kernel. (Of what somebody else writes it is told after the next of these.)"""
        return None

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> Awaitable[None] | None:
        """A client is gone.

        :param stream: closed; why is in ``stream.close_reason``.
        :param unread: what it sent and ``on_data`` did not consume.
        :param error: what was wrong, or was said by ``kick()``; "" where the client ended in order.
        """
        return None

    def on_error(self, stream: IOStream, error: StreamClosedError) -> Awaitable[None] | None:
        """Something went wrong with a client, who is about to be disconnected; or there is no place for one, and it
        was never connected: then ``error.reason`` is ``rejected``.

        :param error: with ``operation``, ``reason``, ``errno`` and ``real_error``: what a callback raised, too.
        """
        return None

    def on_tick(self, stream: IOStream) -> Awaitable[None] | None:
        """``tick_interval`` has passed. Ticks that fall into the time of another callback are one tick after it."""
        return None

    # ---- what the server does with them

    def broadcast(
        self, data: bytes | bytearray | memoryview, exclude: IOStream | Iterable[IOStream] = (), slow: Slow = "drop"
    ) -> "Future[int]":
        sent = super().broadcast(data, exclude, slow)
        for conversation in self._conversations.values():
            conversation.look_for_writes()
        return sent

    broadcast.__doc__ = TCPServer.broadcast.__doc__

    async def shutdown(self, timeout: float | EllipsisType | None = ...) -> None:
        await super().shutdown(timeout)
        for conversation in self._conversations.values():  # only one is left whose callback has called this
            conversation.over = True

    shutdown.__doc__ = TCPServer.shutdown.__doc__

    async def serve_forever(self) -> None:
        self._run_unstarted()
        await super().serve_forever()

    serve_forever.__doc__ = TCPServer.serve_forever.__doc__

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        """For the server: a client's conversation, as calls of the callbacks."""
        if stream.closed():  # nobody has heard of it
            return
        conversation = self._conversations[stream.id] = Conversation(self, stream, self._forget)
        if self.tick_interval is not None and self._ticking is None:
            self._tick_later(stream.io_loop, self.tick_interval)
        await conversation.run()

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """For the server: the end of one."""
        conversation = self._conversations.get(stream.id)
        return None if conversation is None else conversation.closed(reason)

    def _forget(self, stream: IOStream) -> None:
        del self._conversations[stream.id]
        if not self._conversations and self._ticking is not None:
            stream.io_loop.remove_timeout(self._ticking)
            self._ticking = None

    def _tick_later(self, io_loop: IOLoop, interval: float) -> None:
        self._ticking = Context().run(io_loop.call_later, interval, self._tick)

    def _tick(self) -> None:
        assert self.tick_interval is not None
        self._tick_later(IOLoop.current(), self.tick_interval)
        for conversation in list(self._conversations.values()):
            conversation.notify(self.on_tick)

    def _listening(self, event: Event) -> None:
        self._run_soon(self.on_listen(event.address))

    def _rejected(self, event: Event) -> None:
        if isinstance(event.stream, IOStream):
            self._run_soon(
                self.on_error(event.stream, StreamClosedError(None, "accept", event.reason, event.stream.id))
            )

    def _run_soon(self, result: Awaitable[None] | None) -> None:
        """Of a callback that belongs to no client: run it, if it is a coroutine, on the loop that is the first to run,
        which after a ``listen()`` outside any need not be the current one."""
        if isawaitable(result):
            self._unstarted.append((copy_context(), self._logging(result)))
            Context().run(current_loop().add_callback, self._run_unstarted)

    async def _logging(self, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as error:
            text = f"Exception in callback of {type(self).__name__}"
            raised = CloseReason.HANDLER_ERROR
            self.events.emit(Event("error", text, logging.ERROR, reason=raised, error=error))

    def _run_unstarted(self) -> None:
        while self._unstarted:
            context, result = self._unstarted.pop(0)
            context.run(IOLoop.current().add_callback, lambda result=result: result)


CALLBACKS = {
    name: tuple(signature(method).parameters)[1:]
    for name, method in vars(CallbackServer).items()
    if name.startswith("on_")
}
"""Their names, and those of their parameters."""


class Conversation:
    """What goes on with one client. All calls are made one after another, most of them by :meth:`run`, which waits in a
    read in between.

    :param forget: is called when all is over.
    :ivar over: whether the client is to be closed after the callback that runs.
    """

    def __init__(self, server: CallbackServer, stream: IOStream, forget: Callable[[IOStream], None]) -> None:
        self.over = False
        self._server = server
        self._stream = stream
        self._on_data = server.on_data
        self._forget = forget
        self._kept: io.BytesIO | None = None  # what on_data has seen and not consumed, as bytes
        self._seen = 0  # how many bytes of what the stream holds that is
        self._reading: Future[Any] | None = None
        # To be called when the callback that runs has returned; with the coroutine, where it was called already.
        self._due: dict[Callable[..., Any], Awaitable[Any] | None] = {}
        self._failure: BaseException | None = None  # what a callback has raised
        self._ended = False  # run() has
        self._reason: CloseReason | None = None  # the stream is closed
        self._tells_of_writes = getattr(server.on_write, "__func__", None) is not CallbackServer.on_write
        self._watching = False
        self._written = 0  # of what was written, so much has been told of
        self._half = (stream.max_write_buffer_size or UNLIMITED) // 2

    async def run(self) -> None:
        """Call ``on_connect``, and then ``on_data`` again and again, until the stream ends."""
        try:
            await self._call(self._server.on_connect)
            await self._converse()
            await self._stream.aclose()
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._ended = True
            for started in self._due.values():
                _give_up(started)
            if self._reason is not None:
                await self._tell_of_end(self._reason)

    async def _converse(self) -> None:
        read, match = self._stream.read_until_match, self._match
        while not self.over:
            if self._due:
                await self._call_due()
            if self._failure is not None:
                raise self._failure
            if self._stream.queued > self._half:
                await self._wait_for_room()
                continue
            self._reading = reading = read(match)
            try:
                rest = await reading
            except asyncio.CancelledError:
                if not self._was_woken():
                    raise
            else:
                if rest is not None:
                    await rest

    async def _wait_for_room(self) -> None:
        """Call nothing that answers, and receive nothing, until most of what is queued has left."""
        self._reading = draining = self._stream.drain(self._half // 2)
        try:
            await draining
        except asyncio.CancelledError:
            if not self._was_woken():
                raise

    def closed(self, reason: CloseReason) -> Awaitable[None] | None:
        """The stream is closed. Whoever comes last tells of it: this, or :meth:`run`, whose callback may take its time.

        Neither waits for the other, or a callback that waits for the server's shutdown would wait for itself.
        """
        self._reason = reason
        return self._tell_of_end(reason) if self._ended else None

    async def _tell_of_end(self, reason: CloseReason) -> None:
        stream = self._stream
        error = stream.error or (None if self._is_own_end(self._failure) else self._failure)
        unread = await stream.read_bytes(stream.buffered)
        try:
            if reason in FAULTS:
                operation: Operation = getattr(error, "operation", None) or "read"
                await self._call(self._server.on_error, StreamClosedError(error, operation, reason, stream.id))
        finally:
            try:
                await self._call(self._server.on_disconnect, unread, _said(error, reason))
            finally:
                self._forget(stream)

    def _is_own_end(self, failure: BaseException | None) -> bool:
        """Whether a callback has merely learnt that its client's stream is closed."""
        return isinstance(failure, StreamClosedError) and failure.stream_id == self._stream.id

    # ---- data

    def _match(self, buffer: bytearray) -> tuple[int, Any] | None:
        """For the pending read, which goes on for as long as it can: offer what there is to ``on_data``."""
        stream, size = self._stream, len(buffer)
        if size <= self._seen or stream.close_reason is not None:
            return None
        data = self._grown(buffer) if self._seen else bytes(buffer)
        try:
            returned = self._on_data(stream, data)
        except Exception as error:
            self._failure = error
            return 0, None
        if type(returned) is int and returned == size:  # as most do: this is what has to be fast
            if self._seen:
                self._keep(b"", size)
            found: tuple[int, Any] | None = (size, None if self._due or stream.queued > self._half else MORE)
        else:
            found = self._offer_again(returned, data)
        if self._tells_of_writes:
            self.look_for_writes()
        return found

    def _offer_again(self, returned: Any, data: bytes) -> tuple[int, Any] | None:
        """``on_data`` has returned this: offer it what it has left, again and again."""
        consumed = 0
        try:
            for turn in range(IN_A_ROW):
                if turn:
                    if self._stream.queued > self._half:
                        self._keep(b"", consumed)
                        return consumed, None  # likewise, when there is room for the answers
                    returned = self._on_data(self._stream, data)
                if type(returned) is not int and isawaitable(returned):
                    self._keep(data, consumed)
                    return consumed, self._consume_later(returned, len(data))
                taken = _consumed(returned, len(data))
                consumed += taken
                data = data[taken:]
                if not taken or not data or self._stream.closed():
                    break
            else:
                self._keep(b"", consumed)
                return consumed, None  # the rest is for the next turn
            self._keep(b"" if taken else data, consumed)
        except Exception as error:
            self._failure = error
        if self._failure or self._due or self._stream.queued > self._half:
            return consumed, None
        return (consumed, MORE) if consumed else None

    async def _consume_later(self, returned: Awaitable[int | None], size: int) -> None:
        """The same for a coroutine, when it has returned."""
        taken = _consumed(await returned, size)
        if taken:
            await self._stream.read_bytes(taken)
            self._keep(b"", taken)
        elif size > self._stream.max_buffer_size:
            full = StreamBufferFullError("on_data leaves more than the buffer can hold", "read")
            raise of_stream(full, self._stream.id)
        self.look_for_writes()

    def _grown(self, buffer: bytearray) -> bytes:
        """What was kept, with what has come since."""
        assert self._kept is not None
        with memoryview(buffer) as view, view[self._seen :] as fresh:
            self._kept.write(fresh)
        return self._kept.getvalue()

    def _keep(self, left: bytes, consumed: int) -> None:
        """``left`` was seen, and is to be seen again only when there is more."""
        self._seen = len(left)
        if not left:
            self._kept = None
        elif self._kept is None or consumed:
            self._kept = io.BytesIO(left)
            self._kept.seek(len(left))

    # ---- calls

    async def _call(self, callback: Callable[..., Any], *arguments: Any) -> None:
        result = callback(self._stream, *arguments)
        if isawaitable(result):
            await result
        self.look_for_writes()

    def notify(self, callback: Callable[..., Any]) -> None:
        """Call what no data is the cause of: now, or after the callback that runs."""
        if self._reading is None or self._reading.done():
            self._due.setdefault(callback)
            return
        try:
            result = run_for(self._stream, callback, self._stream)
        except Exception as error:
            self._failure = error
        else:
            if not isawaitable(result):
                return self.look_for_writes()
            self._due[callback] = result
        self._reading.cancel()

    def _was_woken(self) -> bool:
        """Whether it was :meth:`notify` that has cancelled the read."""
        task = asyncio.current_task()
        return bool(self._due or self._failure) and task is not None and not task.cancelling()

    async def _call_due(self) -> None:
        for callback in list(self._due):  # and not those that become due meanwhile, or nothing would be read any more
            started = self._due.pop(callback)
            if started is not None:
                await started
            elif not self._stream.closed():
                await self._call(callback)

    def look_for_writes(self) -> None:
        """Once what was written has left, tell so. Not at once: what is corked had better stay so for now."""
        stream = self._stream
        if self._tells_of_writes and not self._watching and stream.queued + stream.bytes_written > self._written:
            self._watching = True
            Context().run(stream.io_loop.add_callback, self._watch)

    def _watch(self) -> None:
        self._stream.drain().add_done_callback(self._drained, context=Context())

    def _drained(self, drained: "Future[None]") -> None:
        self._watching = False
        if not drained.exception() and self._stream.bytes_written > self._written:
            self._written = self._stream.bytes_written
            self.notify(self._server.on_write)


def _give_up(result: Any) -> None:
    """A coroutine is not to run; without this Python would complain that nobody awaits it."""
    getattr(result, "close", lambda: None)()


def _consumed(returned: Any, size: int) -> int:
    """What ``on_data`` has returned, as a number of bytes."""
    if type(returned) is int:
        if 0 <= returned <= size:
            return returned
        if returned < -1:
            raise ValueError(f"on_data must return how many bytes are consumed, or -1 for all, not {returned}")
        return size
    if returned is None:
        return 0
    raise TypeError(f"on_data must return how many bytes are consumed, or None, not {returned!r}")


def _said(error: BaseException | None, reason: CloseReason) -> str:
    if error is not None:
        return str(error)
    return "" if reason in (CloseReason.EOF, CloseReason.LOCAL) else str(reason)
