"""The event loop, which is Tornado's (and so wraps any asyncio loop, uvloop's too), and :func:`run`."""

import asyncio
import signal
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import tornado.ioloop
from tornado.ioloop import IOLoop

from .descriptors import raise_limit
from .exports import names_of

__all__ = ["IOLoop", "run"]

__getattr__, __dir__ = names_of(tornado.ioloop, globals())


CANCEL_ROUNDS = 3
"""How often run() cancels all tasks at its end: what ends may start another, as a handler's end does with a close."""


class Servable(Protocol):
    """What :func:`run` takes as a server."""

    def serve_forever(self) -> Awaitable[None]:
        """Serve until stopped or cancelled."""


def current_loop() -> IOLoop:
    """The running loop, else the one that is set for this thread, made and set if there is none yet."""
    with warnings.catch_warnings():
        # What Python 3.12 and 3.13 say of a program that listens first and runs a loop afterwards, as ours may.
        warnings.filterwarnings("ignore", "There is no current event loop", DeprecationWarning)
        return IOLoop.current()


def existing_loop() -> asyncio.AbstractEventLoop | None:
    """A loop that is open: the running one, the one that is set for this thread, or any there is an `IOLoop` for."""
    loops = (asyncio._get_running_loop(), _loop_that_is_set(), *IOLoop._ioloop_for_asyncio)
    return next((loop for loop in loops if loop is not None and not loop.is_closed()), None)


def _loop_that_is_set() -> asyncio.AbstractEventLoop | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = asyncio.get_event_loop_policy()
    # Not get_event_loop(): up to Python 3.13 it makes a loop where there is none.
    loop: asyncio.AbstractEventLoop | None = getattr(getattr(policy, "_local", None), "_loop", None)
    return loop


def run(main: Servable | Awaitable[Any] | Callable[[], Awaitable[Any]]) -> None:
    """Run a server, or a coroutine, until it ends or SIGINT (Ctrl-C) or SIGTERM comes; then return. ::

        server = EchoServer()
        server.listen(8888)
        iostreamsrv.run(server)

    A signal cancels what runs, which has a server shut down (`TCPServer.shutdown`): its clients may finish what they
    are at. A second one does so again, which ends a server at once; a third one kills. Then the remaining tasks of the
    loop are cancelled and the loop is closed. SIGHUP has a server with certificates read them again, in another thread,
    and take them (`TCPServer.reload_certificates`). For a program that has a loop of its own there is ``await
    server.serve_forever()``. Must be called from the main thread, outside any loop.

    Before anything else the soft limit of open descriptors is raised, as far as the hard one allows, to what
    ``max_connections`` asks for.

    :param main: a server that was told to ``listen``, a coroutine, or a function that makes one.
    :raises RuntimeError: a loop is running in this thread already.
    :raises Exception: what the server or the coroutine raises.
    """
    if isinstance(main, type):
        raise TypeError(f"run() takes a server, not its class: {main.__name__}()")
    io_loop = current_loop()
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    if loop.is_running():
        raise RuntimeError("iostreamsrv.run() inside a running loop: use `await server.serve_forever()` there")
    raise_limit(getattr(getattr(main, "options", None), "max_connections", None))
    try:
        loop.run_until_complete(_until_signal(loop, main))
    finally:
        try:
            loop.run_until_complete(_cancel_the_rest())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            io_loop.close()
            asyncio.set_event_loop(None)


async def _until_signal(loop: asyncio.AbstractEventLoop, main: Any) -> None:
    on_hangup = _reloads(loop, main)
    reloading = [signal.SIGHUP] if getattr(main, "certificates", None) and hasattr(signal, "SIGHUP") else []
    if hasattr(main, "serve_forever"):
        main = main.serve_forever()
    elif callable(main):
        main = main()
    task = asyncio.ensure_future(main)
    left = 2  # signals that are handled; the next one has its default effect

    def on_signal() -> None:
        nonlocal left
        left -= 1
        if not left:
            _remove_signal_handlers(loop, stopping)
        task.cancel()

    stopping = _add_signal_handlers(loop, on_signal)
    for number in reloading:
        loop.add_signal_handler(number, on_hangup)
    try:
        await asyncio.wait([task])
    finally:
        _remove_signal_handlers(loop, stopping + reloading)
    if not task.cancelled():
        task.result()


def _reloads(loop: asyncio.AbstractEventLoop, server: Any) -> Callable[[], None]:
    """What SIGHUP does: the files are read in another thread, and what they hold is taken in the loop.

    One reload waits for the one before it: of two that read at the same time the first could be taken last.
    """
    last: asyncio.Task[None] | None = None

    async def reload(before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        for certificates in server.certificates:
            await loop.run_in_executor(None, certificates.prepare)
        server.reload_certificates()

    def on_hangup() -> None:
        nonlocal last
        last = loop.create_task(reload(last))

    return on_hangup


def _add_signal_handlers(loop: asyncio.AbstractEventLoop, on_signal: Callable[[], None]) -> list[signal.Signals]:
    """Those of SIGINT and SIGTERM that could be handled: Windows has neither way, and Ctrl-C raises there."""
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal)
        except NotImplementedError:
            continue
        handled.append(number)
    return handled


def _remove_signal_handlers(loop: asyncio.AbstractEventLoop, numbers: list[signal.Signals]) -> None:
    for number in numbers:
        loop.remove_signal_handler(number)


async def _cancel_the_rest() -> None:
    for _ in range(CANCEL_ROUNDS):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
