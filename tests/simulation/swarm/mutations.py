"""Faults of the first release, each put back by a few lines, and how many seeds the swarm needs to find it. ::

    python -m tests.simulation.swarm.mutations [NAME ...] [--most 2000]

Each is tried in a separate process. A mutation of streams leaves those of clients (without an owner) as they are.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextvars import Context, copy_context
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

from tornado.ioloop import IOLoop

from iostreamsrv.errors import CloseReason
from iostreamsrv.iostream import IOStream
from iostreamsrv.net import acceptor
from iostreamsrv.options import UNLIMITED
from iostreamsrv.runtime.logs import LogRateLimit
from iostreamsrv.runtime.stalls import Stalls
from iostreamsrv.sansio import tls
from iostreamsrv.server.connections import Connections
from iostreamsrv.server.core import ServerCore
from iostreamsrv.server.handlers import Handlers
from iostreamsrv.server.limits import ConnectionLimits
from iostreamsrv.server.listeners import Listeners
from iostreamsrv.streams.transports.tls import TLSTransport
from iostreamsrv.styles.queues import SendQueue
from iostreamsrv.styles.session import Session

from .world import problems_of

MOST = 2000


def one_context_for_all_clients() -> None:
    """Later clients see the context variables that one client's handler has set."""
    accepted = Connections.accepted

    class Shared:
        def __init__(self, context: Context) -> None:
            self.context = context

        def copy(self) -> Context:
            return self.context

    def mutated(self: Any, setup: Any, context: Any, connection: Any, address: Any) -> None:
        shared = context if isinstance(context, Shared) else Shared(context)
        accepted(self, setup, shared, connection, address)  # type: ignore[arg-type]

    Connections.accepted = mutated  # type: ignore[method-assign]


def a_half_close_ends_handlers_that_read_in_parts() -> None:
    """EOF that is received ahead closes the stream, although bytes before it are unread."""
    read_bytes = IOStream.read_bytes

    def mutated(self: Any, num_bytes: int, partial: bool = False, **timeout: Any) -> Any:
        if self._owner and partial and self._readable and 0 < self._buffer.size < num_bytes and self._read is None:
            chunk = self._receive_some()
            if chunk is not None:
                self._buffer.feed(chunk)
        return read_bytes(self, num_bytes, partial, **timeout)

    IOStream.read_bytes = mutated  # type: ignore[method-assign]


def a_close_resets_what_it_has_sent() -> None:
    """A close does not wait for the client's EOF, so unread input destroys the last reply."""

    async def mutated(self: Any) -> None:
        pass

    IOStream._linger = mutated  # type: ignore[method-assign]


def a_graceful_close_takes_30_seconds() -> None:
    """Then it ends as if all had been sent, however the client goes on reading."""
    finish, request_reset = IOStream._finish_closing, IOStream._request_reset

    async def mutated(self: IOStream, timeout: float | None = None) -> None:
        await finish(self, 30.0)

    def reset(self: Any) -> None:
        if self._owner is None:
            request_reset(self)

    IOStream._finish_closing = mutated  # type: ignore[method-assign]
    IOStream._request_reset = reset  # type: ignore[method-assign]


def busy_clients_keep_a_shutdown_waiting() -> None:
    """A client that sends its next request at once is served until it is cut off."""
    Connections.close_if_answered = lambda self, stream: False  # type: ignore[method-assign]


def a_shutdown_forgets_the_accept_queue() -> None:
    """Clients in the kernel's queue get a reset."""
    Listeners.accept_queued = lambda self: None  # type: ignore[method-assign]


def half_a_tls_record_is_no_request() -> None:
    """A shutdown takes a client for idle that has sent a part of a record."""
    TLSTransport.partial = lambda self: 0  # type: ignore[method-assign]
    TLSTransport.has_input = lambda self: self.below.has_input()  # type: ignore[method-assign]


def eof_behind_unread_bytes_goes_unnoticed() -> None:
    """No close callback is called for it."""
    IOStream._close_unread_later = lambda self: None  # type: ignore[method-assign]


def a_pending_read_keeps_a_stream_open() -> None:
    """A handler returned with a read pending: its stream is not closed after that read."""
    IOStream.when_read_done = lambda self, look: None  # type: ignore[method-assign]


def a_queue_refuses_data_while_its_client_closes() -> None:
    """`QueueServer`: what is put while the stream is closing is lost."""

    async def mutated(self: Any) -> None:
        self._ended = True
        self._stream.close()

    SendQueue.end = mutated  # type: ignore[method-assign]


