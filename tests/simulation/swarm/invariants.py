"""What must hold of every seed. Each function gives what breaks its promise: the invariant's name, and a text."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iostreamsrv import CloseReason, TCPServer
from iostreamsrv.testing import Simulation
from iostreamsrv.testing.simulation.faults import PASSING_ERRORS

from .record import Record
from .servers import Planted

if TYPE_CHECKING:
    from .world import World

Problem = tuple[str, str]

IN_ORDER = frozenset({CloseReason.LOCAL, CloseReason.EOF, CloseReason.SHUTDOWN})
"""Reasons of a close that loses nothing."""

ALWAYS = IN_ORDER | {CloseReason.DRAIN_TIMEOUT}
"""Reasons that any connection may be closed for, at some time."""

ENDS = frozenset({CloseReason.SHUTDOWN, CloseReason.DRAIN_TIMEOUT})

TAKING_SLOWLY = frozenset({"downloading", "not_reading", "reading_late", "flooding_with_records"})

KICK_TAKES = 5.0
"""Seconds in which what TLS or the kernel has taken already reaches one who was kicked."""

TIMEOUTS = frozenset({CloseReason.IDLE_TIMEOUT, CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE})

ARRIVES = 1.0
"""Seconds after which what was sent has arrived, and an answer to it, if there are no faults."""

FIRST_SEGMENT = 3.5
"""Seconds until the first segment of a request with little bandwidth has arrived."""

OVERHEAD_FREE = 32768
"""Bytes that a queue may hold besides the data, and besides one message that is larger."""

LARGEST_ANSWER = 100_100

CORKED = 65536
"""Bytes that may be queued before it."""

LATENESS = 1.3
"""Seconds that a deadline may be late: a second, and what it takes to arrive."""


def at_the_end(world: "World") -> Iterator[Problem]:
    """After the shutdown, when all clients have gone."""
    yield from world.problems_of_records()
    for record in world.records:
        yield from of_reports(world, record)
        yield from of_reasons(world, record)
        yield from of_kicks(world, record)
        yield from of_bytes(world, record)
        yield from of_requests_in_hand(world, record)
        yield from of_the_accept_queue(world, record)
        yield from of_deadlines(world, record)
    yield from of_what_is_left(world)
    yield from of_log(world)


def of_memory(server: TCPServer) -> list[Problem]:
    """No stream holds more than its limits say."""
    problems = []
    for stream in server.streams:
        most = max((stream.max_write_buffer_size or 0) + OVERHEAD_FREE, CORKED + LARGEST_ANSWER)
        if stream.queued > most:
            problems.append(("memory", f"{stream.queued} bytes are queued for {stream.remote_address}"))
        if stream.buffered > stream.max_buffer_size + stream.read_chunk_size:
            problems.append(("memory", f"{stream.buffered} bytes of {stream.remote_address} are buffered"))
    return problems


def of_reports(world: "World", record: Record) -> Iterator[Problem]:
    """``handle_close`` is called once for each ``handle_stream``."""
    cancelled = record.reason in ENDS and not record.handled  # before its first step
    if (len(record.closes) != record.handled and not cancelled) or record.handled > 1:
        yield "reports", f"{record}: handle_stream {record.handled} times, handle_close {len(record.closes)} times"


def victims(world: "World", kind: str) -> dict[str, float]:
    """Who was kicked or cancelled, and when: the clients' addresses, or the names of tasks."""
    sim = world.sim
    struck = [(who, time - sim.trace.begun) for time, who, what in sim.trace.entries if what == f"meets {kind}"]
    return dict(reversed(struck))


def of_reasons(world: "World", record: Record) -> Iterator[Problem]:
    """A connection is closed for what its client, or the network, has done, and for nothing else."""
    reason = record.reason
    if reason is None or is_struck(world):
        return
    at = record.closes[0][1]
    if reason is CloseReason.KICKED and record.number in world.kicked:
        return
    cancelled = record.number in world.cancelled or ("cancel" in world.scenario.faults and not record.handled)
    if reason in ENDS and not cancelled and (world.shut_down is None or at < world.shut_down[0]):
        yield "reasons", f"{record} is closed: {reason}, at {at:.3f}, before the shutdown"
    if reason in TIMEOUTS and _stops(world) > 1:
        return  # if the process does not run again and again, half of that time counts
    if reason in ALWAYS | record.expects and not (reason is CloseReason.DRAIN_TIMEOUT and is_done_soon(world, record)):
        return
    if reason is CloseReason.RESET and not record.end and "broadcasting" in world.scenario.characters:
        return  # its client has closed it, and a broadcast was on its way
    if reason is CloseReason.RESET and not record.end and world.scenario.unix and world.scenario.style == "gateway":
        return  # its client has closed it, and EOF could not be forwarded
    if reason is CloseReason.EVICTED and _may_evict(world):
        return
    yield "reasons", f"{record} is closed: {reason}, at {at:.3f}"


