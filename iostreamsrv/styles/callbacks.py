"""A server that calls functions for what happens: a client is there, has sent something, has gone.

**Data that stays.** ``on_data`` is called within the stream's pending read (`IOStream.read_until_match`), so what it
does not consume stays in the stream: the limits, timeouts and counters of the stream hold for it, and a shutdown sees
that half a message is there. As ``bytes`` it is kept beside the stream in a `io.BytesIO`, whose ``getvalue()`` is not
a copy: it gives out the very object it writes to, and copies it only if somebody still holds that when more arrives.
So a message that comes in n pieces costs n appends.
"""

import asyncio
import io
from asyncio import Future
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from ..errors import CloseReason, OptionError, StreamBufferFullError, StreamClosedError
from ..events import Event
from ..ioloop import IOLoop
from ..iostream import IOStream
from ..options import Full, check_optional_timeout
from ..registry import Slow
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
    coroutine::

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

    For one client they are called one after another, never two at a time, but for ``on_tick`` where it or another one
    is a coroutine. What one of them raises closes that client's connection, and is logged. They may write, close, kick
    and shut down whatever they like.

    Per client there are, on the stream, ``remote_address``, ``opened_at``, ``idle_time``, ``write_idle_time``,
    ``read_chunk_size`` (most that is received at once; may be set), ``buffered``, and ``data``, a dict that is still
    there in ``on_disconnect``. `TCPServer.streams` counts and lists the clients, `broadcast` writes to all.

    :param tick_interval: seconds; None, the default, for no ticks.
    :raises OptionError: no function, or not a number of seconds above 0.

    The other parameters are those of `TCPServer`. A class may have ``tick_interval`` as an attribute.
    """

    tick_interval: float | None = None
    when_full: Full = "reject"  # who is one too many is to hear it

    def __init__(self, *arguments: Any, tick_interval: float | None = None, **keywords: Any) -> None:
        for name in [name for name in keywords if name.startswith("on_")]:
            if name not in CALLBACKS:
                raise TypeError(f"no such callback: {name!r} (there are {', '.join(CALLBACKS)})")
            setattr(self, name, _checked(name, keywords.pop(name)))
        super().__init__(*arguments, **keywords)
        interval = self.tick_interval if tick_interval is None else tick_interval
        self.tick_interval = check_optional_timeout("tick_interval", interval)
        self._conversations: dict[int, Conversation] = {}
        self._ticking: object | None = None
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
        """
        return len(data)

    def on_write(self, stream: IOStream) -> Awaitable[None] | None:
        """All that the callbacks have written to ``stream`` has been taken by the kernel."""
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

        :param error: with ``operation``, ``reason``, ``errno`` and ``real_error``.
        """
        return None

    def on_tick(self, stream: IOStream) -> Awaitable[None] | None:
        """``tick_interval`` has passed."""
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

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        """For the server: a client's conversation, as calls of the callbacks."""
        conversation = self._conversations[stream.id] = Conversation(self, stream)
        if self.tick_interval is not None and self._ticking is None:
            self._ticking = stream.io_loop.call_later(self.tick_interval, self._tick)
        await conversation.run()

    async def handle_close(self, stream: IOStream, reason: CloseReason) -> None:
        """For the server: the end of one."""
        await self._conversations[stream.id].end(reason)
        del self._conversations[stream.id]

    def _tick(self) -> None:
        self._ticking = None
        for conversation in list(self._conversations.values()):
            conversation.call_soon(self.on_tick)
        if self._conversations and self.tick_interval is not None:
            self._ticking = IOLoop.current().call_later(self.tick_interval, self._tick)

    def _listening(self, event: Event) -> None:
        self._keep(self.on_listen(event.address))

    def _rejected(self, event: Event) -> None:
        if isinstance(event.stream, IOStream):
            self._keep(self.on_error(event.stream, StreamClosedError(None, "accept", event.reason)))

    def _keep(self, result: Awaitable[None] | None) -> None:
        """Of a callback that belongs to no client: have it run, if it is a coroutine."""
        if result is not None:
            IOLoop.current().add_callback(lambda: result)


CALLBACKS = tuple(name for name in vars(CallbackServer) if name.startswith("on_"))


