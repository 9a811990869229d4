"""Ends that meet: of forked children, of requests that are refused, of timeouts that have passed already."""

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import printed, program
from tests.support.tiers import crossed
from tests.support.waiting import PATIENCE

# ---- forked children

FORKING = """
    import asyncio, os, socket, sys
    from iostreamsrv import TCPServer
    from iostreamsrv.streams import hub
    from iostreamsrv.certificates import self_signed
    from iostreamsrv.netutil import bind_unix_socket

    transport, end, engine, folder = sys.argv[1:]
    debug = engine == "debug"
    if engine == "loop":
        hub.driver = hub.LoopHub

    BIG = bytes(range(256)) * (1 << 15)
    child = None

    class Server(TCPServer):
        async def handle_stream(self, stream, address):
            global child
            while True:
                line = await stream.read_until(b"\\n")
                if line == b"big\\n":
                    stream.write(BIG)
                elif line == b"fork\\n":
                    child = os.fork()
                    if not child:
                        await self.end_in_child(stream)
                    os.waitpid(child, 0)
                    await stream.write(b"forked\\n")
                elif line == b"end\\n":
                    return
                else:
                    await stream.write(line)

        async def end_in_child(self, stream):
            if end == "exit":
                raise SystemExit
            try:
                if end == "aclose":
                    async with asyncio.timeout(2):
                        await stream.aclose()
                elif end == "shutdown":
                    async with asyncio.timeout(2):
                        await self.close_all_connections()
                elif end == "stop":
                    self.stop()
                    for stream in self.streams:
                        stream.close()
                elif end == "error":
                    stream.close(ValueError())
                else:
                    getattr(stream, end)()
            finally:
                os._exit(0)

    async def main():
        files = self_signed().write(folder) if transport == "tls" else None
        server = Server(ssl_options=files, linger=0.1, max_write_buffer_size=1 << 24)
        if transport == "unix":
            server.add_socket(bind_unix_socket(folder + "/socket"))
            print(repr(folder + "/socket"))
        else:
            server.listen(0, "127.0.0.1")
            print(server.addresses[0])
        await asyncio.Event().wait()

    try:
        asyncio.run(main(), debug=debug)
    finally:
        if child == 0:
            os._exit(0)
"""


def connected(address: Any, transport: str) -> socket.socket:
    """A client that blocks."""
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(PATIENCE)
    client.connect(address)
    if transport != "tls":
        return client
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(client, suppress_ragged_eofs=False)


def received(client: socket.socket, count: int) -> bytes:
    """So many bytes; fewer if the stream ends."""
    data = bytearray()
    while len(data) < count and (chunk := client.recv(count - len(data))):
        data += chunk
    return bytes(data)


ENDS = ["close", "aclose", "abort", "kick", "error", "stop", "shutdown", "exit"]


@pytest.mark.parametrize(
    ("end", "transport", "engine"),
    [
        *crossed(ENDS, ["tcp", "tls", "unix"], ["epoll"]),
        *crossed(ENDS, ["tcp", "tls"], ["loop"]),
        *crossed(ENDS, ["tcp"], ["debug"]),
    ],
)
def test_a_stream_that_ends_in_a_forked_child_goes_on_in_its_parent(
    transport: str, engine: str, end: str, tmp_path: Path
) -> None:
    with (
        program(FORKING, transport, end, engine, str(tmp_path)) as process,
        connected(printed(process), transport) as client,
    ):
        client.sendall(b"one\nfork\n")
        assert received(client, 11) == b"one\nforked\n"
        client.sendall(b"two\nend\n")
        assert received(client, 5) == b"two\n"


@pytest.mark.parametrize(("end", "transport"), crossed(["close", "aclose", "abort"], ["tcp", "tls"]))
def test_what_waits_to_be_sent_at_a_fork_is_sent_once(transport: str, end: str, tmp_path: Path) -> None:
    big = bytes(range(256)) * (1 << 15)
    with (
        program(FORKING, transport, end, "epoll", str(tmp_path)) as process,
        connected(printed(process), transport) as client,
    ):
        client.sendall(b"big\nfork\n")
        assert received(client, len(big)) == big
        assert received(client, 7) == b"forked\n"
        client.sendall(b"two\nend\n")
        assert received(client, 5) == b"two\n"