def _stops(world: "World") -> int:
    """How often the process was stopped, or a handler blocked the loop."""
    return sum(str(what).startswith("stopped for ") for _, _, what in world.sim.trace.entries)


def _may_evict(world: "World") -> bool:
    limited = world.scenario.limits("max_connections") or "descriptors" in world.scenario.faults
    return "evict" in world.scenario.values_of("when_full") and limited


def of_kicks(world: "World", record: Record) -> Iterator[Problem]:
    """One who was kicked is disconnected at once, unless the end of the connection has begun already."""
    kicked_at = world.kicked.get(record.number)
    if kicked_at is None or not record.closes or record.character in TAKING_SLOWLY or is_struck(world):
        return
    if record.closes[0][1] > kicked_at + KICK_TAKES:
        yield "reasons", f"{record}, kicked at {kicked_at:.3f}, is closed at {record.closes[0][1]:.3f}"


def is_done_soon(world: "World", record: Record) -> bool:
    """Whether a shutdown has time to let the client finish."""
    soon = {"honest", "thinking", "never_pausing", "silent", "broadcasting", "half_closing"}
    if world.scenario.strictest("drain_timeout") < 15 or {"blocking"} & set(world.scenario.characters):
        return False
    return record.character in soon and not world.sim.struck and not world.scenario.limits("max_connections")


def is_struck(world: "World") -> bool:
    """Whether a fault has struck that breaks connections."""
    breaks, faults = {"rst", "partition", "recv", "send"}, world.scenario.faults.keys()
    if world.scenario.style == "gateway":  # what happens to the other server harms its clients
        if "descriptors" in faults:
            return True
        breaks |= {"accept", "setsockopt", "kick", "cancel", "replace", "shutdown"}
    return world.sim.struck > 0 and bool(faults & breaks)


def of_bytes(world: "World", record: Record) -> Iterator[Problem]:
    """A client that got EOF has all answers that were written before; an exact one, all answers."""
    before = record.ended_at is not None and (world.shut_down is None or record.ended_at < world.shut_down[0])
    reset = record.end == "reset" and record.reason is CloseReason.LOCAL and before
    # What may end a close before its client has stopped sending: a stop longer than linger, or the next client.
    cut_short = _stalls(world) or _may_evict(world) or record.number in world.kicked
    if record.exact and reset and not is_struck(world) and not cut_short:
        yield "bytes", f"{record} got a reset after {record.answers} answers to {len(record.sent)} requests"
    if record.end != "eof" or record.reason not in IN_ORDER or is_struck(world):
        return
    # A gateway knows no requests; and what a shutdown gives up on a Unix socket ends without a reset, as there is none.
    cut = record.reason is CloseReason.SHUTDOWN and (
        world.scenario.style == "gateway" or (world.scenario.unix and _is_drain_over(world))
    )
    if record.tail and not cut:
        yield "bytes", f"{record} got EOF within an answer"
    if record.answers < record.written and not cut:
        yield "bytes", f"{record} got EOF after {record.answers} of {record.written} answers"
    asked = record.answers if record.last_announced else len(record.sent)
    if record.exact and record.reason is not CloseReason.SHUTDOWN and record.answers < asked:
        yield "bytes", f"{record} got EOF after {record.answers} answers to {asked} requests"


def _is_drain_over(world: "World") -> bool:
    """Whether the shutdown took all the time that it has."""
    begun, ended = world.shut_down or (0.0, 0.0)
    return ended - begun >= world.scenario.options["drain_timeout"]


def of_requests_in_hand(world: "World", record: Record) -> Iterator[Problem]:
    """A shutdown cuts no request that had begun to arrive, if there is one at a time, and its end comes in time."""
    if record.reason is not CloseReason.SHUTDOWN or not record.sequential or world.shut_down is None:
        return
    if is_struck(world) or world.scenario.style == "gateway" or record.answers >= len(record.sent):
        return
    if record.number in world.cancelled or (not record.end and record.closes[0][1] > (record.ended_at or math.inf)):
        return  # its client had gone before
    if world.scenario.style in ("parts", "queue") and record.seen == record.answers:
        return  # the server does not know that the handler keeps a part of a request
    begun = record.sent[record.answers].begun
    arrives = ARRIVES + (FIRST_SEGMENT if record.character == "sending_slowly" else 0)
    if record.seen > record.answers or begun < world.shut_down[0] - arrives:
        at = record.closes[0][1]
        yield "shutdown", f"{record} is closed at {at:.3f} with a request of {begun:.3f} in hand"


