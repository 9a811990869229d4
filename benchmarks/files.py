"""File servers: the example, and a variant that reads and writes in a loop instead of ``sendfile``."""

import importlib
import socket
from typing import Any

from .machine import CHUNK


def example() -> Any:
    """``examples/file_server.py``, imported when it is needed."""
    return importlib.import_module("examples.file_server")


async def start_iostreamsrv(listener: socket.socket, directory: str) -> object:
    server = example().FileServer(directory)
    server.add_socket(listener)
    return server


async def start_copying(listener: socket.socket, directory: str) -> object:
    class Copying(example().FileServer):  # type: ignore[misc]
        async def answer(self, stream: Any, file: Any, size: int) -> None:
            await stream.write(b"SIZE %d\n" % size)
            while chunk := file.read(CHUNK):
                await stream.write(chunk)

    server = Copying(directory)
    server.add_socket(listener)
    return server


FILE_SERVERS = {"iostreamsrv": start_iostreamsrv, "iostreamsrv, read and write": start_copying}
