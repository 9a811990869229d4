"""Start other interpreters: a worker, or one that checks whether the service would start."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable

WORKER = "iostreamsrv.supervisor.worker"


IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
"""What is for the supervisor only, and a worker ignores. A terminal sends SIGINT and SIGHUP to all processes."""


def interpreter() -> list[str]:
    """The command of this interpreter, with the options that it was started with (``-X dev``, ``-W error`` ...)."""
    options: list[str] = []
    for each in sys.orig_argv[1:]:
        of_option = bool(options) and options[-1] in ("-X", "-W")
        if not of_option and (not each.startswith("-") or each in ("-m", "-c", "-")):
            break
        options.append(each)
    return [sys.executable, *options]


def start_worker(channel: int, target: str, descriptors: Iterable[int]) -> "subprocess.Popen[bytes]":
    """Start a worker in a fresh interpreter. It does nothing before the first message on its channel.

    :param channel: the descriptor of its end of the channel, and
    :param descriptors: what else it keeps: under the same numbers.
    :param target: for those who list the processes.
    :raises OSError: it can't be started.
    """
    command = [*interpreter(), "-m", WORKER, str(channel), target]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # until the worker ignores them, a moment later
    try:
        return subprocess.Popen(command, pass_fds=(channel, *descriptors), stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_again(*more: str, output: int) -> "subprocess.Popen[bytes]":
    """Start this program a second time.

    :param more: further options for its command ``serve``.
    :param output: the descriptor that its output goes to.
    :raises OSError: it can't be started.
    """
    words = sys.orig_argv[1:]
    after = words.index("serve") + 1 if "serve" in words else len(words)
    command = [sys.executable, *words[:after], *more, *words[after:]]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def become_again(environment: dict[str, str]) -> None:
    """Replace this program by itself: the process, and what is inheritable, stay. Returns only by its exception.

    :raises OSError: it can't be started; nothing has changed.
    """
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})