def of_the_accept_queue(world: "World", record: Record) -> Iterator[Problem]:
    """A shutdown serves those who were connected before it began."""
    scenario = world.scenario
    if world.shut_down is None or scenario.tls or scenario.proxied or scenario.faults_strike or record.handled:
        return
    if world.server.options.when_full != "wait" or "max_connections_per_ip" in scenario.options:
        return
    if _is_drain_over(world) or record.end != "reset" or record.connected_at is None:
        return
    if record.connected_at < world.shut_down[0] - ARRIVES:
        yield "shutdown", f"{record}, connected at {record.connected_at:.3f}, is reset in the accept queue"


def of_deadlines(world: "World", record: Record) -> Iterator[Problem]:
    """A timeout strikes neither early nor late."""
    if record.reason is CloseReason.IDLE_TIMEOUT and not is_struck(world):
        passed = record.closes[0][1] - record.wrote_at
        if passed < world.scenario.strictest("idle_timeout") and record.character.startswith("silent"):
            yield "deadlines", f"{record}: the idle timeout strikes after {passed:.3f} s"
    seconds = _silence_ends(world, record)
    if seconds is None or record.connected_at is None:
        return
    until = world.shut_down[0] if world.shut_down else world.sim.time
    closed = record.closes[0][1] if record.closes else math.inf  # if the loop is blocked, its client hears it later
    ended = min(until, closed, math.inf if record.ended_at is None else record.ended_at)
    if ended - record.active_at > seconds:
        yield "deadlines", f"{record} is still connected {ended - record.active_at:.3f} s after its last byte"


def _silence_ends(world: "World", record: Record) -> float | None:
    """Seconds of silence after which the server must have closed the connection; None if it need not."""
    scenario = world.scenario
    if is_struck(world) or "descriptors" in scenario.faults or "accept" in scenario.faults:
        return None
    blocks = _stalls(world)
    if record.character == "silent" and record.answers:
        names = ["idle_timeout"] + ["read_timeout"] * (scenario.style != "gateway")
    else:
        return None
    seconds = min(scenario.loosest(name) for name in names)
    # One turn of the loop stands still for as many blocks as there are clients that block it.
    turns = 2.5 * max(1, scenario.characters.count("blocking"))
    return seconds * (2 if blocks else 1) + LATENESS + (turns if blocks else 0)


def _stalls(world: "World") -> bool:
    """Whether the loop stands still at times."""
    return "blocking" in world.scenario.characters or bool({"stop", "block"} & world.scenario.faults.keys())


def of_what_is_left(world: "World") -> Iterator[Problem]:
    """No stream, task or timer is left."""
    server = world.server
    if len(server.streams):
        yield "left", f"{len(server.streams)} streams"
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not _is_ours(task)]
    if tasks:
        yield "left", f"tasks: {tasks}"
    timers = [
        entry[2]
        for entry in world.sim.loop.kernel.agenda
        if isinstance(entry[2], asyncio.TimerHandle) and not entry[2].cancelled()
    ]
    timers = [timer for timer in timers if timer.when() > world.sim.loop.time()]
    if timers:
        yield "left", f"timers: {timers}"


def _is_ours(task: "asyncio.Task[Any]") -> bool:
    return "Simulation._run" in repr(task.get_coro()) or "serve_forever" in repr(task.get_coro())


def of_log(world: "World") -> Iterator[Problem]:
    """Of each kind there are ten lines at once, and one in each second; a traceback is there only for what the server's
    own code does."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for _, line in world.lines:
        if line.name == "asyncio":
            yield "log", line.getMessage()[:300]
        event, reason = getattr(line, "event", None), getattr(line, "reason", None)
        if line.name != "tornado.application":  # of what handlers of HTTP requests raise there is no limit
            counts[event, reason, line.levelno] += 1
        if line.exc_info and not isinstance(line.exc_info[1], Planted) and not _is_logged_by_tornado(world, line):
            yield "log", f"a traceback: {line.exc_info[1]!r}: {line.getMessage()}"
    servers = 2 if world.scenario.style == "gateway" else 1
    for kind, count in counts.items():
        if kind[0] != "shutdown" and count > servers * (12 + world.sim.time):
            yield "log", f"{count} lines of {kind}"


def _is_logged_by_tornado(world: "World", line: logging.LogRecord) -> bool:
    """Whether a read of HTTP has failed because the system is short of memory: Tornado logs that."""
    error = line.exc_info[1] if line.exc_info else None
    short = isinstance(error, OSError) and error.errno in PASSING_ERRORS and "recv" in world.scenario.faults
    return short and line.name == "tornado.general"


def of_descriptors(sim: Simulation) -> Iterator[Problem]:
    """After the simulation no descriptor is open."""
    if sim.open_descriptors:
        yield "left", f"{sim.open_descriptors} descriptors: {sim.loop.kernel.open}"
