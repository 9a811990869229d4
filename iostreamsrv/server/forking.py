"""The fork of `TCPServer.start` with several processes."""

import threading
from collections.abc import Callable

from tornado import process

from ..runtime.loops import existing_loop


def fork_workers(num_processes: int | None, max_restarts: int | None, stop: Callable[[], None]) -> None:
    """Fork, and return in each worker. The first process stays in this call until all workers have ended, then exits.

    :param stop: called before the first process exits.
    :raises RuntimeError: this is not the main thread, or this process is a worker already, or a loop exists.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start() with more than one process forks, which only the main thread may do")
    if process.task_id() is not None:
        raise RuntimeError("start() with more than one process forks, and this process is a worker: start(1) here")
    loop = existing_loop()
    if loop is not None:
        raise RuntimeError(
            f"start() with more than one process forks, and there is a loop already, which the workers would share:"
            f" {loop}. Call bind() and start() before anything makes a loop (listen(), a stream, asyncio.run())"
        )
    try:
        process.fork_processes(num_processes, max_restarts)
    except BaseException:  # usually SystemExit; only in the first process
        stop()
        raise
