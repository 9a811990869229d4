"""What `tests.supervisor.test_serving` serves."""

import os
from typing import Any

import iostreamsrv


class Server(iostreamsrv.TCPServer):
    """Answers each line with the number of its process."""

    async def handle_stream(self, stream: iostreamsrv.IOStream, address: Any) -> None:
        while True:
            await stream.read_until(b"\n")
            await stream.write(b"%d\n" % os.getpid())
