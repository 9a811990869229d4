"""Clients that survive new code: a worker hands them over to the one that takes its place.

Both workers are connected by a pair of sockets. For each client the old one asks the server what to remember
(``handle_handover``), detaches the stream, and sends the descriptor and the rest. The new one makes a stream of it,
unpickles the rest, and says that it is ready. Then the old one says *go*, and closes its copy of the descriptor: from
there on the client is the new one's, which calls ``handle_resume``. So a client waits for a round trip and a half
between two processes, and never do both of them read from it.

- If the new one refuses, ends, or says nothing for `ANSWER` seconds, there is no *go*. The old one serves the client
  again, by the same method. A new one that has only been slow closes its copy, from which it has read nothing.
- If the old one dies before *go*, the client that is on its way is closed, as are all others that it has.
- If the new one dies after *go*, or hangs then, its client shares the fate of all others that it has.

What is handed over is trusted: it comes from another worker of the same service.
"""

import asyncio
import contextlib
import logging
import pickle
import socket
import struct
from contextvars import Context, copy_context
from typing import Any

from ..errors import CloseReason
from ..events import Event
from ..iostream import DetachedStream, IOStream, SSLIOStream
from ..runtime.clock import clock_of
from .connections import Connections
from .handlers import client_name
from .shutdown import clients

PATIENCE = 10.0
"""Seconds in which a worker tries to hand its clients over. Those that were busy all the time retire with it."""

TICK = 0.01
"""Seconds between two looks for clients that wait."""

ANSWER = 5.0
"""Seconds for the other worker to say that it is ready for a client."""

READY = b"+"
REFUSED = b"-"
GO = b"!"

_SIZE = struct.Struct("!Q")


def hands_over(connections: Connections) -> bool:
    """Whether users have written both methods."""
    return connections.overrides("handle_handover") and connections.overrides("handle_resume")


def resume(connections: Connections, detached: DetachedStream, state: Any) -> IOStream:
    """Serve a client that another stream has left. It has had its place: no limit is asked."""
    address = detached.remote_address
    stream = connections.new_stream(detached.socket, address, copy_context())
    stream.restore(detached)
    connections.open[stream.id] = stream
    connections.limits.resumed(stream)
    connections.handlers.resume(stream, state)
    return stream


class Giver:
    """Hands the clients of a server over.

    :param other: the end of a pair of sockets. It is closed in the end.
    """

    def __init__(self, connections: Connections, other: socket.socket) -> None:
        self._connections = connections
        self._other = other
        self._kept: set[int] = set()  # the ids of streams that can't go
        self._count = 0

    async def give_all(self) -> None:
        """Hand over all clients that can go.

        A client can go when its handler waits in a read, and no output is queued: between two turns of a handler that
        is soon. One under TLS can't: its keys stay in this process.
        """
        time = clock_of(asyncio.get_running_loop())
        end = time() + PATIENCE
        with self._other:
            self._other.setblocking(False)
            while time() < end and not self._connections.draining:
                for stream in list(self._connections.open.values()):
                    if self._can_go(stream) and not await self._give(stream):
                        return self._report()
                if not self._left():
                    break
                await asyncio.sleep(TICK)
        self._report()

    def _report(self) -> None:
        left = self._connections.open.values()
        tls = sum(isinstance(stream, SSLIOStream) for stream in left)
        why = f" ({tls} under TLS, whose keys stay in the process; {len(left) - tls} for other reasons)" if left else ""
        text = f"handed over: {clients(self._count)}; {clients(len(left))} here until they leave{why}"
        self._connections.events.emit(Event("shutdown", text, logging.INFO, reason=CloseReason.DETACHED))

    def _left(self) -> bool:
        return any(id not in self._kept for id in self._connections.open)

    def _can_go(self, stream: IOStream) -> bool:
        if stream.id in self._kept or stream.closed():
            return False
        if type(stream) is not IOStream or self._connections.is_rejected(stream):
            self._kept.add(stream.id)
            return False
        return stream.has_handler and stream.reading() and not stream.writing() and stream.close_reason is None

    async def _give(self, stream: IOStream) -> bool:
        """Hand one over; return whether the other end is still there."""
        packed = self._packed(stream)
        if packed is None:
            self._kept.add(stream.id)
            return True
        state, data = packed
        self._connections.limits.hand_over(stream)
        try:
            detached = stream.detach()
        except (OSError, RuntimeError, ValueError):  # it has just closed, or has output now
            self._connections.limits.keep(stream)
            return True
        rest = pickle.dumps((detached.unread, _plain(detached)))
        answer = b""
        try:
            async with asyncio.timeout(ANSWER):
                await self._send(detached.socket.fileno(), _SIZE.pack(len(data)) + data + rest)
                answer = await asyncio.get_running_loop().sock_recv(self._other, 1)
            if answer == READY:
                self._other.send(GO)  # there is room: the other end has read all before
                self._count += 1
                detached.socket.close()
                return True
        except OSError:  # TimeoutError is one
            answer = b""
        self._kept.add(resume(self._connections, detached, state).id)
        return answer == REFUSED

    def _packed(self, stream: IOStream) -> tuple[Any, bytes] | None:
        """What the server remembers, and that in bytes with the stream's ``data``; None if the client stays."""
        try:
            state = self._connections.server.handle_handover(stream)
            if state is NotImplemented:
                return None
            return state, pickle.dumps((state, stream.data))
        except Exception as error:
            text = f"{client_name(stream)} is not handed over: {error!r}"
            address = stream.remote_address
            self._connections.events.emit(
                Event("error", text, logging.ERROR, stream, address, CloseReason.HANDLER_ERROR, error)
            )
            return None

    async def _send(self, fd: int, payload: bytes) -> None:
        loop = asyncio.get_running_loop()
        head = _SIZE.pack(len(payload))
        while True:
            try:
                socket.send_fds(self._other, [head], [fd])
                break
            except BlockingIOError:
                await asyncio.sleep(TICK)
        await loop.sock_sendall(self._other, payload)


