"""The event loop, which is Tornado's (and so wraps any asyncio loop, uvloop's too), and :func:`run`."""

import asyncio
import contextlib
import signal
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol

import tornado.ioloop
from tornado.ioloop import IOLoop

from .runtime.clock import clock_of
from .runtime.exports import names_of
from .runtime.logs import general
from .runtime.rlimit import raise_limit

__all__ = ["IOLoop", "run"]

__getattr__, __dir__ = names_of(tornado.ioloop, globals())


PATIENCE = 1.0
"""Seconds that run() waits at its end for cancelled tasks, and for the threads of ``asyncio.to_thread``, in all.
Handlers have had their time before, in the shutdown."""

given_up: "weakref.WeakSet[asyncio.Future[Any]]" = weakref.WeakSet()
"""Tasks that go on in spite of a cancel, and were waited for already."""

LOOK = 0.01
"""Seconds between two looks whether those threads are done."""


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
    and take them (`TCPServer.reload_certificates`). A signal that is ignored stays so (as in a program started with
    ``nohup``, or in the background of a script), and in the end all are handled as before. For a program that has a
    loop of its own there is ``await server.serve_forever()``. Must be called from the main thread, outside any loop.

    Tasks that go on in spite of their cancel, and threads of ``asyncio.to_thread``, are waited for 1 s, and then left
    alone, with a warning. A thread cannot be ended: Python itself waits for it when the program ends, so give what it
    does a timeout, or end the program by `os._exit`.

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
    executor = _know_executor(loop)
    with signals_restored():
        try:
            loop.run_until_complete(_until_signal(loop, main))
        finally:
            try:
                loop.run_until_complete(_end_loop(loop, executor))
            finally:
                io_loop.close()
                asyncio.set_event_loop(None)


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """For the main thread: in the end, handle signals as before; a loop's own way is to leave the default."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:  # None: it is not Python's
                signal.signal(number, handler)
        with contextlib.suppress(ValueError, OSError):  # it was that of a loop that is closed by now
            signal.set_wakeup_fd(wakeup)


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those that are handled here; Windows has no SIGHUP."""


def handle_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], Any]) -> bool:
    """Have ``callback`` called in the loop for a signal; whether that can be: Windows has no way to, and one that is
    ignored is not for this program."""
    if signal.getsignal(number) is signal.SIG_IGN:
        return False
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:
        return False
    return True


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

    stopping = [number for number in (signal.SIGINT, signal.SIGTERM) if handle_signal(loop, number, on_signal)]
    reloading = [number for number in reloading if handle_signal(loop, number, on_hangup)]
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


def _remove_signal_handlers(loop: asyncio.AbstractEventLoop, numbers: list[signal.Signals]) -> None:
    for number in numbers:
        loop.remove_signal_handler(number)


async def _end_loop(loop: asyncio.AbstractEventLoop, executor: Executor | None) -> None:
    """The last thing a loop does."""
    late = clock_of(loop)() + PATIENCE
    await cancel_the_rest()
    await loop.shutdown_asyncgens()
    await _join_threads(loop, executor, late)


async def cancel_the_rest() -> None:
    """Cancel all other tasks of a loop that is about to be closed, those too that others start as they end, each of
    them once, and wait for their ends: for `PATIENCE` seconds, and not for those that were given up before."""
    cancelled: set[asyncio.Task[Any]] = set()
    loop = asyncio.get_running_loop()
    late = clock_of(loop)() + PATIENCE
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks - cancelled:
            task.cancel()
        cancelled |= tasks
        left = late - clock_of(loop)()
        if left <= 0 or tasks <= given_up:
            return _leave_alone(tasks)
        done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.exception()  # nobody else will ask


def _leave_alone(tasks: set[Any]) -> None:
    for task in tasks:
        task._log_destroy_pending = False  # this line says it
    names = ", ".join(sorted(f"{task.get_name()} ({_where(task)})" for task in tasks))
    general.warning("the loop ends, and these tasks do not, though they were cancelled: %s", names)


def _where(task: "asyncio.Task[Any]") -> str:
    """Which coroutine a task runs, and at which line it is."""
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    frames = task.get_stack(limit=1)
    return f"{name}, {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else name


def _know_executor(loop: asyncio.AbstractEventLoop) -> Executor | None:
    """Give a loop that does not show its executor, as uvloop does not, one that is known."""
    if hasattr(loop, "_default_executor"):
        return None
    executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
    loop.set_default_executor(executor)
    return executor


async def _join_threads(loop: asyncio.AbstractEventLoop, known: Executor | None, late: float) -> None:
    """Wait for the threads of ``asyncio.to_thread``, until the loop's time is ``late``. (What loops have for it waits
    without a limit in asyncio of Python 3.11 and in uvloop, and blocks the loop when it is cancelled.)"""
    executor: Executor | None = getattr(loop, "_default_executor", known)
    if executor is None:
        return
    joining = threading.Thread(target=executor.shutdown, daemon=True)
    joining.start()
    while joining.is_alive():
        if clock_of(loop)() > late:
            return _leave_threads(executor)
        await asyncio.sleep(LOOK)


def _leave_threads(executor: Executor) -> None:
    """A thread cannot be ended from outside; one that is idle has ended by now."""
    working = sum(thread.is_alive() for thread in getattr(executor, "_threads", ()))
    threads = {0: "threads of its executor are", 1: "1 thread of its executor is"}.get(
        working, f"{working} threads of its executor are"
    )
    general.warning("the loop ends, and %s still at work; Python waits for them before the program ends", threads)