THREADS = """
    import os, socket, sys, threading, warnings
    from iostreamsrv.styles.blocking import BlockingServer
    from iostreamsrv.styles.queues import QueueServer

    warnings.simplefilter("ignore")  # it is said that threads and forks do not go together: so this is tested

    class Pool(BlockingServer):
        def handle(self, sock, address):
            while data := sock.recv(100):
                sock.sendall(data)

    style = sys.argv[1]
    if style == "queue":
        server = QueueServer("localhost", 0, lambda queue, data: queue.put(data))
        threading.Thread(target=server.run).start()
    else:
        server = Pool() if style == "handle" else BlockingServer()
        server.start()
        server.listen(0, "127.0.0.1")
    client = socket.create_connection(server.addresses[0][:2])
    if style == "accept":
        handle = server.accept()
        threading.Thread(target=Pool.handle, args=(server, handle, None)).start()
    client.sendall(b"before")
    assert client.recv(6) == b"before"
    child = os.fork()
    if not child:
        if style == "accept":
            for use in (server.accept, lambda: handle.recv(1), lambda: handle.sendall(b"lost")):
                try:
                    use()
                except ConnectionAbortedError:
                    continue
                os._exit(1)
        server.stop()
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    client.sendall(b"after")
    print(client.recv(5))
    client.close()
    server.stop()
"""


@pytest.mark.parametrize("style", ["handle", "accept", "queue"])
def test_a_server_for_threads_that_a_forked_child_stops_goes_on_in_its_parent(style: str) -> None:
    with program(THREADS, style) as process:
        stop = threading.Timer(10 * PATIENCE, process.kill)
        stop.start()
        assert printed(process) == 0
        assert printed(process) == b"after"
        assert process.wait(PATIENCE) == 0
        stop.cancel()


SENDING = """
    import os, queue, socket, sys, threading, time, warnings
    from iostreamsrv import StreamClosedError
    from iostreamsrv.styles import BlockingServer, QueueServer

    warnings.simplefilter("ignore")  # it is said that threads and forks do not go together: so this is tested

    style = sys.argv[1]
    queues = queue.Queue()
    if style == "queue":
        server = QueueServer("localhost", 0, lambda queue, data: queues.put(queue))
        threading.Thread(target=server.run).start()
    else:
        server = BlockingServer()
        server.start()
        server.listen(0, "127.0.0.1")
    client = socket.create_connection(server.addresses[0][:2])
    client.sendall(b"before")
    sending = server.accept() if style == "accept" else queues.get()
    send = sending.sendall if style == "accept" else sending.put
    if style == "accept":  # this thread has the handle until the client reads
        threading.Thread(target=send, args=[bytes(50_000_000)]).start()
        time.sleep(0.2)
    child = os.fork()
    if not child:
        try:
            send(b"lost")
        except (ConnectionAbortedError, StreamClosedError):
            os._exit(0)
        os._exit(1)
    print(os.waitpid(child, 0)[1])
    client.close()
    server.stop()
"""


@pytest.mark.parametrize("style", ["accept", "queue"])
def test_a_forked_child_that_sends_while_its_parent_does_gets_an_error(style: str) -> None:
    with program(SENDING, style) as process:
        stop = threading.Timer(10 * PATIENCE, process.kill)
        stop.start()
        assert printed(process) == 0
        assert process.wait(PATIENCE) == 0
        stop.cancel()


STALE = """
    import select, selectors, sys

    del select.epoll
    selector, what = sys.argv[1:]
    selectors.DefaultSelector = getattr(selectors, selector)

    import asyncio, os, socket
    from iostreamsrv import IOStream
    from iostreamsrv.streams import hub

    TURNS = 20

    async def main():
        assert hub.driver is hub.LoopHub
        pairs = [socket.socketpair() for _ in range(3)]
        streams = [IOStream(ours) for ours, _ in pairs]
        reading = [stream.read_until(b"\\n") for stream in streams]
        await asyncio.sleep(0.01)
        ready, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)  # until the parent has ended
            os._exit(0)
        reading[0].add_done_callback(lambda done: done.exception())
        number = streams[0].fileno()
        streams[0].socket.close()
        if what == "closed":
            streams[0].close()
        else:
            ours, theirs = socket.socketpair()
            assert ours.fileno() == number, "the lowest that is free"
            pairs.append((None, theirs))
            streams.append(IOStream(ours))
            reading.append(streams[-1].read_until(b"\\n"))
        for _, theirs in pairs:
            theirs.send(b"line\\n")
        done, _ = await asyncio.wait(reading[1:], timeout=5)
        print(len(done) == len(reading) - 1)

        loop, polls = asyncio.get_running_loop(), 0
        select = loop._selector.select

        def counted(timeout):
            nonlocal polls
            polls += 1
            return select(timeout)

        loop._selector.select = counted
        await asyncio.sleep(0.3)
        print(polls < TURNS)
        del loop._selector.select
        os.close(go)
        os.close(ready)
        os.waitpid(child, 0)
        for stream in streams:
            stream.close()
        for _, theirs in pairs:
            theirs.close()

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("selector", "what"), crossed(["PollSelector", "SelectSelector"], ["closed", "used by another stream"])
)
def test_without_epoll_a_descriptor_that_a_child_holds_makes_nobody_deaf_and_costs_no_turns(
    selector: str, what: str
) -> None:
    with program(STALE, selector, what) as process:
        assert printed(process) is True, "all others have read"
        assert printed(process) is True, "the loop sleeps"
        assert process.wait(PATIENCE) == 0
