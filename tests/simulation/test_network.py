"""The simulated network behaves as TCP does: each promise of it, on plain sockets."""

import asyncio
import contextlib
import errno
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from iostreamsrv.testing import Faults, Simulation
from iostreamsrv.testing.simulation.flow import RECEIVE_BUFFER, SEND_BUFFER
from iostreamsrv.testing.simulation.polling import EDGE, HANGUP, PEER_ENDED, READ, WRITE

ADDRESS = ("10.1.0.1", 80)
EVENTUALLY = 1.0
RESETS = struct.pack("ii", 1, 0)


def simulate(main: Callable[[Simulation], Awaitable[Any]], seed: int = 0, **faults: Any) -> Simulation:
    sim = Simulation(seed, Faults(**faults))
    sim.run(main)
    assert sim.open_descriptors == 0
    return sim


def new_socket(sim: Simulation, family: int = socket.AF_INET) -> socket.socket:
    made = sim.loop.kernel.socket(family)
    made.setblocking(False)
    return made


def listening(sim: Simulation, backlog: int = 10, address: Any = ADDRESS) -> socket.socket:
    listener = new_socket(sim, socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    listener.bind(address)
    listener.listen(backlog)
    return listener


@contextlib.asynccontextmanager
async def connected(sim: Simulation, address: Any = ADDRESS) -> Any:
    """Both ends of a connection; they are closed at the end."""
    with listening(sim, address=address) as listener, new_socket(sim, listener.family) as client:
        await sim.loop.sock_connect(client, address)
        await sim.sleep(EVENTUALLY)
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            yield client, server


def test_a_socket_may_be_watched_under_its_number_and_itself() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            for watched in server, server.fileno(), server:
                ready = asyncio.Event()
                sim.loop.add_reader(watched, lambda: pytest.fail("replaced"))
                sim.loop.add_reader(server, ready.set)
                client.send(b"x")
                await ready.wait()
                assert sim.loop.remove_reader(watched)
                assert not sim.loop.remove_reader(server)
                assert server.recv(10) == b"x"

    simulate(main)


async def everything(sim: Simulation, sock: socket.socket) -> bytes:
    """What comes until EOF."""
    received = b""
    while chunk := await sim.loop.sock_recv(sock, 65536):
        received += chunk
    return received


def errno_of(call: Callable[..., Any], *arguments: Any) -> int | None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno


# ---- bytes


def test_bytes_arrive_after_the_delay_and_not_before() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            before = sim.time
            client.send(b"hello")
            assert errno_of(server.recv, 100) == errno.EAGAIN
            assert await sim.loop.sock_recv(server, 100) == b"hello"
            assert sim.time - before == pytest.approx(0.25)

    simulate(main, delay=0.25, cut=0)


def test_segments_are_cut_anywhere_and_arrive_in_order() -> None:
    content = bytes(range(256)) * 4
    lengths = set()

    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            client.send(content)
            client.shutdown(socket.SHUT_WR)
            first = await sim.loop.sock_recv(server, 65536)
            lengths.add(len(first))
            assert first + await everything(sim, server) == content

    for seed in range(40):
        simulate(main, seed, cut=1, delay=(0, 0.1))
    assert len(lengths) > 20


def test_a_receive_takes_what_several_segments_have_brought() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            for part in (b"ab", b"cd", b"ef"):
                client.send(part)
            await sim.sleep(EVENTUALLY)
            assert server.recv(3) == b"abc"
            assert server.recv(2, socket.MSG_PEEK) == b"de"
            assert server.recv(100) == b"def"

    simulate(main)


def test_bandwidth_makes_a_thousand_bytes_take_a_second() -> None:
    async def main(sim: Simulation) -> None:
        with listening(sim) as listener, new_socket(sim) as client:
            client.bandwidth = 1000  # type: ignore[attr-defined]
            await sim.loop.sock_connect(client, ADDRESS)
            await sim.sleep(EVENTUALLY)
            server, _ = listener.accept()
            with server:
                server.setblocking(False)
                before = sim.time
                client.send(bytes(10_000))
                client.shutdown(socket.SHUT_WR)
                await sim.loop.sock_recv(server, 65536)
                assert sim.time - before < 2
                await everything(sim, server)
                assert sim.time - before == pytest.approx(10, rel=0.01)

    simulate(main)


def test_a_receiver_that_does_not_read_stops_the_sender_and_lets_it_go_on() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < 10_000_000:
                    sent += client.send(bytes(10_000))
                    await sim.sleep(0.01)
            await sim.sleep(60)
            assert sent == SEND_BUFFER + RECEIVE_BUFFER
            assert client.unsent() == SEND_BUFFER
            assert errno_of(client.send, b"x") == errno.EAGAIN
            received = 0
            while received < sent:
                received += len(await sim.loop.sock_recv(server, 65536))
            await sim.sleep(EVENTUALLY)
            assert client.unsent() == 0
            await sim.loop.sock_sendall(client, bytes(1000))

    simulate(main)


def test_a_large_message_passes_through_small_buffers() -> None:
    content = bytes(range(256)) * 8000

    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

            async def send() -> None:
                await sim.loop.sock_sendall(client, content)
                client.shutdown(socket.SHUT_WR)

            sending = asyncio.ensure_future(send())
            assert await everything(sim, server) == content
            await sending

    simulate(main, delay=(0, 0.01), cut=0.5)


# ---- ends


def test_a_half_close_ends_one_direction_behind_what_was_sent() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            client.send(b"last")
            client.shutdown(socket.SHUT_WR)
            assert errno_of(client.send, b"x") == errno.EPIPE
            assert await everything(sim, server) == b"last"
            server.send(b"answer")
            assert await sim.loop.sock_recv(client, 100) == b"answer"
            server.shutdown(socket.SHUT_WR)
            assert await everything(sim, client) == b""

    simulate(main)


def test_what_was_sent_before_a_close_arrives() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            sent = client.send(bytes(100_000))
            client.close()
            assert len(await everything(sim, server)) == sent

    simulate(main)


def test_a_close_with_unread_bytes_is_a_reset_behind_what_was_sent() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            server.send(b"unread")
            client.send(b"before")
            await sim.sleep(EVENTUALLY)
            client.close()
            await sim.sleep(EVENTUALLY)
            assert server.recv(100) == b"before"
            assert errno_of(server.recv, 100) == errno.ECONNRESET
            assert server.recv(100) == b""
            assert errno_of(server.send, b"x") == errno.EPIPE

    simulate(main)


def test_lingering_for_no_time_is_a_reset() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            client.close()
            await sim.sleep(EVENTUALLY)
            assert errno_of(server.send, b"x") == errno.ECONNRESET

    simulate(main)


def test_what_comes_to_a_closed_socket_is_answered_with_a_reset() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            client.close()
            await sim.sleep(EVENTUALLY)
            assert server.recv(100) == b""
            assert server.send(b"anybody there?") == 14
            await sim.sleep(EVENTUALLY)
            assert server.recv(100) == b""  # EOF came first
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
            assert errno_of(server.send, b"x") == errno.EPIPE

    simulate(main)


# ---- connections


def test_a_port_that_nobody_listens_on_refuses() -> None:
    async def main(sim: Simulation) -> None:
        with new_socket(sim) as client, pytest.raises(ConnectionRefusedError):
            await sim.loop.sock_connect(client, ADDRESS)

    simulate(main)


def test_a_full_backlog_makes_clients_wait_and_try_again() -> None:
    async def main(sim: Simulation) -> None:
        with listening(sim, backlog=2) as listener, contextlib.ExitStack() as clients:
            made = [clients.enter_context(new_socket(sim)) for _ in range(5)]
            connecting = [asyncio.ensure_future(sim.loop.sock_connect(each, ADDRESS)) for each in made]
            await sim.sleep(0.5)
            assert [each.done() for each in connecting] == [True] * 3 + [False] * 2
            for _ in range(5):
                with (await sim.loop.sock_accept(listener))[0]:
                    pass
            assert 1 < sim.time < 3
            await asyncio.gather(*connecting)

    simulate(main)


def test_a_backlog_that_stays_full_times_out() -> None:
    async def main(sim: Simulation) -> None:
        with listening(sim, backlog=0), new_socket(sim) as first, new_socket(sim) as second:
            await sim.loop.sock_connect(first, ADDRESS)
            with pytest.raises(TimeoutError):
                await sim.loop.sock_connect(second, ADDRESS)
            assert sim.time > 60

    simulate(main)


def test_who_waits_in_the_backlog_of_a_listener_that_closes_gets_a_reset() -> None:
    async def main(sim: Simulation) -> None:
        with new_socket(sim) as client:
            with listening(sim):
                await sim.loop.sock_connect(client, ADDRESS)
                await sim.sleep(EVENTUALLY)
            await sim.sleep(EVENTUALLY)
            assert errno_of(client.recv, 100) == errno.ECONNRESET

    simulate(main)


def test_a_wildcard_listener_has_the_port_of_every_host() -> None:
    async def main(sim: Simulation) -> None:
        with listening(sim, address=("0.0.0.0", 80)) as listener, new_socket(sim) as client:
            await sim.loop.sock_connect(client, ("10.1.0.77", 80))
            assert client.getpeername() == ("10.1.0.77", 80)
            with (await sim.loop.sock_accept(listener))[0] as server:
                assert server.getsockname() == ("10.1.0.77", 80)
                assert server.getpeername() == client.getsockname()

    simulate(main)


def test_an_address_is_bound_once() -> None:
    async def main(sim: Simulation) -> None:
        with listening(sim), new_socket(sim) as second:
            assert errno_of(second.bind, ADDRESS) == errno.EADDRINUSE

    simulate(main)


def test_a_unix_socket_delivers_at_once_and_says_that_its_backlog_is_full() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim, "/run/simulated.sock") as (client, server):
            client.send(b"now")
            assert server.recv(100) == b"now"
            client.close()
            assert server.recv(100) == b""
            assert errno_of(server.send, b"x") == errno.EPIPE
        with listening(sim, backlog=0, address="/run/other.sock"), new_socket(sim, socket.AF_UNIX) as first:
            first.connect("/run/other.sock")
            with new_socket(sim, socket.AF_UNIX) as second:
                assert errno_of(second.connect, "/run/other.sock") == errno.EAGAIN

    simulate(main)


