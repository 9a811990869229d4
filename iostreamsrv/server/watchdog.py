"""The watchdog: a thread that notices when a handler blocks the loop.

**Why a thread.** A handler can block in its first step, after a read, after a sleep, in ``handle_close``, or in a task
that it has made. Reading the clock around each of these would cost time with each call, and would miss what other code
calls: asyncio, Tornado. A thread beside the loop costs nothing per client or message, and misses nothing.

**What it does.** Every :data:`TICK` seconds it asks each loop with clients to answer, by ``call_soon_threadsafe``. A
loop that waits in its selector need not be asked. If a loop does not answer for :data:`LATE` seconds, the thread looks
at each tick what runs there (:mod:`iostreamsrv.server.stacks`). When the loop runs again, the answer is called in the
loop's thread, and reports what has blocked it. The time is measured from the answer before, so it is up to a tick too
long.

**Many short callbacks** in one turn of the loop take as much time as one that blocks, but none of them is at fault. So
the time counts only while the same task, or the same callback for the same client, is seen: a task makes one step in a
turn.

**If the process itself was stopped** (SIGSTOP, a suspended machine), the thread wakes up late as well. That alone is no
proof: a regular expression can hold Python's interpreter lock all the time. But it uses CPU time. So the process was
not stopped if it has used a quarter of the time or, on an overloaded machine, as much CPU time as a call that deserves
a warning.

The thread ends when no loop has clients, and before a fork; afterwards it starts again in the parent, when a loop runs.
A child watches nothing until it has clients itself. Loops and servers are held by weak references.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import weakref
from contextvars import Context
from typing import Any

from ..events import UNOWNED_EVENTS, Event
from ..runtime.addresses import show
from ..runtime.clock import cpu_time, real_time
from ..runtime.kernel import kernel_of
from .stacks import Seen, Watched, outside, see, waits_for_events

BLOCKED = 0.5
"""Seconds that a handler may block the loop without a warning. All other clients wait meanwhile."""

TICK = 0.1
"""Seconds between two checks."""

LATE = 0.25
"""Seconds without an answer after which the stack of a loop's thread is read."""

LINGER = 1.0
"""Seconds for which the thread waits for the next client, when there is none."""


class Watch:
    """One loop; made in its thread.

    :ivar clients: of the servers in this loop, each a `Watched`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, dog: "Watchdog") -> None:
        self.clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self.loop = weakref.ref(loop)
        self._dog = dog
        self._thread = threading.get_ident()
        self._around = outside(sys._getframe())  # as of the loop's last call to this object
        self._asked = False  # the loop was asked to answer
        self._alive = real_time()  # when it last answered
        self._seen: Seen | None = None
        self._since = self._looked = 0.0  # since when what was seen runs at least; when it was last seen
        self._over: list[tuple[Seen, float]] = []  # what ran before it in the same turn, and for how long
        self._ask(loop)

    def has_clients(self) -> bool:
        """Whether there is something to watch."""
        loop = self.loop()
        return loop is not None and not loop.is_closed() and any(clients.watched for clients in self.clients)

    def look(self, now: float, slept: bool, clients: list[Any]) -> None:
        """In the watchdog's thread."""
        loop, frame = self.loop(), sys._current_frames().get(self._thread)
        if loop is None:
            return
        if slept or frame is None or not loop.is_running():
            self._seen, self._alive = None, now
            self._over.clear()
        elif waits_for_events(frame):
            self._alive = now
        else:
            if not self._asked:
                self._seen = None
            if now - self._alive >= LATE:
                self._note(now, see(loop, frame, self._around, clients))
            if not self._asked:  # only now: asking releases the interpreter lock, and what runs may end meanwhile
                self._ask(loop)

    def _note(self, now: float, seen: Seen) -> None:
        if self._seen is None:
            self._seen, self._since = seen, self._alive
        elif seen.key != self._seen.key:
            self._over.append((self._seen, now - self._since))
            self._seen, self._since = seen, self._looked
        self._looked = now

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asked = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the next check forgets it
            loop.call_soon_threadsafe(self._answer, context=Context())

    def _answer(self) -> None:
        """In the loop's thread: the loop is running."""
        now = real_time()
        over, self._over = self._over, []
        if self._seen is not None:
            over.append((self._seen, now - self._since))
        self._seen, self._asked, self._alive, self._around = None, False, now, outside(sys._getframe())
        if over and not self._dog.slept(now, cpu_time()):
            for seen, seconds in over:
                if seconds >= BLOCKED:
                    _tell(seen, seconds)


