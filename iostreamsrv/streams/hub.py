"""One readiness set per loop. It dispatches streams, and wakes the tasks that wait for them at once.

**Why not ``loop.add_reader`` for each stream.** For each message it costs a handle, a call through the loop's queue
and, if a task waits, a second turn of the loop. The :class:`EpollHub` has one epoll for all streams of a loop, and
registers that epoll with the loop once. So inside any asyncio loop, plain or uvloop, one callback takes a whole batch
of events. Each stream is registered once, edge-triggered. That no read is pending is a flag of the stream, not a system
call.

**Why the wake-up is immediate.** A future's result normally reaches its task through ``call_soon``, a turn of the loop
later. ``wakeup.resolve_now`` steps the task within the dispatch instead. This saves the turn. It also tells the stream
that the handler's writes belong to the packet being dispatched, so that it can send them together. And it closes the
gap between completion and wake-up, in which a cancelled task would lose the bytes of its read.

**Fairness.** A run of the hub returns to the loop after :data:`SLICE` seconds and continues in the loop's next turn.

**Context variables.** A dispatch sees none: a hub works for all streams of its loop, so it registers itself in an empty
context, not in the context of the client that happens to be first (see :mod:`iostreamsrv.runtime.contexts`).

**Without epoll** the :class:`LoopHub` does the same through ``IOLoop.add_handler``, level-triggered.
"""

import asyncio
import os
import select
import weakref
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from ..runtime.clock import clock_of, wall_clock_of
from ..runtime.kernel import kernel_of
from ..runtime.logs import LogRateLimit, general
from . import wakeup
from .donefuture import done_future_type
from .keeper import Keeper
from .polling import poll, read_clock
from .readiness import ENDED, READABLE, URGENT, WRITABLE, Dispatched

SLICE = 0.003
"""Seconds after which a run of the hub lets the loop's timers and other callbacks have their turn. A task that sleeps
may have to wait for three runs: the one in which its timer expires, one before the loop sees the timer, and one before
it sees the wake-up. With the sends at the end of a run that must stay below 15 ms, however busy the streams are."""

MAX_SLICE_CHECKS = 1000
"""How often :meth:`Hub.within_slice` may be True in one turn. Streams ask every few operations, so a slice of real time
ends long before; but a clock that a test moves stands still."""

_EDGE = 1 << 31  # EPOLLET
_ON_READ = READABLE | URGENT | ENDED | _EDGE
_ON_BOTH = _ON_READ | WRITABLE


