"""The server that is to pass."""

from typing import Any

import iostreamsrv

from .child import BACKLOG, Surroundings
from .guards import SWITCHES
from .handlers import HANDLERS


class Server(iostreamsrv.TCPServer):
    surroundings: Surroundings

    async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
        await HANDLERS[self.surroundings.behaviour](stream, self.surroundings.tally)


def serve(surroundings: Surroundings) -> None:
    if surroundings.without is not None:
        SWITCHES[surroundings.without]()
    server = Server(ssl_options=surroundings.files, **surroundings.options)
    server.surroundings = surroundings
    server.listen(0, "127.0.0.1", backlog=BACKLOG)
    io_loop: Any = iostreamsrv.IOLoop.current()
    loop = io_loop.asyncio_loop
    loop.call_soon(loop.call_soon, surroundings.listening, loop, server.addresses[0])  # when all its tasks are there
    iostreamsrv.run(server)
