"""``run``: serve until a signal ends the program."""

import asyncio
import functools
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from tornado.ioloop import IOLoop

from .cleanup import end_loop, known_executor
from .exports import set_module
from .loops import asyncio_loop, current_loop
from .rlimit import raise_limit
from .signals import handle_signal, remove_signal_handlers, signals_restored
from .stops import stop_requests


class Servable(Protocol):
    """What :func:`run` takes as a server."""

    def serve_forever(self) -> Awaitable[None]:
        """Serve until stopped or cancelled."""


@functools.singledispatch
def inside(main: object) -> Any:
    """Where to find the options and the certificates of what `run` was given. For a server of this package that is its
    core: the attributes of a server may be the user's."""
    return main


@set_module("iostreamsrv.ioloop")
def run(main: Servable | Awaitable[Any] | Callable[[], Awaitable[Any]]) -> None:
    """Run a server, or a coroutine, until it ends or SIGINT (Ctrl-C) or SIGTERM comes; then return. ::

        server = EchoServer()
        server.listen(8888)
        iostreamsrv.run(server)

    The first signal shuts a server down gracefully (`TCPServer.shutdown`): its handlers may finish. The second one ends
    it at once, and the third one has its default effect: it kills the process. A coroutine is cancelled by each signal.
    Then the remaining tasks of the loop are cancelled and the loop is closed. SIGHUP reloads a server's certificates
    (`TCPServer.reload_certificates`); the files are read in another thread. Ignored signals stay ignored, as in a
    program started with ``nohup`` or in the background of a script. At the end the previous signal handlers are
    restored. Must be called from the main thread, outside any loop; inside a loop use ``await server.serve_forever()``.

    Tasks that ignore their cancellation, and threads of ``asyncio.to_thread``, are waited for 1 s, then abandoned with
    a warning. A thread cannot be stopped: Python waits for it when the program ends, so give its work a timeout, or end
    the program by `os._exit`.

    First of all the soft limit of open descriptors is raised, as far as the hard limit allows, to what
    ``max_connections`` needs.

    :param main: a server that is listening, a coroutine, or a function that returns one.
    :raises RuntimeError: a loop is already running in this thread.
    :raises Exception: what the server or the coroutine raises.
    """
    if isinstance(main, type):
        raise TypeError(f"run() takes a server, not its class: {main.__name__}()")
    io_loop = current_loop()
    loop = asyncio_loop(io_loop)
    if loop.is_running():
        raise RuntimeError("iostreamsrv.run() inside a running loop: use `await server.serve_forever()` there")
    raise_limit(getattr(getattr(inside(main), "options", None), "max_connections", None))
    run_to_end(io_loop, _until_signal(loop, main))


def run_to_end(io_loop: IOLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, then end all that is left in the loop, and close it. Signal handlers are restored."""
    loop = asyncio_loop(io_loop)
    executor = known_executor(loop)
    with signals_restored():
        try:
            loop.run_until_complete(main)
        finally:
            try:
                loop.run_until_complete(end_loop(loop, executor))
            finally:
                io_loop.close()
                asyncio.set_event_loop(None)


async def _until_signal(loop: asyncio.AbstractEventLoop, main: Any) -> None:
    on_hangup = certificate_reload(loop, main)
    reloading = [signal.SIGHUP] if getattr(inside(main), "certificates", None) and hasattr(signal, "SIGHUP") else []
    if hasattr(main, "serve_forever"):
        main = main.serve_forever()
    elif callable(main):
        main = main()
    task = asyncio.ensure_future(main)

    def on_signal() -> None:
        if stop_requests.by_signal() == 2:  # the next one has its default effect
            remove_signal_handlers(loop, stopping)

    stopping = [number for number in (signal.SIGINT, signal.SIGTERM) if handle_signal(loop, number, on_signal)]
    reloading = [number for number in reloading if handle_signal(loop, number, on_hangup)]
    try:
        with stop_requests.served(loop, task.cancel):
            await asyncio.wait([task])
    finally:
        remove_signal_handlers(loop, stopping + reloading)
    if not task.cancelled():
        task.result()


def certificate_reload(loop: asyncio.AbstractEventLoop, server: Any) -> Callable[[], None]:
    """The handler of SIGHUP: it reads the certificates of a server in another thread, then uses them in the loop.

    Each reload waits for the previous one. If two read at the same time, the older files could be used last.
    """
    last: asyncio.Task[None] | None = None

    async def reload(before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        for certificates in inside(server).certificates:
            await loop.run_in_executor(None, certificates.prepare)
        server.reload_certificates()

    def begin() -> None:
        nonlocal last
        last = loop.create_task(reload(last))

    return begin