class Hub:
    """What all hubs share: the queue of streams to dispatch, and the end of a run.

    :ivar loop: the asyncio loop below ``io_loop``.
    :ivar time: gives the time: `time.monotonic`, or the loop's clock if the loop has a different one.
    :ivar wall_time: gives the date: `time.time`, or the date of such a clock.
    :ivar now: the time of the latest dispatch.
    :ivar timed: ``now`` is the present time: a run is dispatching streams, or uncorking them.
    :ivar done: makes a future that is done, for a write that was sent at once or corked.
    :ivar pending: makes the future of a pending read.
    :ivar running: a run is dispatching streams, so what is corked now will be sent soon.
    :ivar dispatching: the stream that is being dispatched.
    :ivar others_pending: more streams wait to be dispatched in this run.
    :ivar corked: the streams to uncork at the end of the run.
    :ivar inherited: this is a forked child, and the streams are its parent's: closing them sends nothing to the peers.
    :ivar checked: in asyncio's debug mode: a stream that is used outside of its loop raises, see :meth:`check`.
    :cvar reports_ends: whether EOF behind unread bytes is reported. If not, a stream with unread bytes would be
        reported as readable again and again, so it is not watched.
    """

    reports_ends = True

    def __init__(self, io_loop: IOLoop) -> None:
        self.inherited = False
        self.checked = False
        self.io_loop = io_loop
        self.loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
        self.follow_clock()
        self.done = done_future_type(self.loop)
        self.pending = wakeup.pending_future_type(self.loop)
        self.running = False
        self.timed = False
        self.others_pending = False
        self.dispatching: Dispatched | None = None
        self.corked: list[Dispatched] = []
        self._due: list[Dispatched] = []  # each with the events to dispatch in its due_events
        self._remaining = 0  # how many entries at the head of _due belong to an unfinished batch
        self._scheduled = False
        self._turn_ends = 0.0
        self._slice_checks = 0  # calls of within_slice in this turn

    def follow_clock(self) -> None:
        """Take the time from the loop's clock, which may have been replaced."""
        self.time, self.wall_time = clock_of(self.loop), wall_clock_of(self.loop)
        self.now = self.time()

    def watch_reads(self, stream: Dispatched) -> bool:
        """Dispatch ``stream`` when it can be read.

        :returns: whether that holds until :meth:`unwatch`. If not, the stream must ask again after each dispatch.
        """
        raise NotImplementedError

    def watch_writes(self, stream: Dispatched) -> bool:
        """Dispatch ``stream`` when it can be written to; as :meth:`watch_reads`."""
        raise NotImplementedError

    def unwatch(self, stream: Dispatched) -> None:
        """Stop watching ``stream``; its descriptor is about to be closed."""
        raise NotImplementedError

    def close_unused(self) -> None:
        """Close what is kept for streams to come."""

    def check(self) -> None:
        """In asyncio's debug mode, check that the caller is in this loop.

        :raises RuntimeError: another loop is running here, or this loop runs in another thread.
        """
        if not self.checked:
            return
        running = asyncio._get_running_loop()
        loop = self.loop
        if running is loop or loop.is_closed() or self.inherited:
            return
        if loop.is_running():
            raise RuntimeError(
                "a stream is used in another thread: call"
                " stream.io_loop.add_callback(stream.write, data) instead, or, to wait for the result,"
                " asyncio.run_coroutine_threadsafe(coroutine, stream.io_loop.asyncio_loop).result()"
            )
        if running is not None:
            raise RuntimeError(
                "a stream is used in another loop: make it and use it in the same loop, or call"
                " stream.io_loop.add_callback(stream.write, data), which runs when the stream's loop runs"
            )

    def dispatch_again(self, stream: Dispatched) -> None:
        """Dispatch ``stream`` as readable in the loop's next turn: other streams have their turn first."""
        self._enqueue(stream, READABLE)
        self._schedule()

    def _enqueue(self, stream: Dispatched, events: int) -> None:
        """Queue ``stream`` with ``events``. It has one entry: a busy peer causes an edge for each packet."""
        if not stream.due_events:
            self._due.append(stream)
        stream.due_events |= events

    def within_slice(self) -> bool:
        """Whether the loop's present turn is younger than :data:`SLICE`. If not, a busy stream must yield."""
        now = self.time()
        if not self._turn_ends:
            self._turn_ends, self._slice_checks = now + SLICE, 0
            self.loop.call_soon(self._end_turn, context=Context())
        self._slice_checks += 1
        return now < self._turn_ends and self._slice_checks < MAX_SLICE_CHECKS

    def slice_is_over(self, began: float) -> bool:
        """Whether what has begun then must let others have their turn."""
        return self.time() - began >= SLICE

    def _end_turn(self) -> None:
        self._turn_ends = 0.0

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._resume, context=Context())

    def _resume(self) -> None:
        self._scheduled = False
        self._run()

    def _run(self) -> None:
        """Dispatch the present batch for up to :data:`SLICE`. The rest, and what is queued meanwhile, waits for the
        loop's next turn."""
        time = self.time
        now = read_clock(time)
        end = now + SLICE
        due = self._due
        count = self._remaining or len(due)
        at = 0
        self.running = self.timed = True
        try:
            while at < count and now < end:
                stream = due[at]
                at += 1
                self.others_pending = at < count
                self.now = now
                events, stream.due_events = stream.due_events, 0
                self.dispatching = stream
                stream.dispatch(events)
                now = read_clock(time)
        finally:
            # Also if a task raised KeyboardInterrupt or SystemExit: edges are not reported twice.
            del due[:at]
            self._remaining = count - at
            self.running = self.others_pending = False
            self.dispatching = None
            self.now = now
            try:
                if self.corked:
                    self._uncork()
            finally:
                self.timed = False
                if due or self.corked:
                    self._schedule()

    def _uncork(self) -> None:
        corked = self.corked
        at = 0
        try:
            while at < len(corked):
                stream = corked[at]
                at += 1
                stream.uncork()
        finally:  # an exception from one stream leaves the others in the list, to be sent later
            del corked[:at]

    def _replaces(self, number: int, dead: Dispatched) -> None:
        """Other code has closed the descriptor of ``dead``, and another stream has the same number."""
        general.warning("%r: its descriptor %d was closed by other code, and belongs to another stream", dead, number)
        dead.lose_descriptor()

    def forget_parent(self) -> None:
        """In a forked child: leave the parent's epoll and connections alone. A stream that the child makes gets a new
        hub."""
        self.inherited = True
        while self.corked:
            self.corked.pop().forget_output()
        if getattr(self.io_loop, _HUB, None) is self:
            delattr(self.io_loop, _HUB)