class Conversation:
    """What goes on with one client.

    :ivar failure: what a callback has raised that is not called by :meth:`run` itself.
    """

    def __init__(self, server: CallbackServer, stream: IOStream) -> None:
        self.failure: BaseException | None = None
        self._server = server
        self._stream = stream
        self._kept: io.BytesIO | None = None  # what on_data has seen and not consumed, as bytes
        self._seen = 0  # how many bytes of what the stream holds that is
        self._reading: Future[Any] | None = None
        self._ended: Future[None] = stream.io_loop.asyncio_loop.create_future()  # type: ignore[attr-defined]
        self._watching = False
        self._written = 0  # of what was written, so much has been told of

    async def run(self) -> None:
        """Call ``on_connect``, and then ``on_data`` again and again, until the stream ends."""
        try:
            await self._call(self._server.on_connect)
            if iscoroutinefunction(self._server.on_data):
                await self._take_turns()
            while True:
                await self._read(self._match)
        except (StreamClosedError, asyncio.CancelledError):
            if self.failure is None:
                raise
            raise self.failure from None
        finally:
            self._ended.set_result(None)

    async def _read(self, match: Callable[[bytearray], tuple[int, Any] | None]) -> Any:
        self._reading = self._stream.read_until_match(match)
        result = await self._reading
        if self.failure is not None:
            raise self.failure
        return result

    async def end(self, reason: CloseReason) -> None:
        """The stream is closed: once its callback has returned, call ``on_error`` and ``on_disconnect``."""
        await self._ended
        stream = self._stream
        unread = await stream.read_bytes(stream.buffered) if stream.buffered else b""
        if reason in FAULTS:
            await self._call(self._server.on_error, StreamClosedError(stream.error, "read", reason))
        await self._call(self._server.on_disconnect, unread, _said(stream, reason))

    # ---- data

    def _match(self, buffer: bytearray) -> tuple[int, None] | None:
        """For the pending read: offer what there is to a plain ``on_data``."""
        if len(buffer) <= self._seen or self._stream.closed():
            return None
        data, consumed = self._as_bytes(buffer), 0
        try:
            for _ in range(IN_A_ROW):
                taken = _consumed(self._server.on_data(self._stream, data), len(data))
                consumed += taken
                data = data[taken:]
                if not taken or not data or self._stream.closed():
                    break
            else:
                taken = 1  # there is more, for the next turn
        except Exception as error:
            self.failure = error
            return consumed, None
        self._keep(data if not taken else b"", consumed)
        self.look_for_writes()
        return (consumed, None) if consumed else None

    async def _take_turns(self) -> None:
        """The same for a coroutine, between two reads."""
        while True:
            data = await self._read(self._peek)
            taken = _consumed(await self._server.on_data(self._stream, data), len(data))  # type: ignore[misc]
            if taken:
                await self._stream.read_bytes(taken)
            elif len(data) >= self._stream.max_buffer_size:
                raise StreamBufferFullError("on_data leaves more than the buffer can hold", "read")
            self._keep(b"" if taken else data, taken)
            self.look_for_writes()

    def _peek(self, buffer: bytearray) -> tuple[int, bytes] | None:
        return None if len(buffer) <= self._seen else (0, self._as_bytes(buffer))

    def _as_bytes(self, buffer: bytearray) -> bytes:
        if self._kept is None:
            return bytes(buffer)
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

    def call_soon(self, callback: Callable[..., Any]) -> None:
        """Call what is no part of :meth:`run`; what it raises ends that."""
        self._stream.io_loop.spawn_callback(self._guarded, callback)

    async def _guarded(self, callback: Callable[..., Any]) -> None:
        if self._stream.closed():
            return
        try:
            await self._call(callback)
        except StreamClosedError:
            pass  # run() has it as well
        except Exception as error:
            self.failure = error
            if self._reading is not None:
                self._reading.cancel()

    def look_for_writes(self) -> None:
        """Once what was written has left, tell so. Not at once: what is corked had better stay so for now."""
        if not self._watching and _has_on_write(self._server) and self._stream.queued + self._stream.bytes_written:
            self._watching = True
            self._stream.io_loop.add_callback(self._watch)

    async def _watch(self) -> None:
        stream = self._stream
        try:
            await stream.drain()
        except StreamClosedError:
            return
        self._watching = False
        if stream.bytes_written > self._written:
            self._written = stream.bytes_written
            self.call_soon(self._server.on_write)


def _has_on_write(server: CallbackServer) -> bool:
    return getattr(server.on_write, "__func__", None) is not CallbackServer.on_write


def _checked(name: str, callback: Any) -> Callable[..., Any]:
    if not callable(callback):
        raise OptionError(name, callback, "must be a function")
    return callback  # type: ignore[no-any-return]


def _consumed(returned: Any, size: int) -> int:
    """What ``on_data`` has returned, as a number of bytes."""
    if returned is None:
        return 0
    if isinstance(returned, bool) or not isinstance(returned, int):
        if isawaitable(returned):
            getattr(returned, "close", lambda: None)()
        raise TypeError(f"on_data must return how many bytes are consumed, or None, not {returned!r}")
    return returned if 0 <= returned <= size else size


def _said(stream: IOStream, reason: CloseReason) -> str:
    if stream.error is not None:
        return str(stream.error)
    return "" if reason in (CloseReason.EOF, CloseReason.LOCAL) else str(reason)
