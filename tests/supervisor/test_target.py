"""The server that "module:Target" names."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tornado.tcpserver
import tornado.web

from iostreamsrv import IOStream, OptionError, TCPServer
from iostreamsrv.certificates import CertificateError, self_signed
from iostreamsrv.httpserver import HTTPServer
from iostreamsrv.server.base import core_of
from iostreamsrv.supervisor.settings import Settings
from iostreamsrv.supervisor.target import TargetError, load, server_of
from tests.support.listening import output


class Silent(TCPServer):
    max_connections = 7

    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        await stream.read_until_close()


Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file of a program; the current folder is that of the program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def not_loaded(target: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        load(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert "\n" not in str(caught.value)
    return caught.value


# ---- load


def test_the_current_folder_comes_first(write: Write, tmp_path: Path) -> None:
    write("json.py", "Target = 'mine'")  # in another interpreter, where the one of Python is not imported yet
    write("chat.py", "class Servers:\n    chat = 5")
    assert load("chat:Servers.chat") == 5
    assert sys.path[0] == str(tmp_path)
    load("chat:Servers")
    assert sys.path.count(str(tmp_path)) == 1
    sys.path[:] = ["/nowhere", *sys.path]
    load("chat:Servers")
    assert sys.path[:2] == [str(tmp_path), "/nowhere"]
    source = """
        import sys
        sys.path.insert(0, "/nowhere")
        from iostreamsrv.supervisor.target import load
        del sys.modules["json"]
        found = load("json:Target")
        del sys.modules["json"], sys.path[:2]
        import json
        print(json.dumps(found))
    """
    assert output(source, cwd=tmp_path, environment={"PYTHONSAFEPATH": "1"}) == ["mine"]


def test_a_module_that_is_not_there_is_named_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("chat.py", "")
    error = not_loaded("chta:Chat")
    expected = f"chta:Chat: there is no module 'chta' in {tmp_path} or where Python looks: did you mean 'chat'?"
    assert (str(error), error.details) == (expected, "")
    assert str(not_loaded("qqqqq:Chat")).endswith("or where Python looks")


def test_a_module_that_is_not_in_its_package_is_named_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("my/__init__.py", "")
    write("my/chat.py", "")
    expected = f"my.chta:Chat: there is no module 'my.chta' in {tmp_path / 'my'}: did you mean 'my.chat'?"
    assert str(not_loaded("my.chta:Chat")) == expected
    assert str(not_loaded("my.chat.x:Chat")).endswith("there is no module 'my.chat.x': 'my.chat' is not a package")


def test_an_import_inside_that_fails_is_another_error(write: Write, tmp_path: Path) -> None:
    write("chat.py", "x = 1\nimport no_such_module\n")
    error = not_loaded("chat:Chat")
    assert str(error) == "chat:Chat: the import of chat failed: No module named 'no_such_module'"
    lines = error.details.splitlines()
    assert lines[1] == f'  File "{tmp_path}/chat.py", line 2, in <module>'
    assert lines[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


@pytest.mark.parametrize(
    "source, said",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise RuntimeError('two\\nlines')", r"RuntimeError: two\nlines"),
    ],
)
def test_a_module_that_raises_shows_its_own_traceback_only(
    write: Write, tmp_path: Path, source: str, said: str
) -> None:
    write("chat.py", f"def f():\n    {source}\n\nf()\n")
    error = not_loaded("chat:Chat")
    assert str(error) == f"chat:Chat: the import of chat failed: {said}"
    files = re.findall(r'File "(.*?)", line (\d+)', error.details)
    assert [(Path(file).name, line) for file, line in files] == [("chat.py", "4"), ("chat.py", "2")]


def test_a_syntax_error_has_its_line(write: Write, tmp_path: Path) -> None:
    write("chat.py", "x = 1\nclass Chat(:\n")
    error = not_loaded("chat:Chat")
    assert str(error).startswith("chat:Chat: the import of chat failed: SyntaxError: ")
    assert f'File "{tmp_path}/chat.py", line 2' in error.details
    assert "importlib" not in error.details


def test_a_module_that_ends_the_program_does_not(write: Write) -> None:
    write("chat.py", "import sys\nsys.exit(5)\n")
    error = not_loaded("chat:Chat")
    assert "the import of chat ended the program, with exit code 5" in str(error)
    assert 'has it an if __name__ == "__main__"?' in str(error)


def test_an_attribute_that_is_not_there_is_named_with_the_nearest(write: Write) -> None:
    write("chat.py", "class Chat:\n    server = 1\n")
    assert str(not_loaded("chat:Chta")) == "chat:Chta: the module chat has no 'Chta': did you mean 'Chat'?"
    assert str(not_loaded("chat:Chat.sevrer")) == "chat:Chat.sevrer: Chat has no 'sevrer': did you mean 'server'?"
    assert str(not_loaded("chat:qqqqq")) == "chat:qqqqq: the module chat has no 'qqqqq'"


# ---- server_of


def settings(**values: Any) -> Settings:
    return Settings(target="chat:Chat", **values)


def made(loaded: Any, **values: Any) -> TCPServer:
    return server_of(loaded, settings(**values))


def refusal(loaded: Any, **values: Any) -> str:
    with pytest.raises(TargetError) as caught:
        made(loaded, **values)
    assert str(caught.value).startswith("chat:Chat: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("chat:Chat: ")


def test_a_class_is_called_with_the_options() -> None:
    server = made(Silent, options={"idle_timeout": 5})
    assert type(server) is Silent
    assert (server.options.idle_timeout, server.options.max_connections) == (5, 7)
    assert made(Silent, options={"max_connections": 9}).options.max_connections == 9


class Bare(Silent):
    """Its constructor takes nothing, and has its own idea."""

    def __init__(self) -> None:
        super().__init__(idle_timeout=60)


class Stubborn(Silent):
    """Its constructor takes options, and sets one itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "idle_timeout": 60})


