"""Start other interpreters: a worker, or one that checks whether the service would start."""

import os
import subprocess
import sys
from collections.abc import Iterable

WORKER = "iostreamsrv.supervisor.worker"


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
    return subprocess.Popen(command, pass_fds=(channel, *descriptors), stdin=subprocess.DEVNULL)


def start_again(*more: str, output: int) -> "subprocess.Popen[bytes]":
    """Start this program a second time.

    :param more: further arguments for it.
    :param output: the descriptor that its output goes to.
    :raises OSError: it can't be started.
    """
    command = [sys.executable, *sys.orig_argv[1:], *more]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def become_again(environment: dict[str, str]) -> None:
    """Replace this program by itself: the process, and what is inheritable, stay. Returns only by its exception.

    :raises OSError: it can't be started; nothing has changed.
    """
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})
