"""A server that relies on what Tornado's does: its limits, and that a stream stays open when its handler returns."""

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from tornado.netutil import add_accept_handler, bind_sockets, bind_unix_socket
from tornado.tcpclient import TCPClient
from tornado.tcpserver import TCPServer

BIG = 3 << 20
"""Bytes: more than our servers buffer, or queue, by default."""


class Server(TCPServer):
    idle_timeout = 0.01  # its author's own, which Tornado knows nothing of
    write_timeouts = 3

    async def handle_stream(self, stream: IOStream, address: object) -> None:
        self.stream, self.queued, self.returned = stream, asyncio.Event(), asyncio.Event()
        while (line := await stream.read_until(b"\n")) != b"return\n":
            if line == b"queue\n":
                for _ in range(3):  # not awaited, and its client does not read yet
                    stream.write(b"y" * BIG)
                self.queued.set()
            await stream.write(line)
        self.returned.set()


async def main() -> None:
    server = Server()
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    port = sockets[0].getsockname()[1]
    print(isinstance(server, TCPServer), server.ssl_options)
    stream = await TCPClient().connect("127.0.0.1", port)
    await stream.write(b"z" * BIG + b"\n")
    print(len(await stream.read_until(b"\n")))
    await stream.write(b"queue\n")
    await server.queued.wait()
    print(len(await stream.read_bytes(3 * BIG)), await stream.read_until(b"\n"))
    await stream.write(b"return\n")
    await server.returned.wait()
    for _ in range(3):  # turns of the loop, in which the stream might be closed
        await asyncio.sleep(0)
    print("open:", not server.stream.closed())
    await server.stream.write(b"later\n")
    print(await stream.read_until(b"\n"))
    await server.stream.write(b"no end of line")
    try:
        await stream.read_until(b"\n", max_bytes=5)
    except StreamClosedError as error:
        print(isinstance(error.real_error, UnsatisfiableReadError), stream.closed())
    await unix_sockets()
    server.stop()
    print(type(stream).__module__, type(server).__mro__[1].__module__, file=sys.stderr)


async def unix_sockets() -> None:
    """One takes the place of another one, which still listens."""
    accepted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = str(Path(folder, "socket"))
        for name in "old", "new":
            listener = stack.enter_context(bind_unix_socket(path))
            remove = add_accept_handler(
                listener, lambda connection, address, name=name: (connection.close(), accepted.set_result(name))
            )
            stack.callback(remove)
        _, writer = await asyncio.open_unix_connection(path)
        print(await accepted)
        writer.close()


asyncio.run(main())