class EpollHub(Hub):
    """The hub for systems with epoll. Its epoll exists while it watches a stream, and for a second more."""

    def __init__(self, io_loop: IOLoop) -> None:
        super().__init__(io_loop)
        self._epoll: select.epoll | None = None
        self._keeper = Keeper(self)
        self._streams: list[Dispatched | None] = []  # by descriptor: a dict would take seven times as much
        self._count = 0  # of those that are not None
        self._stale = False  # the epoll may have entries of closed descriptors, which cannot be removed
        self._warnings = LogRateLimit()

    def fileno(self) -> int:
        """The epoll's descriptor, for the loop."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def watch_reads(self, stream: Dispatched) -> bool:
        self._register(stream, _ON_READ)
        return True

    def watch_writes(self, stream: Dispatched) -> bool:
        # Only when a write must wait: each stream registered for it reports "writable" once, mostly for nothing.
        # Registering again reports again.
        self._register(stream, _ON_BOTH)
        return True

    def _register(self, stream: Dispatched, events: int) -> None:
        epoll = self._epoll or self._open()
        if self._has(stream):
            epoll.modify(stream.hub_key, events)
            return
        streams, number = self._streams, stream.fileno()
        epoll.register(number, events)
        while len(streams) <= number:
            streams.append(None)
        dead, streams[number] = streams[number], stream
        stream.hub_key = number
        if dead is None:
            self._count += 1
        else:
            self._stale = True
            self._replaces(number, dead)

    def _has(self, stream: Dispatched) -> bool:
        number = stream.hub_key
        return 0 <= number < len(self._streams) and self._streams[number] is stream

    def unwatch(self, stream: Dispatched) -> None:
        if self._epoll is None or not self._has(stream):
            return
        self._streams[stream.hub_key] = None
        self._count -= 1
        try:
            self._epoll.unregister(stream.hub_key)
        except OSError:
            # Other code has closed it. The kernel has then removed it, unless a duplicate is open, as in a fork.
            self._stale = True
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._count:
            return
        if self._stale or self.loop.is_closed():
            self._close_epoll()
        else:
            self._keeper.keep()

    def close_unused(self) -> None:
        if self._epoll is not None and not self._count:
            self._close_epoll()

    def _close_epoll(self) -> None:
        self._stale = False
        self.io_loop.remove_handler(self)
        self.close()

    def _open(self) -> "select.epoll":  # quoted: some systems have none
        self._epoll = kernel_of(self.loop).epoll()
        Context().run(self.io_loop.add_handler, self, self._on_ready, IOLoop.READ)
        return self._epoll

    def close(self) -> None:
        """Close the epoll and its streams: for `IOLoop.close` with ``all_fds=True``. Late closes are harmless then."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
            streams, self._streams, self._count = self._streams, [], 0
            for stream in [each for each in streams if each is not None]:
                stream.close()

    def _on_ready(self, _fd: object, _events: int) -> None:
        if self._epoll is None or self._remaining:
            return  # the last batch is not finished; the kernel keeps one event for each stream meanwhile
        if self._stale:
            return self._renew()
        # Look up all streams before any of them is dispatched: a dispatch may close a number, and it may be reused.
        if not poll(self._epoll, self._streams, self._due):
            self._stale = True
        if not self._scheduled:  # otherwise a run is scheduled already
            self._run()

    def _renew(self) -> None:
        """Make a new epoll with the same streams. The old one has entries of closed descriptors with open duplicates:
        it goes on to report them, and they cannot be removed, because entries are removed by number."""
        self._stale = False
        left_out = self._warnings.admit()
        if left_out is not None:
            more = f" (and {left_out} times before)" if left_out else ""
            general.warning("a stream's descriptor was closed by other code: all streams get a new epoll%s", more)
        assert self._epoll is not None
        self.io_loop.remove_handler(self)
        with self._epoll:
            epoll = self._open()
        gone = []
        for number, stream in enumerate(self._streams):
            if stream is not None:
                try:
                    epoll.register(number, _ON_BOTH)  # this reports everything once more
                except OSError:
                    gone.append(stream)
                    self._streams[number] = None
        self._count -= len(gone)
        self._close_if_empty()
        for stream in gone:
            stream.lose_descriptor()

    def forget_parent(self) -> None:
        super().forget_parent()
        if self._epoll is not None:
            _known_to(self.io_loop).pop(self._epoll.fileno(), None)
            self._epoll.close()
            self._epoll = None
            self._streams, self._count = [], 0


