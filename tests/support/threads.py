"""What tests of servers for threads need: calls in threads of their own, and clients that are plain sockets."""

import contextlib
import hashlib
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from iostreamsrv.styles import BlockingServer, Handle, Notice, QueueServer, SendQueue
from tests.support.programs import PATIENCE
from tests.support.programs import eventually as eventually_seen

MEBIBYTE = 1 << 20


def others() -> set[threading.Thread]:
    """All threads but the watchdog, which ends by itself when there are no more clients."""
    return {thread for thread in threading.enumerate() if thread.name != "iostreamsrv watchdog"}


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: function(*arguments, **keywords)
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What it returned; or what it raised is raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "it goes on and on"
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def serving(kind: type[BlockingServer] = BlockingServer, **options: Any) -> Iterator[Any]:
    """A `BlockingServer` that listens, until the end of the ``with``."""
    with kind(**options) as server:
        server.listen(0, "127.0.0.1")
        yield server


@contextlib.contextmanager
def queues(callback: Callable[..., Any], **options: Any) -> Iterator[QueueServer]:
    """A `QueueServer` that runs in a thread, until the end of the ``with``."""
    server = QueueServer("localhost", 0, callback, **options)
    running = Call(server.run)
    try:
        yield server
    finally:
        server.stop()
        running.result()


def connect(server: BlockingServer | QueueServer | Any) -> socket.socket:
    """A client, which waits no longer than a test may take."""
    if isinstance(server, BlockingServer):
        address = server.addresses[0]
    else:
        address = ("127.0.0.1", server.port) if isinstance(server, QueueServer) else server
    return socket.create_connection(address, PATIENCE)


def eventually(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds."""
    eventually_seen(condition, lambda: "it never held")


def exactly(sock: Any, count: int) -> bytes:
    """So many bytes."""
    received = bytearray()
    while len(received) < count:
        chunk = sock.recv(min(MEBIBYTE, count - len(received)))
        assert chunk, f"the end came after {len(received)} bytes"
        received += chunk
    return bytes(received)


def everything(sock: Any) -> bytes:
    """What comes until the end."""
    return b"".join(iter(lambda: sock.recv(MEBIBYTE), b""))


def digest(data: bytes) -> str:
    """What stands for many bytes where two of them are compared."""
    return hashlib.sha256(data).hexdigest()


def reset(sock: socket.socket) -> None:
    """End the connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def descriptors_for(clients: int) -> Iterator[None]:
    """Enough for so many clients and the server's ends of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * clients + 500)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def put_back(queue: SendQueue, data: bytes) -> None:
    queue.put(data)


def asks(client: socket.socket, text: bytes) -> bool:
    """Whether ``text`` comes back."""
    client.sendall(text)
    return exactly(client, len(text)) == text


class Notes:
    """A ``notify`` that notes what it is told, and then does what it was given to do."""

    def __init__(self, **actions: Any) -> None:
        self.told: list[Notice] = []
        self.handles: list[Handle] = []
        self._actions = actions

    def __call__(self, handle: Handle, notice: Notice) -> None:
        self._actions.get(notice, lambda handle: None)(handle)
        self.handles.append(handle)
        self.told.append(notice)

    def wait_for(self, *notices: Notice) -> None:
        eventually(lambda: self.told == list(notices))


def send_back(handle: Handle) -> None:
    handle.sendall(handle.recv(1024))
