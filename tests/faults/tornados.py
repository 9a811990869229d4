"""Tornado's server, as its documentation has one write it."""

import asyncio
import signal
import ssl
from typing import Any

from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

from .child import BACKLOG, Surroundings, port_of
from .handlers import HANDLERS


class Server(TCPServer):
    surroundings: Surroundings

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        if "proxy_protocol" in self.surroundings.options:
            stream = await self._unwrap(stream)
        await HANDLERS[self.surroundings.behaviour](stream, self.surroundings.tally)
        stream.close()

    async def _unwrap(self, stream: IOStream) -> IOStream:
        """Read the PROXY header, which Tornado does not know, and begin with TLS behind it."""
        await stream.read_until(b"\r\n")
        return await stream.start_tls(True, server_context(self.surroundings.files))


def server_context(files: dict[str, str] | None) -> ssl.SSLContext:
    assert files is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(**files)
    return context


def serve(surroundings: Surroundings) -> None:
    asyncio.run(_serve(surroundings))


async def _serve(surroundings: Surroundings) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it has nothing to reload certificates with
    under_tls = surroundings.files is not None and "proxy_protocol" not in surroundings.options
    server = Server(ssl_options=server_context(surroundings.files) if under_tls else None)
    server.surroundings = surroundings
    listeners = bind_sockets(0, "127.0.0.1", backlog=BACKLOG)
    server.add_sockets(listeners)
    surroundings.listening(asyncio.get_running_loop(), port_of(listeners[0]))
    await asyncio.Event().wait()