@pytest.mark.parametrize("loaded", [Bare, Stubborn, lambda: Bare(), Bare()], ids=["bare", "own", "factory", "instance"])
def test_what_is_asked_for_comes_before_what_a_server_sets_itself(loaded: Any) -> None:
    server = made(loaded, options={"max_connections": 9})
    assert (server.options.idle_timeout, server.options.max_connections) == (60, 9)
    assert made(loaded, options={"idle_timeout": 5}).options.idle_timeout == 5


@pytest.mark.parametrize("loaded", [Silent, Bare, lambda: Bare(), Silent()], ids=["class", "bare", "factory", "own"])
def test_proxies_that_are_asked_for_are_trusted(loaded: Any) -> None:
    server = made(loaded, options={"proxy_protocol": "10.0.0.0/8"})
    (setup,) = core_of(server).listeners.setups
    assert setup.trusted is not None
    assert ("10.1.2.3", 1) in setup.trusted
    assert ("127.0.0.1", 1) not in setup.trusted


@pytest.mark.parametrize("loaded", [Silent, Bare, lambda: Bare(), Silent()], ids=["class", "bare", "factory", "own"])
def test_a_certificate_that_is_asked_for_is_used(loaded: Any, tmp_path: Path) -> None:
    files = self_signed().write(tmp_path)
    server = made(loaded, tls_cert=files["certfile"], tls_key=files["keyfile"])
    assert server.ssl_options == files
    assert len(server.certificates) == 1


def test_a_certificate_comes_before_that_of_an_instance(tmp_path: Path) -> None:
    own, asked = self_signed().write(tmp_path / "own"), self_signed().write(tmp_path / "asked")
    instance = Silent(ssl_options=own)
    assert made(instance).ssl_options is own
    assert made(instance, tls_cert=asked["certfile"], tls_key=asked["keyfile"]).ssl_options == asked


@pytest.mark.parametrize("loaded", [Silent, lambda: Silent(), Silent()], ids=["class", "factory", "instance"])
def test_a_certificate_that_is_not_there_is_an_error(loaded: Any) -> None:
    with pytest.raises(CertificateError, match=r"^certfile='nowhere.pem': No such file"):
        made(loaded, tls_cert="nowhere.pem")


