"""It runs where the system has less than Linux: imported and serving, over TCP and TLS, without epoll and others."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import PROJECT

SERVE = """
import asyncio, fnmatch, os, select, selectors, signal, socket, ssl, sys

MISSING = {missing!r}

for missing in MISSING:
    owner, _, name = missing.partition(".")
    if not name:
        sys.modules[owner] = None  # importing it raises ImportError
        continue
    # `import socket` has copies of what _socket has
    for module in filter(None, (sys.modules[owner], sys.modules.get("_" + owner))):
        for each in fnmatch.filter(dir(module), name):
            delattr(module, each)


def socketpair(*_):  # where there are no Unix sockets it is made of TCP, as on Windows
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


if not hasattr(socket, "AF_UNIX"):
    socket.socketpair = socketpair
if not hasattr(select, "epoll"):
    selectors.DefaultSelector = selectors.SelectSelector

import iostreamsrv
from iostreamsrv.certificates import self_signed
from iostreamsrv.httpserver import HTTPServer


class EchoServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\\n"))


async def talk(server, **options):
    stream = await iostreamsrv.TCPClient().connect(*server.addresses[0][:2], **options)
    for _ in range(3):
        await stream.write(b"hello\\n" + bytes(100_000) + b"\\n")
        assert await stream.read_until(b"\\n", timeout=10) == b"hello\\n"
        assert await stream.read_bytes(100_001, timeout=10) == bytes(100_000) + b"\\n"
    with open(__file__ if "__file__" in globals() else os.__file__, "rb") as file:
        sent = await stream.sendfile(file)
        file.seek(0)
        assert await stream.read_bytes(sent, timeout=10) == file.read()
    await stream.aclose()


async def main():
    files = self_signed("localhost").write(sys.argv[1])
    plain, secure = EchoServer(), EchoServer(ssl_options=files)
    for server in plain, secure:
        server.listen(0, "127.0.0.1")
    await talk(plain)
    await talk(secure, ssl_options={{"cert_reqs": ssl.CERT_NONE}})
    await plain.shutdown(1)
    await secure.shutdown(1)
    print("echoed")


server = EchoServer(ssl_options=self_signed("localhost").write(sys.argv[1]))
server.listen(0, "127.0.0.1")
iostreamsrv.IOLoop.current().call_later(0.1, server.stop)
iostreamsrv.run(server)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "missing",
    [
        ["select.epoll", "select.EPOLL*"],  # and so on macOS, and under gevent.monkey
        ["select.epoll", "select.EPOLL*", "select.poll", "select.POLL*"],
        ["fcntl", "termios", "resource", "grp", "pwd"],
        ["os.sendfile"],
        ["socket.AF_UNIX"],
        ["signal.SIGHUP"],
        [
            *("select.epoll", "select.EPOLL*", "select.poll", "select.POLL*", "os.sendfile", "socket.AF_UNIX"),
            *("fcntl", "termios", "resource", "grp", "pwd", "signal.SIGHUP", "os.fork", "os.register_at_fork"),
            *("socket.SO_REUSEPORT", "socket.TCP_KEEP*", "socket.MSG_*", "os.geteuid", "os.getuid"),
        ],  # Windows, more or less
    ],
    ids=["epoll", "poll", "fcntl", "sendfile", "unix", "sighup", "all"],
)
def test_it_is_imported_and_echoes_over_tcp_and_tls_without(missing: list[str], tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVE.format(missing=missing), str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (program.returncode, program.stdout) == (0, "echoed\n")
    # On a busy machine the load of a certificate blocks the loop for long.
    assert [line for line in program.stderr.splitlines() if "has blocked the loop" not in line] == []