def callbacks_go_on_receiving_from_one_who_does_not_read() -> None:
    """`CallbackServer` receives until the write queue is full."""
    init = Session.__init__

    def mutated(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self._half = UNLIMITED

    Session.__init__ = mutated  # type: ignore[method-assign]


def blocked_loops_switch_timeouts_off() -> None:
    """No time counts that passes before a late check, even if each check is late."""
    uncounted = Stalls.uncounted

    def mutated(self: Any, now: float, due: float) -> float:
        self._late_at = -math.inf
        return uncounted(self, now, due)

    Stalls.uncounted = mutated  # type: ignore[method-assign]


def the_log_of_exceptions_has_no_limit() -> None:
    """Clients can fill the log."""
    LogRateLimit.admit = lambda self: 0  # type: ignore[method-assign]


def an_error_of_a_waiting_client_stops_accepting() -> None:
    """accept() takes a network error of one connection for an error of the listener."""
    acceptor.CLIENT_GONE = frozenset()


def streams_stay_open_when_their_handlers_fail() -> None:
    """Their clients wait for answers, and they keep their places."""

    def mutated(self: Any, stream: Any, name: str, error: BaseException) -> None:
        if type(error).__name__ == "StreamClosedError":
            self.owner.close_gracefully(stream, CloseReason.LOCAL)

    Handlers._handler_failed = mutated  # type: ignore[method-assign]


def accepting_is_resumed_in_the_context_of_another_client() -> None:
    """A client that makes room in a full server gives its context variables to those who come next."""
    accepted = Connections.accepted

    def resume(self: Any) -> None:
        if self._io_loop is not None and not self._watching and self._timer is None:
            self._watching = True
            self._io_loop.add_handler(self.listener, self._on_ready, IOLoop.READ)

    def mutated(self: Any, setup: Any, context: Any, connection: Any, address: Any) -> None:
        accepted(self, setup, copy_context(), connection, address)

    acceptor.Acceptor.resume = resume  # type: ignore[method-assign]
    Connections.accepted = mutated  # type: ignore[method-assign]


def places_of_a_host_are_not_returned() -> None:
    """`max_connections_per_ip` counts clients that have gone."""
    ConnectionLimits.discount = lambda self, stream: None  # type: ignore[method-assign]


def a_shutdown_cuts_requests_that_have_begun_to_arrive() -> None:
    """A stream whose handler reads is taken for idle, whatever has come of the request."""
    ServerCore.is_stream_idle = lambda self, stream: stream.reading()  # type: ignore[method-assign]


def timeouts_count_the_time_while_the_process_was_stopped() -> None:
    """Innocent clients are closed after a stop, or after a handler has blocked the loop."""
    Stalls.uncounted = lambda self, now, due: 0.0  # type: ignore[method-assign]


def records_that_bring_nothing_are_not_limited() -> None:
    """A client may send as many TLS key updates and empty records as it likes."""
    tls.MOST_EMPTY = UNLIMITED


MUTATIONS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        one_context_for_all_clients,
        a_half_close_ends_handlers_that_read_in_parts,
        a_close_resets_what_it_has_sent,
        a_graceful_close_takes_30_seconds,
        busy_clients_keep_a_shutdown_waiting,
        a_shutdown_forgets_the_accept_queue,
        half_a_tls_record_is_no_request,
        eof_behind_unread_bytes_goes_unnoticed,
        a_pending_read_keeps_a_stream_open,
        a_queue_refuses_data_while_its_client_closes,
        callbacks_go_on_receiving_from_one_who_does_not_read,
        blocked_loops_switch_timeouts_off,
        the_log_of_exceptions_has_no_limit,
        an_error_of_a_waiting_client_stops_accepting,
        streams_stay_open_when_their_handlers_fail,
        accepting_is_resumed_in_the_context_of_another_client,
        places_of_a_host_are_not_returned,
        a_shutdown_cuts_requests_that_have_begun_to_arrive,
        timeouts_count_the_time_while_the_process_was_stopped,
        records_that_bring_nothing_are_not_limited,
    )
}


def needed(name: str, most: int) -> tuple[float, str]:
    """How many seeds are needed to find a mutation, inf if it is not found; and what is found."""
    MUTATIONS[name]()
    for seed in range(most):
        try:
            problems = problems_of(seed)
        except Exception as error:
            problems = [("exception", repr(error))]
        if problems:
            return seed + 1, f"{problems[0][0]}: {problems[0][1]}"
    return math.inf, ""


def try_one(name: str, most: int) -> tuple[float, str]:
    """`needed`, in a process for this mutation alone: on the Python core, whose methods can be replaced."""
    with patch.dict(os.environ, {"IOSTREAMSRV_PURE": "1"}), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(needed, name, most).result()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.swarm.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutations; all")
    parser.add_argument("--most", type=int, default=MOST, help="seeds for each; 2000")
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.names or MUTATIONS:
        begun = time.monotonic()
        seeds, found = try_one(name, arguments.most)
        missed += seeds == math.inf
        print(f"{name:<56} {seeds:>6} {time.monotonic() - begun:6.1f} s  {found[:120]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
