"""A server that calls functions when a client connects, sends data or disconnects."""

import logging
from asyncio import Future
from collections.abc import Awaitable, Iterable
from contextvars import Context, copy_context
from inspect import isawaitable, signature
from types import EllipsisType
from typing import Any

from tornado.ioloop import IOLoop

from ..errors import CloseReason, StreamClosedError
from ..events import Event
from ..iostream import IOStream
from ..options import Full, check_optional_timeout
from ..runtime.callables import check_function, is_overridden
from ..runtime.loops import current_loop
from ..server.base import core_of
from ..server.groups import Slow
from ..tcpserver import TCPServer
from .session import Session

__all__ = ["CallbackServer"]


class CallbackServer(TCPServer):
    """A server that calls functions, the callbacks. Each is a method that you override, or a keyword argument; it may
    be a plain function or a coroutine function. ::

        def packets(stream, data):
            end = data.find(b"</pkt>") + 6
            if end < 6:
                return 0  # incomplete
            print(data[:end])
            return end

        server = CallbackServer(on_data=packets, max_connections=50, idle_timeout=60)
        server.listen(8888)
        iostreamsrv.run(server)

    - ``on_listen(address)``: the server listens on an address.
    - ``on_connect(stream)``: a client has connected.
    - ``on_data(stream, data)``: a client has sent data. Returns how many bytes are consumed; see :meth:`on_data`.
    - ``on_write(stream)``: the kernel has accepted all written data.
    - ``on_disconnect(stream, unread, error)``: a client has disconnected. Called once for each ``on_connect``.
    - ``on_error(stream, error)``: a connection failed, or was rejected because the server is full.
    - ``on_tick(stream)``: called every ``tick_interval`` seconds for each client.

    The callbacks of one client are called one after another, never two at a time, in that client's context
    (`contextvars`). An exception in a callback closes that client's connection gracefully, with reason
    ``handler_error``, and is logged once. Callbacks may write, close, kick, stop and shut down without restriction.
    After a callback has awaited ``shutdown()``, its client is closed.

    The stream has, for each client, ``remote_address``, ``opened_at``, ``idle_time``, ``write_idle_time``,
    ``read_chunk_size`` (the most bytes received at a time; may be set), ``buffered``, and ``data``, a dict for the
    program, which is still there in ``on_disconnect``. `TCPServer.streams` counts and lists the clients; ``broadcast``
    writes to all of them.

    :param tick_interval: seconds above 0; None, the default, for no ticks. May also be a class attribute.
    :raises OptionError: an argument is invalid: a callback is not callable or takes other parameters, or
        ``tick_interval`` is not a number above 0.
    :raises TypeError: a callback or an option of this name does not exist.

    The other parameters are those of `TCPServer`.
    """

    tick_interval: float | None = None
    when_full: Full = "reject"  # a client that exceeds the limit is rejected at once

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
        self._client_sessions: dict[int, Session] = {}
        self._ticking: object | None = None
        self._unstarted: list[tuple[Context, Awaitable[None]]] = []
        core_of(self).events.subscribe(self._listening, "listen")
        core_of(self).events.subscribe(self._rejected, "reject")

    # ---- what users override

    def on_listen(self, address: Any) -> Awaitable[None] | None:
        """The server listens on ``address``, in which port 0 has been replaced by the real one."""
        return None

    def on_connect(self, stream: IOStream) -> Awaitable[None] | None:
        """A client has connected."""
        return None

    def on_data(self, stream: IOStream, data: bytes) -> Awaitable[int | None] | int | None:
        """A client has sent data.

        :param data: everything received and not yet consumed.
        :returns: the number of bytes consumed. If some are left, the method is called again: at once if it has consumed
            any, else when more data arrives. If the buffer (``max_buffer_size``) is full then, the client is closed.
            None means 0; -1, or more than there are, means all.

        While a coroutine runs, nothing is received, so a fast client has to wait. Each call of a coroutine function
        restarts ``read_timeout`` and ``min_rate`` of the server. The method must not read from ``stream``.
        """
        return len(data)

    def on_write(self, stream: IOStream) -> Awaitable[None] | None:
        """The kernel has accepted all data that this client's callbacks, or the server's ``broadcast``, have written to
        ``stream``. (Data that other code writes is reported together with the next data of these.)"""
        return None

    def on_disconnect(self, stream: IOStream, unread: bytes, error: str) -> Awaitable[None] | None:
        """A client has disconnected.

        :param stream: the closed stream; ``stream.close_reason`` is the reason.
        :param unread: data that was received and not consumed by ``on_data``.
        :param error: the error as text, or the message of ``kick()``; "" after an orderly close by either side.
        """
        return None

    def on_error(self, stream: IOStream, error: StreamClosedError) -> Awaitable[None] | None:
        """A connection failed; ``on_disconnect`` follows. Or a client was rejected because the server is full: then
        ``error.reason`` is ``rejected``, and there is neither an ``on_connect`` nor an ``on_disconnect``.

        :param error: has ``operation``, ``reason``, ``errno`` and ``real_error``, which may be an exception of a
            callback.
        """
        return None

    def on_tick(self, stream: IOStream) -> Awaitable[None] | None:
        """``tick_interval`` has passed. Ticks that are due while another callback runs are combined into one after
        it."""
        return None

    # ---- running

    def broadcast(
        self, data: bytes | bytearray | memoryview, exclude: IOStream | Iterable[IOStream] = (), slow: Slow = "drop"
    ) -> "Future[int]":
        sent = super().broadcast(data, exclude, slow)
        for session in self._client_sessions.values():
            session.watch_writes()
        return sent

    broadcast.__doc__ = TCPServer.broadcast.__doc__

    async def shutdown(self, timeout: float | EllipsisType | None = ...) -> None:
        await super().shutdown(timeout)
        for session in self._client_sessions.values():  # the only ones left are those whose callback has called this
            session.ending = True

    shutdown.__doc__ = TCPServer.shutdown.__doc__

    async def serve_forever(self) -> None:
        self._run_unstarted()
        await super().serve_forever()

    serve_forever.__doc__ = TCPServer.serve_forever.__doc__

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        """For the server: serve one client by calls of the callbacks."""
        if stream.closed():  # before on_connect
            return
        reports_writes = is_overridden(self, CallbackServer, "on_write")
        session = self._client_sessions[stream.id] = Session(self, stream, reports_writes, self._forget)
        if self.tick_interval is not None and self._ticking is None:
            self._tick_later(stream.io_loop, self.tick_interval)
        await session.run()

    def handle_close(self, stream: IOStream, reason: CloseReason) -> Awaitable[None] | None:
        """For the server: a client's stream was closed."""
        session = self._client_sessions.get(stream.id)
        return None if session is None else session.closed(reason)

    def _forget(self, stream: IOStream) -> None:
        del self._client_sessions[stream.id]
        if not self._client_sessions and self._ticking is not None:
            stream.io_loop.remove_timeout(self._ticking)
            self._ticking = None

    def _tick_later(self, io_loop: IOLoop, interval: float) -> None:
        self._ticking = Context().run(io_loop.call_later, interval, self._tick)

    def _tick(self) -> None:
        assert self.tick_interval is not None
        self._tick_later(IOLoop.current(), self.tick_interval)
        for session in list(self._client_sessions.values()):
            session.notify(self.on_tick)

    def _listening(self, event: Event) -> None:
        self._run_soon(self.on_listen(event.address))

    def _rejected(self, event: Event) -> None:
        if isinstance(event.stream, IOStream):
            self._run_soon(
                self.on_error(event.stream, StreamClosedError(None, "accept", event.reason, event.stream.id))
            )

    def _run_soon(self, result: Awaitable[None] | None) -> None:
        """If a callback that belongs to no client has returned a coroutine, run it on the first loop that runs. After a
        ``listen()`` outside of a loop that may be another loop than the current one."""
        if isawaitable(result):
            self._unstarted.append((copy_context(), self._logging(result)))
            Context().run(current_loop().add_callback, self._run_unstarted)

    async def _logging(self, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as error:
            text = f"Exception in callback of {type(self).__name__}"
            raised = CloseReason.HANDLER_ERROR
            core_of(self).events.emit(Event("error", text, logging.ERROR, reason=raised, error=error))

    def _run_unstarted(self) -> None:
        while self._unstarted:
            context, result = self._unstarted.pop(0)
            context.run(IOLoop.current().add_callback, lambda result=result: result)


CALLBACKS = {
    name: tuple(signature(method).parameters)[1:]
    for name, method in vars(CallbackServer).items()
    if name.startswith("on_")
}
"""The names of the callbacks, each with those of its parameters."""
