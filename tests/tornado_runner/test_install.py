"""`install()`: for whom it holds, and whom it leaves alone. Each test runs a program, for it cannot be undone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from iostreamsrv.certificates import self_signed
from iostreamsrv.tornado import replacements
from tests.support import PROJECT


def printed(program: str) -> list[str]:
    """The lines that a program prints."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


MODULE = """
import sys, types
def module(name, source):
    made = sys.modules[name] = types.ModuleType(name)
    exec(source, vars(made))
    return made
"""


def test_it_holds_for_modules_that_are_imported_before_and_after() -> None:
    source = "from tornado.iostream import IOStream, StreamClosedError as Closed\nimport tornado.tcpserver as servers"
    assert printed(
        MODULE
        + f"before = module('before', {source!r})\n"
        + "import iostreamsrv.tornado\n"
        + "iostreamsrv.tornado.install()\n"
        + f"after = module('after', {source!r})\n"
        + "for each in before, after:\n"
        + "    print(each.IOStream.__module__, each.Closed.__module__, each.servers.TCPServer.__module__)\n"
        + "import tornado.websocket, tornado.testing\n"
        + "print(tornado.websocket.IOStream.__module__, tornado.testing.HTTPServer.__module__)\n"
    ) == [
        *["iostreamsrv.iostream iostreamsrv.errors iostreamsrv.tornado.servers"] * 2,
        "iostreamsrv.iostream iostreamsrv.tornado.servers",
    ]


def test_a_second_call_does_nothing() -> None:
    first, second = printed(
        "from iostreamsrv.tornado import install\nfor _ in range(2):\n    print(len(install()), end='\\n')"
    )
    assert int(first) >= len(replacements.REPLACEMENTS)
    assert second == "0"


def test_it_sets_nothing_for_child_processes() -> None:
    assert printed(
        "import os\nfrom iostreamsrv.tornado import install\n"
        "before = dict(os.environ)\ninstall()\nprint(os.environ == before)"
    ) == ["True"]


def test_a_server_of_this_package_keeps_its_defaults() -> None:
    assert printed(
        "import iostreamsrv, iostreamsrv.httpserver, iostreamsrv.tornado\n"
        "iostreamsrv.tornado.install()\n"
        "import tornado.tcpserver\n"
        "print(iostreamsrv.TCPServer().options == iostreamsrv.ServerOptions())\n"
        "print({iostreamsrv.tcpserver.TCPServer, iostreamsrv.httpserver.TCPServer} == {iostreamsrv.TCPServer})\n"
        "print(tornado.tcpserver.TCPServer().options == iostreamsrv.tornado.OPTIONS)\n"
    ) == ["True", "True", "True"]


def test_a_class_that_was_derived_before_is_warned_about() -> None:
    (line,) = printed(
        "import warnings\nfrom tornado.tcpserver import TCPServer\n"
        "class Early(TCPServer):\n    pass\n"
        "from iostreamsrv.tornado import install\n"
        "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n    install()\n"
        "print(*((each.category.__name__, each.filename, str(each.message)) for each in caught))"
    )
    assert line.startswith("('RuntimeWarning', '<string>', \"__main__.Early was defined before iostreamsrv.tornado.")
    assert line.count("RuntimeWarning") == 1


def test_http_servers_take_tornados_arguments_and_have_its_limits() -> None:
    assert printed(
        "from iostreamsrv.tornado import install\ninstall()\n"
        "from tornado.httpserver import HTTPServer\n"
        "one, other = HTTPServer(print, True, xheaders=True), HTTPServer(print, idle_connection_timeout=60)\n"
        "print(one.conn_params.no_keep_alive, one.xheaders, one.options.read_timeout, one.conn_params.header_timeout)\n"
        "print(other.conn_params.header_timeout, other.options.read_timeout)\n"
        "print(one.options.max_buffer_size >> 20, one.options.max_write_buffer_size > 1 << 60)\n"
        "class Special(HTTPServer):\n    pass\n"
        "HTTPServer.configure(Special)\n"
        "print(type(HTTPServer(print)).__name__, isinstance(one, HTTPServer))\n"
    ) == ["True True 3600.0 None", "60 None", "100 True", "Special True"]


