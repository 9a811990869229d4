"""How many connections the limit of descriptors allows, seen from processes that have other limits than this one."""

import contextlib
import resource
import socket
import sys
from typing import Any

import pytest

from tests.support.listening import output
from tests.support.programs import Client, Program, printed, program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def enough(limit: int) -> Any:
    too_few = HARD != resource.RLIM_INFINITY and limit > HARD
    return pytest.mark.skipif(too_few, reason=f"the hard limit is {HARD}")


DEFAULTS = """
    import resource, sys
    from iostreamsrv.runtime.rlimit import default_connections

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft in map(int, sys.argv[1:]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(default_connections())
    """


@pytest.mark.parametrize(
    "soft, connections",
    [
        (20, 10),
        (64, 32),
        (127, 63),
        (128, 64),
        (1024, 960),
        pytest.param(10_063, 9999, marks=enough(10_063)),
        pytest.param(10_065, 10_000, marks=enough(10_065)),
        pytest.param(20_000, 10_000, marks=enough(20_000)),
    ],
)
def test_the_default_leaves_64_or_half_of_the_descriptors_and_is_ten_thousand_at_most(
    soft: int, connections: int
) -> None:
    assert limited(DEFAULTS, str(soft)) == [connections]


def limited(source: str, *arguments: str) -> list[Any]:
    """What a program prints."""
    with program(source, *arguments) as process:
        said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return [int(line) for line in said.split()]


RAISING = """
    import resource, sys
    from iostreamsrv.runtime.rlimit import raise_limit

    soft, hard, connections = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    raise_limit(connections or None)
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
    """


@pytest.mark.parametrize(
    "soft, hard, connections, raised",
    [
        (100, 500, 0, 500),
        (100, 500, 200, 264),
        (100, 500, 436, 500),
        (100, 500, 10_000, 500),
        (100, 500, 1 << 62, 500),
        (500, 500, 10, 500),
        (300, 500, 10, 300),
    ],
)
def test_the_soft_limit_is_raised_to_what_is_wanted_and_never_lowered_or_beyond_the_hard_one(
    soft: int, hard: int, connections: int, raised: int
) -> None:
    assert limited(RAISING, str(soft), str(hard), str(connections)) == [raised, hard]


SERVING = """
    import asyncio, resource, sys
    import iostreamsrv

    class Server(iostreamsrv.TCPServer):
        async def handle_stream(self, stream, address):
            print(len(self.streams))
            await stream.read_until_close()

    def serve():
        server.listen(0, "127.0.0.1")
        print(server.addresses[0][1])

    async def main():
        serve()
        await server.serve_forever()

    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 90))
    server = Server(max_connections=eval(sys.argv[2]))
    if sys.argv[1] == "run":
        serve()
        iostreamsrv.run(server)
    else:
        asyncio.run(main())
    """


@pytest.mark.parametrize(
    "how, connections, most",
    [("run", "None", 44), ("asyncio", "None", 29), ("run", "3", 3), ("asyncio", "3", 3)],
)
def test_a_server_takes_as_many_as_there_are_descriptors_for_and_only_run_raises_their_limit(
    how: str, connections: str, most: int
) -> None:
    with program(SERVING, how, connections) as process:
        port = printed(process)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(most + 5)]
        try:
            assert max(printed(process) for _ in range(most)) == most
            for client in clients[:5]:
                client.close()  # only then the next one comes
                assert printed(process) == most
        finally:
            for client in clients:
                client.close()


OPTIONS = """
    import json, resource
    from iostreamsrv import TCPServer

    class Server(TCPServer):
        async def handle_stream(self, stream, address): ...

    server = Server()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    server.replace_options(max_connections=1 << 40)
    print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE) == before))
    """


def test_a_limit_that_is_replaced_raises_no_limit_of_descriptors() -> None:
    assert output(OPTIONS) == [True]


EXHAUSTED = """
import asyncio, resource
import iostreamsrv

class Server(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))

async def main():
    server = Server(max_connections=1000)
    server.listen(0, "127.0.0.1")
    print("listening on %s:%d" % server.addresses[0])
    await server.serve_forever()

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
asyncio.run(main())
"""


def ends_or_answers(client: Client) -> bytes:
    """Its line, or b"" for an end, which may be a reset as its line was never read."""
    with contextlib.suppress(ConnectionResetError):
        return client.line()
    return b""


def test_clients_for_whom_there_is_no_descriptor_are_closed_one_by_one_in_the_end() -> None:
    with Program("-c", EXHAUSTED) as server, contextlib.ExitStack() as stack:
        server.listening()
        clients = [stack.enter_context(server.client()) for _ in range(40)]
        for client in clients:
            client.send(b"abc\n")
        answers: list[bytes] = []
        while answers.count(b"") < 2:  # when the longest rest has been reached, the first of the queue is closed
            answers.append(ends_or_answers(clients[len(answers)]))
        assert 20 < len(answers) < 40
        assert answers == [b"abc\n"] * (len(answers) - 2) + [b""] * 2
        assert clients[0].ask(b"abc\n") == b"abc\n"
        assert server.said().count("\n") == 1
        assert "accepting is paused: [Errno 24]" in server.said()


def test_who_comes_when_there_is_a_descriptor_again_is_served() -> None:
    with Program("-c", EXHAUSTED) as server, contextlib.ExitStack() as stack:
        server.listening()
        clients = [server.client() for _ in range(40)]
        server.wait_for("accepting is paused")
        for client in clients:
            client.__exit__()
        assert stack.enter_context(server.client()).ask(b"abc\n") == b"abc\n"


GOODBYES = """
    import asyncio, resource, socket, sys
    import iostreamsrv
    from iostreamsrv.server.base import core_of

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    class Server(iostreamsrv.TCPServer):
        when_full = sys.argv[1]

        async def handle_stream(self, stream, address):
            await stream.read_until(b"never")

    class Polite(Server):
        async def handle_reject(self, stream, address):
            await asyncio.sleep(100)

    async def main():
        for make in Server, Polite:
            server = make()
            server.listen(0, "127.0.0.1")
            print(core_of(server).connections.limits.capacity)
            await server.shutdown()

    asyncio.run(main())
    """


@pytest.mark.parametrize(("when_full", "connections"), [("wait", [190, 190]), ("reject", [190, 126])])
def test_those_who_are_told_that_there_is_no_place_have_descriptors_too(when_full: str, connections: list[int]) -> None:
    assert limited(GOODBYES, when_full) == connections