class Taker:
    """Takes clients from another worker until that has no more, or the server here is shut down.

    :param other: the end of a pair of sockets. It is closed in the end.
    """

    def __init__(self, connections: Connections, other: socket.socket) -> None:
        self._connections = connections
        self._other = other

    async def take_all(self) -> None:
        """Serve all clients that come."""
        draining = asyncio.get_running_loop().create_task(self._connections.wait_draining(), context=Context())
        try:
            with self._other:
                self._other.setblocking(False)
                while (head := await self._head(draining)) is not None:
                    if not await self._take(*head, draining):
                        return
        finally:
            draining.cancel()

    async def _head(self, draining: "asyncio.Task[None]") -> tuple[int, int] | None:
        """The size of what follows, and the descriptor; None if no more come, or none may."""
        loop = asyncio.get_running_loop()
        while not draining.done():
            try:
                head, fds, _, _ = socket.recv_fds(self._other, _SIZE.size, 1)
                break
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(self._other, _set, readable)
                try:
                    await asyncio.wait([readable, draining], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    loop.remove_reader(self._other)
            except OSError:
                return None
        else:
            return None
        if len(head) < _SIZE.size or not fds:
            return None
        return _SIZE.unpack(head)[0], fds[0]

    async def _take(self, size: int, fd: int, draining: "asyncio.Task[None]") -> bool:
        """Serve a client, or refuse it; return whether more may come."""
        loop = asyncio.get_running_loop()
        connection = socket.socket(fileno=fd)
        connection.set_inheritable(False)
        connection.setblocking(False)
        try:
            payload = await self._exactly(size)
            (length,) = _SIZE.unpack_from(payload)
            state, data = pickle.loads(payload[_SIZE.size : _SIZE.size + length])
            unread, plain = pickle.loads(payload[_SIZE.size + length :])
            go = await self._ask_for_go(draining)
        except (EOFError, OSError):  # the other worker has ended
            connection.close()
            return False
        except Exception as error:  # what the new code can't unpickle
            connection.close()
            text = f"a client is not taken over: {error!r}"
            self._connections.events.emit(Event("error", text, logging.ERROR, error=error))
            with contextlib.suppress(OSError):
                await loop.sock_sendall(self._other, REFUSED)
            return True
        if not go:
            connection.close()
            return False
        detached = DetachedStream(socket=connection, unread=unread, data=data, **plain)
        resume(self._connections, detached, state)
        return True

    async def _ask_for_go(self, draining: "asyncio.Task[None]") -> bool:
        """Whether the client is this worker's now."""
        loop = asyncio.get_running_loop()
        refuse = draining.done() or self._connections.draining
        try:
            await loop.sock_sendall(self._other, REFUSED if refuse else READY)
            return not refuse and await loop.sock_recv(self._other, 1) == GO
        except OSError:
            return False

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            chunk = await loop.sock_recv(self._other, size - len(data))
            if not chunk:
                raise EOFError("the other worker has ended")
            data += chunk
        return bytes(data)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _plain(detached: DetachedStream) -> dict[str, Any]:
    """What is always the same kind of thing."""
    return {
        "remote_address": detached.remote_address,
        "proxy": detached.proxy,
        "opened_at": detached.opened_at,
        "bytes_read": detached.bytes_read,
        "bytes_written": detached.bytes_written,
    }