def _tell(seen: Seen, seconds: float) -> None:
    if seen.clients is not None:
        seen.clients.blocked(seen.stream, seen.where, seconds)
    else:
        address = None if seen.stream is None else getattr(seen.stream, "remote_address", None)
        whom = f", for {show(address)}" if address else ""
        text = f"{seen.where} has blocked the loop for {seconds:.1f} s, and all clients with it{whom}"
        UNOWNED_EVENTS.emit(Event("error", text, logging.WARNING, seen.stream, address))


class Watchdog:
    """The thread, and the loops that it watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # for this thread
        self._looked = self._used = self._needed = 0.0  # its last check; CPU time until then; when it last saw clients

    def watch(self, loop: asyncio.AbstractEventLoop, clients: Watched) -> None:
        """See the function :func:`watch`."""
        with self._lock:
            watch = next((watch for watch in self._watches if watch.loop() is loop), None)
            if watch is None:
                watch = Watch(loop, self)
                self._watches.append(watch)
            watch.clients.add(clients)
        self.start()

    def start(self) -> None:
        """Start the thread, if there is something to watch."""
        with self._lock:
            if self._thread is not None or not self._watches:
                return
            self._looked, self._used, self._stop = real_time(), cpu_time(), threading.Event()
            arguments = (self._stop,)
            thread = threading.Thread(target=self._run, args=arguments, name="iostreamsrv watchdog", daemon=True)
            with contextlib.suppress(RuntimeError):  # too many threads, or the interpreter ends: serve all the same
                thread.start()
                self._thread = thread

    def slept(self, now: float, used: float) -> bool:
        """Whether the process did not run for a while before ``now``."""
        late = now - self._looked - TICK
        return late >= LATE and used - self._used < min(late / 4, BLOCKED)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK) and self._look():
            pass

    def _look(self) -> bool:
        """Check all loops; return whether to go on."""
        now, used = real_time(), cpu_time()
        slept = self.slept(now, used)
        self._looked, self._used = now, used
        with self._lock:
            self._watches = [watch for watch in self._watches if watch.has_clients()]
            watches = [(watch, list(watch.clients)) for watch in self._watches]
            if watches:
                self._needed = now
            elif now - self._needed >= LINGER:
                self._thread = None
                return False
        for watch, clients in watches:
            watch.look(now, slept, clients)
        return True

    def before_fork(self) -> None:
        """End the thread: a process that has several should not fork, as Python warns since 3.12."""
        thread = self._thread
        if thread is not None:
            self._stop.set()
            thread.join(timeout=1.0)
            self._thread = None

    def after_fork(self) -> None:
        """In the parent: start again when a loop runs. (Not at once: Python counts the threads after this.)"""
        for watch in self._watches:
            loop = watch.loop()
            with contextlib.suppress(RuntimeError):
                if loop is not None:
                    loop.call_soon_threadsafe(self.start, context=Context())


_watchdog = Watchdog()


def watch(loop: asyncio.AbstractEventLoop, clients: Watched) -> None:
    """In the loop's thread: report what blocks ``loop``, as long as these clients are watched."""
    if kernel_of(loop).has_threads:
        _watchdog.watch(loop, clients)


def _forget_parents() -> None:
    """In a forked child: watch nothing of the parent's."""
    global _watchdog
    _watchdog = Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _watchdog.before_fork(),
        after_in_parent=lambda: _watchdog.after_fork(),
        after_in_child=_forget_parents,
    )
