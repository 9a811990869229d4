"""Signals that come at the same time."""

import selectors
import signal
import sys
import threading

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no supervisor")


def test_a_stop_is_told_before_the_end_of_the_workers_that_it_has_ended() -> None:
    from iostreamsrv.supervisor.signals import Signals

    told: list[str] = []
    both = {signal.SIGTERM, signal.SIGCHLD}
    with selectors.DefaultSelector() as selector, Signals(selector, told.append):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for each in both:
            signal.pthread_kill(threading.get_ident(), each)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for key, _ in selector.select(10):
            key.data()
    assert told == ["TERM", "CHLD"]