# ---- partitions


def test_what_is_sent_during_a_partition_arrives_after_it() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            sim.partition(client.getsockname()[0], "10.1.0.1", 20)
            before = sim.time
            client.send(b"hello")
            assert await sim.loop.sock_recv(server, 100) == b"hello"
            assert 20 <= sim.time - before < 60

    simulate(main)


def test_a_partition_that_does_not_end_times_the_sender_out() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            sim.partition(client.getsockname()[0], "10.1.0.1", 1e9)
            client.send(b"hello")
            with pytest.raises(TimeoutError):
                await sim.loop.sock_recv(client, 100)
            assert 900 < sim.time < 1200
            assert errno_of(server.recv, 100) == errno.EAGAIN

    simulate(main)


def test_hosts_that_are_not_parted_are_not_disturbed() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            sim.partition("10.9.9.9", "10.1.0.1", 1000)
            client.send(b"hello")
            assert await sim.loop.sock_recv(server, 100) == b"hello"
            assert sim.time < 3

    simulate(main)


# ---- descriptors and epoll


def test_the_lowest_descriptor_that_is_free_is_used_again() -> None:
    async def main(sim: Simulation) -> None:
        first, second = new_socket(sim), new_socket(sim)
        number = first.fileno()
        first.close()
        assert first.fileno() == -1
        with second, new_socket(sim) as third:
            assert third.fileno() == number

    simulate(main)