async def handle(stream: IOStream, address: Any) -> None:
    """A handler."""


def test_a_coroutine_function_of_two_arguments_is_a_handler() -> None:
    server = made(handle, options={"max_connections": 9})
    assert type(server) is TCPServer
    assert server.handle_stream is handle
    assert server.options.max_connections == 9


async def handle_nothing() -> None:
    """No handler."""


def test_any_other_coroutine_function_is_refused() -> None:
    text = refusal(handle_nothing)
    assert text.startswith("is a coroutine function of () -> None: a handler takes (stream, address)")


def test_any_other_function_is_a_factory() -> None:
    assert type(made(lambda: Silent())) is Silent
    assert made(partial(Silent, idle_timeout=5)).options.idle_timeout == 5


def test_a_function_that_needs_arguments_is_refused() -> None:
    def plain(stream: IOStream, address: Any) -> None:
        """A handler, but a plain function."""

    text = refusal(plain)
    assert "one that makes the server takes no arguments, and a handler is a coroutine function: async def" in text


def test_an_application_gets_a_server_around_it() -> None:
    application = tornado.web.Application()
    text = refusal(application)
    assert "needs a server around it: from iostreamsrv.httpserver import HTTPServer; server = HTTPServer(" in text
    server = HTTPServer(application)
    assert made(server, options={"max_connections": 9}) is server
    assert server.options.max_connections == 9


class Needy(Silent):
    """Its constructor needs more than options."""

    def __init__(self, store: object, **options: Any) -> None:
        super().__init__(**options)


class Careless(Silent):
    """Its constructor is not finished."""

    def __init__(self) -> None:
        pass


class NoHandler(TCPServer):
    """Nothing to do."""


@pytest.mark.parametrize(
    "loaded, problem",
    [
        (5, "is no server but an int"),
        ("text", "is no server but a str"),
        (os, "is a module, os: name a server in it"),
        (dict, "is a class, dict: it must be a subclass of iostreamsrv.TCPServer"),
        (tornado.tcpserver.TCPServer, "is a class of Tornado's own server, TCPServer: it must be a subclass of"),
        (tornado.tcpserver.TCPServer(), "is Tornado's own server: import it from iostreamsrv"),
        (lambda: None, "is no server but a NoneType"),
        (lambda: Silent, "made a class, Silent: it must make a server, Silent()"),
        (Needy, "needs other arguments than options, (store: object, **options: Any)"),
        (Careless, "its __init__ does not call super().__init__()"),
        (NoHandler, "NoHandler has no handle_stream(stream, address)"),
        (NoHandler(), "NoHandler has no handle_stream(stream, address)"),
    ],
)
def test_what_is_no_server_is_said_to_be_none(loaded: Any, problem: str) -> None:
    assert refusal(loaded).startswith(problem)


def test_code_that_raises_shows_its_traceback_only() -> None:
    def chat() -> TCPServer:
        raise ValueError("no database")

    with pytest.raises(TargetError) as caught:
        made(chat)
    assert str(caught.value) == "chat:Chat: Chat() failed: ValueError: no database"
    assert isinstance(caught.value.__cause__, ValueError)
    assert re.findall(r'File "(.*?)"', caught.value.details) == [__file__]


def test_an_option_that_the_code_gets_wrong_is_named() -> None:
    with pytest.raises(OptionError, match=r"^idle_timeout=-1: "):
        made(lambda: Silent(idle_timeout=-1))


@pytest.mark.gen_test
async def test_a_server_that_listens_already_is_refused() -> None:
    listening, bound = Silent(), Silent()
    listening.listen(0, "127.0.0.1")
    bound.bind(0, "127.0.0.1")
    try:
        for server in listening, bound:
            (address,) = server.addresses
            assert refusal(server) == f"listens already, on 127.0.0.1:{address[1]}: leave that to the option --bind"
    finally:
        listening.stop()
        bound.stop()


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert str(not_loaded("chat:Chat")) == "chat:Chat: the current folder is not there: No such file or directory"
