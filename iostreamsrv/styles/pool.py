"""Threads that serve one client each, with a socket."""

import asyncio
import os
import socket
import threading
from asyncio import Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any

from ..addresses import show
from ..errors import of_stream
from ..iostream import IOStream
from ..logs import general
from .crossing import set_done

Serve = Callable[[Any, Any], None]


class Pool:
    """A bounded number of threads. They are made as they are needed.

    :ivar threads: those there are.
    :ivar free: is acquired for a call, and released after it.
    """

    def __init__(self, most: int) -> None:
        self.threads: list[threading.Thread] = []
        self.free = asyncio.Semaphore(most)
        self._executor = ThreadPoolExecutor(most, "handle", initializer=self._begin)

    def _begin(self) -> None:
        self.threads.append(threading.current_thread())

    def call(self, serve: Serve, sock: Any, address: Any) -> "Future[None]":
        """In the loop: have ``serve`` called in a thread. The future raises what it raises, but for what a client does
        to a socket.

        It runs in a copy of the present context: a thread would keep what the call for one client sets for the next.
        """
        call = partial(copy_context().run, _call, serve, sock, address)
        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    def stop(self) -> None:
        """Let the threads end that have nothing to do; the others, when they have done it."""
        self._executor.shutdown(wait=False)


def _call(serve: Serve, sock: Any, address: Any) -> None:
    try:
        serve(sock, address)
    except (BrokenPipeError, ConnectionAbortedError, ConnectionResetError, TimeoutError) as error:
        if getattr(error, "stream_id", None) != sock.stream.id:  # that of another peer, whom the handler asked
            raise
        general.debug("%s: handle() ended: %s", show(address), error)
    except SystemExit:
        pass  # which ends a thread, as a rule
    finally:
        if isinstance(sock, ClientSocket):
            sock.leave()


class ClientSocket(socket.socket):
    """A socket for a thread, on the connection of a stream.

    :ivar stream: the stream.
    :ivar closed: done when the thread has closed it.
    """

    def __init__(self, stream: IOStream, post: Callable[[Callable[[], object]], None]) -> None:
        super().__init__(fileno=os.dup(stream.fileno()))
        self.stream = stream
        self.closed: Future[None] = asyncio.get_running_loop().create_future()
        self._tell: Callable[[], None] | None = partial(post, partial(set_done, self.closed))

    def close(self) -> None:
        super().close()
        if self.fileno() < 0 and self._tell is not None:  # else there is a makefile(), whose close comes by here
            self._tell()

    def leave(self) -> None:
        """Close it, and say nothing: it is the thread's last deed."""
        self._tell = None
        self.close()

    def wake(self, how: int) -> None:
        """Have a thread that waits for it see its end."""
        try:
            self.shutdown(how)
        except OSError:
            pass  # it has ended already


def _knowing_its_stream(name: str) -> Callable[..., Any]:
    """A socket's method whose errors tell whose they are."""
    method = getattr(socket.socket, name)

    @wraps(method)
    def call(sock: ClientSocket, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(sock, *arguments, **keywords)
        except OSError as error:
            of_stream(error, sock.stream.id)
            raise

    return call


for _name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "send", "sendall", "sendfile", "sendto"):
    setattr(ClientSocket, _name, _knowing_its_stream(_name))
for _name in ("recvmsg", "recvmsg_into", "sendmsg"):
    if hasattr(socket.socket, _name):  # not on Windows
        setattr(ClientSocket, _name, _knowing_its_stream(_name))