class LoopHub(Hub):
    """The hub for systems without epoll: one handler of the loop for each stream, level-triggered."""

    reports_ends = False

    def __init__(self, io_loop: IOLoop) -> None:
        super().__init__(io_loop)
        self._wanted: dict[Dispatched, int] = {}
        self._dispatching: Dispatched | None = None

    def watch_reads(self, stream: Dispatched) -> bool:
        self._want(stream, IOLoop.READ)
        return False

    def watch_writes(self, stream: Dispatched) -> bool:
        self._want(stream, IOLoop.WRITE)
        return False

    def _want(self, stream: Dispatched, events: int) -> None:
        before = self._wanted.get(stream)
        if before is None:
            number = stream.fileno()
            if number in _known_to(self.io_loop):
                for other in [other for other in self._wanted if other.hub_key == number]:
                    self.unwatch(other)
                    self._replaces(number, other)
            self._wanted[stream] = events
            stream.hub_key = number
            Context().run(self.io_loop.add_handler, stream, partial(self._on_ready, stream), events)
        elif not before & events:
            self._wanted[stream] = before | events
            if stream is not self._dispatching:
                Context().run(self.io_loop.update_handler, stream.hub_key, before | events)

    def _on_ready(self, stream: Dispatched, _fd: object, events: int) -> None:
        before = self._wanted.get(stream)
        if before is None:
            return
        # An event removes its interest. Most streams ask again while they are dispatched, so update it afterwards.
        self._wanted[stream] = before & ~events
        self._dispatching = stream
        self._enqueue(stream, events)
        try:
            if self.within_slice():
                self._run()
            else:  # streams before this one have used up the loop's turn
                self._schedule()
        finally:
            self._dispatching = None
            after = self._wanted.get(stream)
            if after is not None and after != before:
                Context().run(self.io_loop.update_handler, stream.hub_key, after)

    def unwatch(self, stream: Dispatched) -> None:
        if self._wanted.pop(stream, None) is not None:
            self.io_loop.remove_handler(stream.hub_key)  # not fileno(), which is -1 if it is closed

    def forget_parent(self) -> None:
        super().forget_parent()
        wanted, self._wanted = self._wanted, {}
        for stream in wanted:
            _known_to(self.io_loop).pop(stream.hub_key, None)


driver: Callable[[IOLoop], Hub] = EpollHub if hasattr(select, "epoll") else LoopHub
"""The class of hub that :func:`hub_of` makes. Tests set it to run on either one."""

_HUB = "_iostreamsrv_hub"
"""The attribute of an `IOLoop` that holds its hub. (Its ``__dict__`` is left alone: see `clock_of`.)"""


def hub_of(io_loop: IOLoop) -> Hub:
    """The hub of ``io_loop``; made at the first call."""
    hub: Hub | None = getattr(io_loop, _HUB, None)
    if hub is None:
        hub = driver(io_loop)
        if hub.loop.get_debug():
            wakeup.debugging = hub.checked = True
        setattr(io_loop, _HUB, hub)
        _hubs.add(hub)
    return hub


def dispatching_in(loop: asyncio.AbstractEventLoop) -> Dispatched | None:
    """The stream that a hub of ``loop`` is dispatching: for the watchdog, in another thread."""
    for hub in _hubs_of(loop):
        if hub.dispatching is not None:
            return hub.dispatching
    return None


def follow_clock(loop: asyncio.AbstractEventLoop) -> None:
    """Make the hubs of ``loop`` use its new clock, after its clock was replaced."""
    for hub in _hubs_of(loop):
        hub.follow_clock()


def close_unused(loop: asyncio.AbstractEventLoop) -> None:
    """Close what the hubs of ``loop`` keep for streams to come."""
    for hub in _hubs_of(loop):
        hub.close_unused()


def _hubs_of(loop: asyncio.AbstractEventLoop) -> list[Hub]:
    io_loop = IOLoop._ioloop_for_asyncio.get(loop)
    return [] if io_loop is None else [thing for thing in vars(io_loop).values() if isinstance(thing, Hub)]


def _known_to(io_loop: IOLoop) -> dict[int, Any]:
    """The handlers of ``io_loop`` by their descriptor."""
    handlers: dict[int, Any] = io_loop.handlers  # type: ignore[attr-defined]
    return handlers


_hubs: "weakref.WeakSet[Hub]" = weakref.WeakSet()


def _forget_parents() -> None:
    """In a forked child: the epolls of its hubs and loops are shared with the parent."""
    for hub in list(_hubs):
        hub.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)
