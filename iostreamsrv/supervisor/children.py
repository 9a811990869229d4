"""The processes of the workers, as the first process has them: started, told, killed, reaped."""

import contextlib
import errno
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..server.scoreboard import TOTALS, Scoreboard
from . import spawn
from .channel import Channel, Message

ROWS = 256
"""Workers at a time, retired ones included."""

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True, eq=False)
class Child:
    """The process of one worker, until it has been reaped.

    :ivar number: the plan's number for it.
    :ivar row: its row of the scoreboard.
    :ivar process: None if the supervisor before this one has started it.
    :ivar hands_over: whether the worker after it may take over its clients.
    """

    number: int
    pid: int
    row: int
    channel: Channel
    process: "subprocess.Popen[bytes] | None" = None
    hands_over: bool = False


class Children:
    """The processes of the workers.

    :param selector: watches their channels.
    :param on_word: called with the number of a worker and its message.
    """

    def __init__(
        self, selector: selectors.BaseSelector, scoreboard: Scoreboard, on_word: Callable[[int, Message], None]
    ) -> None:
        self._selector = selector
        self.scoreboard = scoreboard
        self._lifeline, self._held = os.pipe()  # when this process ends, the workers see its end
        self._on_word = on_word
        self._children: dict[int, Child] = {}

    @property
    def numbers(self) -> list[int]:
        """Of all workers."""
        return list(self._children)

    # ---- start

    def start(self, number: int, job: dict[str, Any], target: str, listeners: Iterable[int]) -> None:
        """Start a worker.

        :param job: what it gets as its first message, but for what is known only here.
        :param listeners: the descriptors of the sockets that it accepts on.
        :raises OSError: there are too many, or no process or descriptor is to be had.
        """
        row = self._free_row()
        mine, its = Channel.pair()
        with contextlib.closing(its):
            try:
                process = spawn.start_worker(its.fileno(), target, (self.scoreboard_fd, self._lifeline, *listeners))
            except BaseException:
                mine.close()
                raise
        child = Child(number, process.pid, row, mine, process)
        self._children[number] = child
        self._watch(child)
        mine.send("serve", **job, number=number, scoreboard=self.scoreboard_fd, row=child.row, lifeline=self._lifeline)

    def _free_row(self) -> int:
        used = {child.row for child in self._children.values()}
        row = next((row for row in range(self.scoreboard.rows) if row not in used), None)
        if row is None:
            raise OSError(errno.EAGAIN, f"there are {len(used)} workers, and there may be no more")
        return row

    def _watch(self, child: Child) -> None:
        self._selector.register(child.channel, selectors.EVENT_READ, lambda: self._hear(child))

    def _hear(self, child: Child) -> None:
        if child.number not in self._children:  # it was reaped since the selector has found this
            return
        messages = child.channel.receive()
        if messages is None:  # it ends; what there is to do is done when it is reaped
            self._selector.unregister(child.channel)
        for message in messages or ():
            if message["type"] == "ready":
                child.hands_over = message["hands_over"]
            self._on_word(child.number, message)

    # ---- tell

    def tell(self, number: int, word: str, **fields: Any) -> None:
        """Send a worker a word, if it has not ended."""
        if number in self._children:
            self._children[number].channel.send(word, **fields)

    def tell_all(self, word: str) -> None:
        """Send a word to all workers."""
        for child in self._children.values():
            child.channel.send(word)

    def introduce(self, number: int, successor: int) -> None:
        """Connect two workers, so that one can hand its clients over to the other. Without a descriptor to spare, or if
        one of them has ended, the clients stay where they are."""
        if not {number, successor} <= self._children.keys():
            return
        with contextlib.suppress(OSError):
            one, other = socket.socketpair()
            with one, other:
                self._children[successor].channel.send("take_over", (other.fileno(),))
                self._children[number].channel.send("hand_over", (one.fileno(),))

    def hands_over(self, number: int) -> bool:
        """Whether a worker has clients that the one after it may take over."""
        return number in self._children and self._children[number].hands_over

    def signal(self, number: int, which: signal.Signals) -> None:
        """Send a worker a signal, if it has not been reaped: then its number may be another process's."""
        if number in self._children:
            os.kill(self._children[number].pid, which)

    # ---- the end

    def reaped(self, pid: int, code: int) -> int | None:
        """Note that a process has ended; return the number of the worker that it was."""
        child = next((each for each in self._children.values() if each.pid == pid), None)
        if child is None:
            return None
        if child.channel.fileno() in self._selector.get_map():
            self._hear(child)  # its last words
        if child.channel.fileno() in self._selector.get_map():
            self._selector.unregister(child.channel)
        child.channel.close()
        if child.process is not None:
            child.process.returncode = code  # or its destructor complains
        self.scoreboard.fold(child.row)
        del self._children[child.number]
        return child.number

    # ---- looks

    @property
    def scoreboard_fd(self) -> int:
        """The descriptor of the scoreboard."""
        assert self.scoreboard.fd is not None, "checked when it was made"
        return self.scoreboard.fd

    def silent(self, number: int, now_ns: int) -> float:
        """Seconds since the loop of a worker ran last."""
        heartbeat = self.scoreboard.row(self._children[number].row).heartbeat
        return (now_ns - heartbeat) / 1e9 if heartbeat else 0.0

    def accepted(self, number: int) -> int:
        """How many connections a worker has accepted, but for those that it has rejected."""
        row = self.scoreboard.row(self._children[number].row)
        return row.accepted - row.rejected

    def resident(self, number: int) -> int:
        """The resident memory of a worker in bytes; 0 where that is not known."""
        try:
            return int(Path(f"/proc/{self._children[number].pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def figures(self, number: int, now_ns: int) -> dict[str, int | float | None]:
        """What is known of a worker, by names; empty if it has been reaped."""
        if number not in self._children:
            return {}
        child = self._children[number]
        row = self.scoreboard.row(child.row)
        return {
            "pid": child.pid,
            **{name: getattr(row, name) for name in TOTALS},
            "heartbeat_age": self.silent(number, now_ns) if row.heartbeat else None,
            "rss": self.resident(number),
        }

    # ---- through an upgrade

    @property
    def descriptors(self) -> list[int]:
        """Those that stay open through an upgrade."""
        channels = [child.channel.fileno() for child in self._children.values()]
        return [self.scoreboard_fd, self._lifeline, self._held, *channels]

    def to_json(self) -> dict[str, Any]:
        """What :meth:`adopt` needs."""
        children = [
            [child.number, child.pid, child.row, child.channel.fileno(), child.hands_over]
            for child in self._children.values()
        ]
        return {"children": children, "lifeline": [self._lifeline, self._held]}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over the workers of the supervisor before this one in the same process."""
        for each in (self._lifeline, self._held):
            os.close(each)
        self._lifeline, self._held = state["lifeline"]
        for each in (self.scoreboard_fd, self._lifeline, self._held):
            os.set_inheritable(each, False)
        for number, pid, row, fd, hands_over in state["children"]:
            end = socket.socket(fileno=fd)
            end.set_inheritable(False)
            child = self._children[number] = Child(number, pid, row, Channel(end), None, hands_over)
            self._watch(child)