def test_a_program_may_configure_the_http_server_of_this_package() -> None:
    program = (
        "import asyncio\nfrom tornado.httpserver import HTTPServer\nimport tornado.web\n"
        "async def main():\n"
        "    for chosen in 'iostreamsrv.httpserver.HTTPServer', None, Own:\n"
        "        HTTPServer.configure(chosen, max_body_size=7)\n"
        "        server = tornado.web.Application().listen(0, '127.0.0.1')\n"
        "        server.stop()\n"
        "        print(type(server).__module__, server.conn_params.max_body_size)\n"
        "        if chosen is not None:\n"
        "            print(server.options.handshake_timeout)\n"
        "    class Special(HTTPServer):\n        pass\n"
        "    for configured, chosen in (HTTPServer, object), (Special, iostreamsrv.httpserver.HTTPServer):\n"
        "        try:\n            configured.configure(chosen)\n"
        "        except ValueError:\n            print('refused')\n"
        "import iostreamsrv.httpserver\nclass Own(iostreamsrv.httpserver.HTTPServer):\n    handshake_timeout = 3\n"
        "asyncio.run(main())"
    )
    theirs, ours = printed(program), printed(f"from iostreamsrv.tornado import install\ninstall()\n{program}")
    expected = ["iostreamsrv.httpserver 7", "10.0", "tornado.httpserver 7", "__main__ 7", "3.0", "refused", "refused"]
    assert theirs == expected
    expected[2] = "iostreamsrv.tornado.servers 7"
    assert ours == expected


START_TLS = """
import asyncio, socket
from iostreamsrv.tornado import install

install()

from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer
import iostreamsrv
from iostreamsrv.certificates import self_signed
from iostreamsrv.testing import MockClock

def starting(certificate, made, default):
    class Starting(default):
        async def handle_stream(self, stream, address):
            handshake = stream.start_tls(True, certificate)
            made.append(handshake)
            await asyncio.wait([handshake])
    return Starting()

async def main():
    certificate = {"certfile": "%s", "keyfile": "%s"}
    loop, clock, made, ends = asyncio.get_running_loop(), MockClock(), [], []
    with clock.installed():
        for base in TCPServer, iostreamsrv.TCPServer:
            server = starting(certificate, made, base)
            server.listen(0, "127.0.0.1")
            ends.append(socket.create_connection(server.addresses[0]))
            while len(made) < len(ends):
                await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        made.append(IOStream(ours).start_tls(False, {"cert_reqs": 0}))
        await clock.jump(3600)
        print(*(each.done() for each in made))
        for each in made:
            each.cancel() or each.exception()
        await asyncio.sleep(0)
    for each in (*ends, theirs):
        each.close()

asyncio.run(main())
"""


def test_start_tls_has_no_time_limit_except_on_a_stream_of_a_server_of_this_package(tmp_path: Path) -> None:
    files = self_signed().write(tmp_path)
    assert printed(START_TLS % (files["certfile"], files["keyfile"])) == ["False True False"]


def test_a_tornado_that_is_too_old_is_an_error() -> None:
    old = "import tornado\ntornado.version_info, tornado.version = (6, 4, 2, 0), '6.4.2'\n"
    message = "iostreamsrv.tornado needs Tornado 6.5 or later, and this is 6.4.2"
    assert printed(
        f"{old}from iostreamsrv.tornado import install\n"
        "try:\n    install()\nexcept RuntimeError as error:\n    print(error)"
    ) == [message]
    ended = subprocess.run(
        [sys.executable, "-c", f"{old}from iostreamsrv.tornado.__main__ import main\nmain(['x.py'])"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, f"python -m iostreamsrv.tornado: error: {message}")


def test_the_oldest_tornado_is_that_of_the_dependencies() -> None:
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    (needed,) = (match[1] for each in dependencies if (match := re.fullmatch(r"tornado>=([\d.]+)", each)))
    assert tuple(map(int, needed.split("."))) == replacements.MINIMUM_VERSION


SILENT = """
import asyncio
from iostreamsrv.tornado import install, servers

servers.IDLE_CONNECTION_TIMEOUT = 0.2
install()

import tornado.web, tornado.websocket
from tornado.tcpclient import TCPClient
from tornado.testing import bind_unused_port

class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message(message)

async def main():
    listener, port = bind_unused_port()
    tornado.web.Application([("/", Echo)]).listen(0, "127.0.0.1").add_socket(listener)
    websocket = await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{port}/")
    silent = await TCPClient().connect("127.0.0.1", port)
    print(await silent.read_until_close())
    await websocket.write_message("still there")
    print(await websocket.read_message())

asyncio.run(main())
"""


def test_a_silent_http_client_is_closed_in_the_end_and_a_silent_websocket_is_not() -> None:
    assert printed(SILENT) == ["b''", "still there"]
