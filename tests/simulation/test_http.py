"""Tornado applications on the simulation."""

import asyncio
import logging

import pytest
import tornado.web

from iostreamsrv import IOStream, ListenError
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.testing import Faults, Simulation
from tests.support.certificates import TRUSTING_ALL

CLIENTS = 5
REQUEST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc"


class Answer(tornado.web.RequestHandler):
    async def post(self) -> None:
        self.write(self.request.body)


def application() -> tornado.web.Application:
    return tornado.web.Application([("/", Answer)], log_function=lambda handler: None)


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_those_who_send_eof_behind_their_request_at_the_same_time_are_all_answered(
    ssl_options: dict[str, str], over_tls: bool
) -> None:
    async def main(sim: Simulation) -> list[bytes]:
        server = sim.serve(HTTPServer(application(), ssl_options=dict(ssl_options) if over_tls else None))

        async def client() -> bytes:
            stream = await sim.connect(server, ssl_options=TRUSTING_ALL if over_tls else None, allow_half_open=True)
            await stream.write(REQUEST)
            await stream.send_eof()
            return bytes(await stream.read_until_close())

        return await asyncio.gather(*[client() for _ in range(CLIENTS)])

    for seed in range(5):
        answers = Simulation(seed, Faults(cut=0)).run(main)
        assert [answer[-3:] for answer in answers] == [b"abc"] * CLIENTS


def test_a_client_that_has_left_is_noticed_while_a_handler_works_for_it() -> None:
    left: list[float] = []

    class Working(tornado.web.RequestHandler):
        async def post(self) -> None:
            await asyncio.sleep(100)

        def on_connection_close(self) -> None:
            left.append(1)

    async def main(sim: Simulation) -> None:
        server = sim.serve(HTTPServer(tornado.web.Application([("/", Working)], log_function=lambda handler: None)))
        stream: IOStream = await sim.connect(server)
        await stream.write(REQUEST)
        await stream.send_eof()
        await sim.sleep(1)
        assert left == [1]

    Simulation().run(main)


def test_no_answer_is_lost_when_the_system_refuses_to_set_nodelay(caplog: pytest.LogCaptureFixture) -> None:
    async def main(sim: Simulation) -> None:
        server = HTTPServer(application())
        stream = await sim.connect(sim.serve(server))
        for _ in range(20):
            await stream.write(REQUEST)
            assert (await stream.read_until(b"abc", timeout=10)).startswith(b"HTTP/1.1 200 OK")

    with caplog.at_level(logging.WARNING):
        refused = 0
        for seed in range(20):
            sim = Simulation(seed, Faults(setsockopt=0.1))
            try:
                sim.run(main)
            except ListenError:
                refused += 1
        assert refused < 15
    assert "Uncaught exception" not in caplog.text
