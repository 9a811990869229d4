"""``examples/tornado_app.py`` and ``http_hello.py``, asked by those who ask such servers: a browser, curl and wrk."""

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page, with_chromium
from tests.support.hostile import everything
from tests.support.programs import PATIENCE, PROJECT, Program, Served

EXAMPLES = PROJECT / "examples"
ENDED_WELL = (0, "", "")
BOTH = ("http_hello:HelloServer", "tornado_app:server")

with_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here: apt-get install curl")
with_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here: apt-get install wrk")


def start(target: str) -> Program:
    return Served(f"examples.{target}", patience=90).listening()


@pytest.fixture
def hello() -> Iterator[Program]:
    with start("http_hello:HelloServer") as program:
        yield program


def url(program: Program) -> str:
    return "http://{}:{}/".format(*program.addresses[0])


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name, most", [("http_hello.py", 60), ("tornado_app.py", 70)])
def test_an_example_is_short(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= most


# ---- both


@with_curl
@pytest.mark.parametrize("target", BOTH)
def test_curl_gets_and_keeps_its_connection(target: str) -> None:
    with start(target) as program:
        connections = "%{num_connects} %{http_code}\n"
        assert curl("-w", connections, *["-o", "/dev/null", url(program)] * 3) == "1 200\n0 200\n0 200\n"
        assert program.end() == ENDED_WELL


@with_wrk
@pytest.mark.parametrize("target", BOTH)
def test_wrk_is_answered_all_it_asks(target: str) -> None:
    with start(target) as program:
        done = subprocess.run(
            ["wrk", "-t1", "-c50", "-d1s", url(program)], capture_output=True, text=True, timeout=PATIENCE
        )
        found = re.search(r"(\d+) requests in", done.stdout)
        assert found is not None
        assert int(found[1]) > 100
        assert "errors" not in done.stdout
        assert "Non-2xx" not in done.stdout
        assert program.end() == ENDED_WELL


# ---- http_hello.py


@with_curl
def test_hello_says_hello_to_curl(hello: Program) -> None:
    assert curl(url(hello)) == "Hello, world\n"
    assert curl("--head", url(hello)).splitlines()[0] == "HTTP/1.1 200 "
    assert curl("--http1.0", url(hello)) == "Hello, world\n"
    assert hello.end() == ENDED_WELL


@with_curl
@pytest.mark.parametrize("headers", [[], ["Transfer-Encoding: chunked"], ["Expect: 100-continue"]])
def test_hello_takes_a_body(hello: Program, headers: list[str], tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(900_000))
    options = [option for header in headers for option in ("-H", header)]
    codes = curl("-w", "%{http_code} ", *options, "--data-binary", f"@{body}", url(hello), url(hello))
    assert codes == "Hello, world\n200 Hello, world\n200 "
    assert hello.end() == ENDED_WELL


@with_curl
def test_hello_lets_curl_continue_before_it_has_sent_a_body(hello: Program) -> None:
    done = subprocess.run(
        [
            "curl",
            "-sv",
            "--noproxy",
            "*",
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "60",
            "-d",
            "x",
            url(hello),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "< HTTP/1.1 100" in done.stderr
    assert done.stdout == "Hello, world\n"


@with_curl
def test_hello_refuses_a_body_that_is_too_large_and_the_client_reads_so(hello: Program, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(1_100_000))
    assert curl("-w", "%{http_code}", "-H", "Expect:", "--data-binary", f"@{body}", url(hello)) == (
        "the body is too large\n413"
    )
    assert hello.end() == ENDED_WELL


def test_hello_answers_requests_that_come_together_in_order(hello: Program) -> None:
    with hello.client() as client:
        client.send(
            b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 20 + b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        )
        assert everything(client.socket).count(b"Hello, world\n") == 21


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"what\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    ],
)
def test_hello_says_in_http_what_is_wrong_and_goes_on_for_others(hello: Program, request_: bytes, status: int) -> None:
    with hello.client() as good, hello.client() as bad:
        bad.send(request_)
        assert everything(bad.socket).startswith(b"HTTP/1.1 %d " % status)
        assert good.ask(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert hello.end() == ENDED_WELL


# ---- tornado_app.py


LINES = '[...document.querySelectorAll("li")].map(item => item.textContent)'


async def shows(page: Page, *lines: str) -> None:
    """Return when the page shows these lines and no others."""
    await page.wait_until(f"{LINES}.join() === {','.join(lines)!r}")


async def say(page: Page, line: str) -> None:
    await page.value(f"document.forms[0].line.value = {line!r}; document.forms[0].requestSubmit()")


@with_chromium
def test_what_one_page_of_a_browser_says_all_show_until_the_server_ends() -> None:
    async def scenario(browser: Browser, program: Program) -> None:
        one = await browser.open(f"{url(program)}#first")
        await shows(one, "first")
        other = await browser.open(f"{url(program)}#second")
        await shows(other, "second")
        await shows(one, "first", "second")
        await say(other, "<b>hello</b>")
        await shows(one, "first", "second", "<b>hello</b>")
        assert program.end() == ENDED_WELL
        await shows(one, "first", "second", "<b>hello</b>", "(the server has gone)")
        await shows(other, "second", "<b>hello</b>", "(the server has gone)")
        await one.close()
        await other.close()

    with start("tornado_app:server") as program, Browser() as browser:
        asyncio.run(scenario(browser, program))


def upgraded(program: Program) -> socket.socket:
    """A WebSocket of a client that reads no more than the server's word for it."""
    sock = socket.create_connection(program.addresses[0], PATIENCE)
    sock.sendall(
        b"GET /lines HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        found += sock.recv(1)
    assert found.startswith(b"HTTP/1.1 101 ")
    return sock


def said(text: bytes) -> bytes:
    """A client's frame."""
    return b"\x81\xfe" + len(text).to_bytes(2) + bytes(4) + text


def test_a_page_that_takes_nothing_is_closed_and_the_others_go_on() -> None:
    with start("tornado_app:server") as program, upgraded(program), upgraded(program) as speaking:
        expected = 0
        while expected < 10_000_000:  # more than the kernel holds for the page that does not read
            speaking.sendall(said(bytes(9000)))
            expected += 9004
            received = 0
            while received < 9004:
                received += len(speaking.recv(9004 - received))
        assert program.end() == ENDED_WELL


def test_pages_that_go_in_the_middle_of_it_harm_nobody() -> None:
    with start("tornado_app:server") as program, upgraded(program) as speaking:
        for number in range(20):
            leaving = upgraded(program)
            speaking.sendall(said(b"%0200d" % number) * 20)
            leaving.close()  # with lines unread, so by a reset
        received = b""
        while received.count(b"%0200d" % 19) < 20:
            received += speaking.recv(65536)
        assert program.end() == ENDED_WELL