def test_descriptors_run_out() -> None:
    async def main(sim: Simulation) -> None:
        with contextlib.ExitStack() as sockets:
            for _ in range(8):
                sockets.enter_context(new_socket(sim))
            assert errno_of(new_socket, sim) == errno.EMFILE

    simulate(main, descriptors=8)


def test_no_system_call_reaches_a_simulated_descriptor() -> None:
    async def main(sim: Simulation) -> None:
        with new_socket(sim) as sock, pytest.raises(OSError) as caught:
            socket.socket(fileno=sock.fileno())
        assert caught.value.errno == errno.EBADF

    simulate(main)


def test_a_blocking_call_is_refused() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, _):
            client.setblocking(True)
            with pytest.raises(RuntimeError, match="would stop the simulation"):
                client.recv(1)

    simulate(main)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll to compare with")
def test_an_edge_is_reported_once_and_a_level_again_and_again() -> None:
    async def main(sim: Simulation) -> None:
        async with connected(sim) as (client, server):
            with sim.loop.kernel.epoll() as edges, sim.loop.kernel.epoll() as levels:
                number = server.fileno()
                edges.register(number, READ | PEER_ENDED | EDGE)
                levels.register(number, READ)
                assert edges.poll(0) == levels.poll(0) == []
                client.send(b"x")
                await sim.sleep(EVENTUALLY)
                assert edges.poll(0) == [(number, READ)]
                assert edges.poll(0) == []
                assert levels.poll(0) == levels.poll(0) == [(number, READ)]
                server.recv(10)
                assert levels.poll(0) == []
                edges.modify(number, READ | WRITE | EDGE)
                assert edges.poll(0) == [(number, WRITE)]
                edges.modify(number, READ | PEER_ENDED | EDGE)
                client.shutdown(socket.SHUT_WR)
                await sim.sleep(EVENTUALLY)
                assert edges.poll(0) == [(number, READ | PEER_ENDED)]
                server.shutdown(socket.SHUT_WR)
                assert edges.poll(0) == [(number, READ | PEER_ENDED | HANGUP)]
                server.close()
                assert errno_of(edges.unregister, number) == errno.EBADF

    simulate(main)
