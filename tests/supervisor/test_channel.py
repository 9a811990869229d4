"""Messages and descriptors between a supervisor and a worker."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from iostreamsrv.supervisor.channel import Channel


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    with contextlib.closing(one), contextlib.closing(other):
        yield one, other


def test_messages_arrive_in_their_order(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    assert other.receive() == []
    one.send("retire", timeout=3600.0)
    one.send("drain")
    assert other.receive() == [{"type": "retire", "timeout": 3600.0}, {"type": "drain"}]


def test_the_end_is_seen_after_the_last_words(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one.send("failed", why="no module named chat")
    one.close()
    assert other.receive() == [{"type": "failed", "why": "no module named chat"}]
    assert other.receive() is None
    assert other.wait() is None


def test_a_message_for_one_that_is_gone_is_dropped(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    other.close()
    one.send("drain")
    one.send("drain")


def test_descriptors_come_with_a_message(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    reading, writing = os.pipe()
    one.send("take_over", (writing,))
    os.close(writing)
    assert other.wait(5) == [{"type": "take_over"}]
    (its,) = other.descriptors
    os.write(its, b"x")
    assert os.read(reading, 1) == b"x"
    assert not os.get_inheritable(its)
    os.close(its)
    os.close(reading)


def test_waiting_ends(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(TimeoutError):
        ends[0].wait(0.01)
