"""Imports go down only, and nothing of Tornado's streams and servers shows through ours."""

import ast
import functools
import graphlib
import inspect
import re
import sys
from collections.abc import Iterator

import pytest
import tornado.iostream
import tornado.tcpserver

import iostreamsrv
from iostreamsrv.httpserver import HTTPServer
from tests.support import PROJECT
from tests.support.modules import FRONT_DOOR, PACKAGE, imports, inside, nodes_of, own_imports

ROOMS = {
    "ground": ["version", "cores", "runtime", "errors", "options", "events", "ioloop"],
    "sansio": ["sansio"],
    "net": ["net", "netutil"],
    "certs": ["certs", "certificates"],
    "compat": ["compat"],
    "streams": ["streams", "iostream"],
    "server": ["server", "registry", "tcpserver"],
    "client": ["tcpclient"],
    "protocols": ["framing", "httpserver"],
    "styles": ["styles"],
    "testing": ["testing", "pytest_plugin"],
    "tornado": ["tornado"],
    "observe": ["observe"],
    "control": ["control"],
    "supervisor": ["supervisor"],
    "cli": ["cli", "__main__"],
}
"""The rooms of the house from the ground up, with their packages and public modules. Each may import from itself and
from those before it."""

INTERNAL = {"runtime", "sansio", "net", "certs", "compat", "streams", "server", "supervisor", "cli"}
"""Packages that users do not import from; docs/internals.md says so. All else is public."""


OF_EXTRAS = {"observe.metrics"}
"""Public modules that need an extra, so that their packages do not import them."""

DOORS = {"certificates", "ioloop", "netutil"}
"""Public modules that only re-export; the package imports from the modules behind them."""


def room_of(name: str) -> str:
    """The room of a module."""
    return next(room for room, members in ROOMS.items() if name.partition(".")[0] in members)


BELOW_SOCKETS = {
    "asyncio",
    "select",
    "selectors",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "threading",
    "time",
    "tornado",
}
"""What ``sansio`` does without."""

IN_MEMORY = {"sansio.tls": {"ssl"}, "sansio.servernames": {"threading"}}
"""What of it works without sockets as well."""


def test_every_module_has_its_room() -> None:
    members = [each for room in ROOMS.values() for each in room]
    assert {name for name in inside if members.count(name.partition(".")[0]) != 1} == set(), "give it a place in ROOMS"


def test_imports_go_down_only() -> None:
    floors = {room: floor for floor, room in enumerate(ROOMS)}
    assert [
        (name, imported)
        for name, path in inside.items()
        for imported in own_imports(path)
        if floors[room_of(imported)] > floors[room_of(name)]
    ] == []


def in_the_table() -> dict[str, list[str]]:
    """The modules of each room in the table of docs/internals.md, those that are public with stars."""
    rows = re.findall(r"(?m)^\| (\w+) \| .* \| (.*`.*) \|$", (PROJECT / "docs" / "internals.md").read_text())
    return {room: modules.replace("`", "").split() for room, modules in rows}


def test_the_table_of_rooms_has_every_module_in_its_room() -> None:
    table = in_the_table()
    assert list(table) == list(reversed(ROOMS))
    shown = {(room, name.strip("*")) for room, modules in table.items() for name in modules}
    assert shown == {(room_of(name), name) for name in inside if name not in INTERNAL | {"runtime"}}


def test_the_table_of_rooms_says_what_is_public() -> None:
    for name in (name for modules in in_the_table().values() for name in modules):
        internal = name.partition(".")[0] in INTERNAL or "." in name or name in ("version", "cores", "__main__")
        assert name.startswith("**") == (not internal or name.strip("*") in OF_EXTRAS), name


def test_no_modules_import_each_other_in_a_circle() -> None:
    """`graphlib` raises an error that names them."""
    graphlib.TopologicalSorter({name: set(own_imports(path)) - {name} for name, path in inside.items()}).prepare()


@pytest.mark.parametrize("name", sorted(DOORS))
def test_a_door_only_re_exports(name: str) -> None:
    kinds = {type(node) for node in ast.parse(inside[name].read_text()).body}
    assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign}


def test_nothing_inside_imports_through_a_door() -> None:
    assert {name: used for name, path in inside.items() if (used := DOORS & set(own_imports(path)))} == {}


@pytest.mark.parametrize("name", [name for name in inside if name.startswith("sansio")])
def test_sansio_knows_neither_sockets_nor_loops_nor_clocks(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(inside[name])}
    assert roots & BELOW_SOCKETS <= IN_MEMORY.get(name, set())
    assert roots <= sys.stdlib_module_names | {"iostreamsrv"}
    assert set(own_imports(inside[name])) <= {
        "errors",
        "sansio.buffers",
        "sansio.frames",
        "sansio.reads",
        "sansio.search",
        "sansio.servernames",
    }


MAY_WAIT = {"net.unixlistener": {"sleep"}, "control.client": {"sleep"}}
"""What other modules have of ``time``: there is no loop yet where one waits for the lock of another process, and none
in a script that waits for a service."""


def reads_of_a_clock(source: str) -> set[str]:
    """What a module has of ``time``, and what it asks for the time: a loop, or ``datetime``."""
    found = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name == "time"}
        elif isinstance(node, ast.ImportFrom) and node.module == "time" and not node.level:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            asked = node.attr
            of = "loop" if asked == "time" else "date" if asked in {"now", "utcnow", "today"} else None
            if of is not None and of in (owner := ast.unparse(node.value)):
                found.add(f"{owner}.{asked}")
    return found


def test_no_module_but_clock_reads_the_time() -> None:
    found = {name: reads_of_a_clock(path.read_text()) for name, path in inside.items()}
    assert found.pop("runtime.clock")
    assert {name: reads for name, reads in found.items() if reads} == MAY_WAIT


@pytest.mark.parametrize(
    "source, seen",
    [
        ("import time", {"time"}),
        ("def f():\n    import time as clock", {"time"}),
        ("from time import monotonic as now", {"monotonic"}),
        ("self.loop.time()", {"self.loop.time"}),
        ("asyncio.get_running_loop().time", {"asyncio.get_running_loop().time"}),
        ("datetime.datetime.now(UTC)", {"datetime.datetime.now"}),
        ("from .clock import real_time\nhub.time()", set()),
        ("from datetime import time", set()),
    ],
)
def test_every_read_of_a_clock_is_seen(source: str, seen: set[str]) -> None:
    assert reads_of_a_clock(source) == seen


FOREIGN = {
    "asyncio": {"_callbacks", "_children", "_get_running_loop", "_log_destroy_pending"},
    "sys": {"_current_frames", "_getframe"},
    "tornado": {"_disconnect_on_finish", "_ioloop_for_asyncio", "_request_start_line", "_run_callback"},
}
"""Private names of others that the package uses, as there is no public way:

- asyncio: who waits for a future, and for which others it waits; the loop that runs here, if any, without a
  `RuntimeError`; no complaint of a task that is given up.
- sys: the watchdog looks at the stack of another thread, and at that of its own.
- tornado: `HTTPServer` has a connection closed after the answer in hand, and asks whether there is a request in hand; a
  close callback is run as any other callback of the loop; the `IOLoop` of an asyncio loop, if it has one.
"""

MAY_USE_FOREIGN = {
    "runtime.cleanup": {"_default_executor", "_threads"},
    "runtime.loops": {"_local", "_loop"},
    "sansio.tls": {"_sslobj"},
    "server.forking": {"_reseed_random", "_task_id"},
    "testing.mockclock": {"_scheduled", "_timer_cancelled_count"},
    "testing.simulation.simulation": {"_set_running_loop"},
}
"""More of them, for single modules. cleanup: the threads of a loop's executor. loops: whether this thread has a loop
already, without making one. tls: what an `ssl.SSLObject` calls, where it has that. forking: a worker has the task id
and the random numbers that Tornado gives it. mockclock: the timers of a loop whose clock a test moves. simulation: a
loop that may run while another one waits."""

WITHIN_STREAMS = {
    "iostream": {"_begin_handshake", "_prepare", "_remote_address", "_socket", "_start"},
    "streams.pending": {"_hub"},
    "streams.sending": {"_hub"},
    "streams.sockets": {"_start"},
}
"""What is still used of another stream, or by the parts of one."""


def given_to_itself(node: ast.AST) -> list[str]:
    """What a function, a class variable, a field that is set, or ``__slots__`` gives to a class."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.Attribute(ast.Name("self" | "cls"), name, ast.Store()):
            return [name]
        case ast.ClassDef():
            variables = [each for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign)]
            return [name.id for each in variables for name in ast.walk(each) if isinstance(name, ast.Name)]
        case ast.Assign([ast.Name("__slots__")], names):
            return [name.value for name in ast.walk(names) if isinstance(name, ast.Constant)]
    return []


@functools.cache
def private_of_others(source: str) -> set[str]:
    """The private names that a module uses of objects that are not ``self`` or ``cls``, and that its own classes do not
    give themselves. ``super()._x`` and ``Base._x(self)`` count as ``self``'s; ``_replace`` is a named tuple's method.
    """
    nodes = nodes_of(source)
    own = {name for node in nodes for name in given_to_itself(node)}
    bases = {ast.unparse(base) for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases}
    found = set()
    for node in nodes:
        match node:
            case ast.Attribute(owner, name):
                pass
            case ast.Call(ast.Name("getattr" | "setattr" | "hasattr"), [owner, ast.Constant(str(name)), *_]):
                pass
            case _:
                continue
        if not is_private(name) or name in own | {"_replace"}:
            continue  # what it is of need not be known, which takes long to say
        if ast.unparse(owner) not in {"self", "cls", "super()"} | bases:
            found.add(name)
    return found


def test_no_module_uses_a_private_name_of_another_object() -> None:
    allowed = dict.fromkeys(inside, set.union(*FOREIGN.values()))
    for more in (MAY_USE_FOREIGN, WITHIN_STREAMS):
        allowed |= {name: allowed[name] | names for name, names in more.items()}
    found = {name: private_of_others(path.read_text()) - allowed[name] for name, path in inside.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_private_name_is_allowed_that_nobody_uses() -> None:
    used = {name: private_of_others(path.read_text()) for name, path in inside.items()}
    assert set.union(*FOREIGN.values()) - set.union(*used.values()) == set()
    for name, allowed in (MAY_USE_FOREIGN | WITHIN_STREAMS).items():
        assert allowed - used[name] == set(), name


@pytest.mark.parametrize(
    "source, seen",
    [
        ("stream._buffer", {"_buffer"}),
        ("self._stream._buffer = 1", {"_buffer"}),
        ("self._buffer, cls._buffers, super()._buffer", set()),
        ("class S(Base):\n    def stop(self):\n        Base._stop(self)", set()),
        ("class S:\n    def stop(self, other):\n        self._stopped = other._stopped", set()),
        ("asyncio._get_running_loop()._ready", {"_get_running_loop", "_ready"}),
        ("getattr(stream, '_buffer', None)", {"_buffer"}),
    ],
)
def test_every_private_name_of_another_is_seen(source: str, seen: set[str]) -> None:
    assert private_of_others(source) == seen


def private_names(source: str) -> set[str]:
    """The names with an underscore that a module gives, to classes and to ``self``."""
    nodes = nodes_of(source)
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    fields = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {name for name in functions | fields if is_private(name)}


def private_uses(source: str) -> set[str]:
    """The names with an underscore that a module asks for, of anything but modules that it imports."""
    nodes = nodes_of(source)
    modules = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    asked = [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in modules]
    return {node.attr for node in asked if is_private(node.attr)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


STYLES = [name for name in inside if name.startswith("styles")]


def test_styles_use_no_private_name_but_their_own() -> None:
    sources = {name: inside[name].read_text() for name in STYLES}
    own = set.union(*map(private_names, sources.values()))
    found = {name: private_uses(source) - own for name, source in sources.items()}
    assert {name: names for name, names in found.items() if names} == {}


def servers(source: str) -> Iterator[str]:
    """The source of each subclass of ``TCPServer`` in a module."""
    for node in nodes_of(source):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("TCPServer") for base in node.bases):
            yield ast.unparse(node)


def test_the_servers_of_styles_give_no_private_name_that_their_base_has() -> None:
    """It would be taken for one of their own, and be put in its place."""
    taken = {name for name in dir(iostreamsrv.TCPServer()) if is_private(name)}
    tornados = {name for name in dir(tornado.tcpserver.TCPServer()) if is_private(name)}
    assert taken - tornados == {"_iostreamsrv"}, "all else is a name that a user's class may have"
    assert "_sockets" in taken
    found = [server for name in STYLES for server in servers(inside[name].read_text())]
    assert found
    assert [private_names(server) & taken for server in found] == [set()] * len(found)


@pytest.mark.parametrize(
    "source, used, given",
    [
        ("stream._buffer", {"_buffer"}, set()),
        ("self._stream._buffer", {"_stream", "_buffer"}, set()),
        ("self._stream = stream", {"_stream"}, {"_stream"}),
        ("class S:\n    def _stop(self):\n        self.stop()", set(), {"_stop"}),
        ("stream.__class__", set(), set()),
        ("import asyncio\nasyncio._get_running_loop()._ready", {"_ready"}, set()),
    ],
)
def test_every_private_name_is_seen(source: str, used: set[str], given: set[str]) -> None:
    assert private_uses(source) == used
    assert private_names(source) == given


def test_no_test_file_imports_from_another() -> None:
    """What they share is in tests/support."""
    files = {path: path.read_text() for path in (PROJECT / "tests").rglob("*.py")}
    found = {
        str(path): re.findall(r"^ *(?:from|import) [\w.]*\btest_\w+.*", text, re.M) for path, text in files.items()
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


MAX_FILE = 500
MAX_CLASS = 300
"""Lines, with docstrings and comments: what is longer has more than one noun in it."""


def class_lengths(source: str) -> dict[str, int]:
    """The lines of each class of a module, decorators included, and classes within it."""
    classes = [node for node in nodes_of(source) if isinstance(node, ast.ClassDef)]
    first = {node: min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) for node in classes}
    return {node.name: (node.end_lineno or 0) - first[node] + 1 for node in classes}


def test_no_file_and_no_class_is_too_long() -> None:
    sources = {name: path.read_text() for name, path in inside.items()}
    assert {name for name, source in sources.items() if len(source.splitlines()) > MAX_FILE} == set()
    classes = {(name, kind): lines for name in inside for kind, lines in class_lengths(sources[name]).items()}
    assert {where: lines for where, lines in classes.items() if lines > MAX_CLASS} == {}


def test_every_line_of_a_class_is_counted() -> None:
    source = (
        '@final\nclass A:\n    """Text."""\n\n    class B:\n        x = 1\n\n    y = (\n        2,\n    )\n\n\nz = 3\n'
    )
    assert class_lengths(source) == {"A": 10, "B": 2}


def test_the_front_door_only_re_exports() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    docstring, *imported, exported = body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(node, ast.ImportFrom) and node.level == 1 for node in imported)
    assert isinstance(exported, ast.Assign)
    assert iostreamsrv.__all__ == sorted(iostreamsrv.__all__)
    names = {alias.asname or alias.name for node in imported for alias in node.names}  # type: ignore[attr-defined]
    assert names == set(iostreamsrv.__all__)


@pytest.mark.parametrize(
    "source, seen",
    [
        ("import iostreamsrv.streams.hub", ["streams.hub"]),
        ("from iostreamsrv.streams import hub", ["streams.hub"]),
        ("from iostreamsrv import IOStream", [FRONT_DOOR]),
        ("from .streams import hub as hubs", ["streams.hub"]),
        ("from .streams.hub import Hub", ["streams.hub"]),
        ("def f():\n    from .sansio.buffers import ReadBuffer", ["sansio.buffers"]),
        ("from .sansio import buffers, reads", ["sansio.buffers", "sansio.reads"]),
        ("import os", []),
    ],
)
def test_every_form_of_import_is_seen(source: str, seen: list[str]) -> None:
    assert own_imports(PACKAGE / "imaginary.py", source) == seen


PAIRS = [
    (iostreamsrv.BaseIOStream, tornado.iostream.BaseIOStream),
    (iostreamsrv.IOStream, tornado.iostream.IOStream),
    (iostreamsrv.PipeIOStream, tornado.iostream.PipeIOStream),
]


@pytest.mark.parametrize("ours, tornados", PAIRS, ids=lambda kind: kind.__module__)
def test_no_public_name_of_tornados_streams_resolves_to_tornados_code(ours: type, tornados: type) -> None:
    public = [name for name in dir(tornados) if not name.startswith("_")] + ["__init__"]
    assert "read_until" in public
    inherited = [
        name for name in public if inspect.getattr_static(ours, name) is inspect.getattr_static(tornados, name)
    ]
    assert inherited == []


def defined_by(kind: type) -> list[str]:
    return [name for name in vars(kind) if not (name.startswith("__") and name.endswith("__")) or name == "__init__"]


@pytest.mark.parametrize("ours", [iostreamsrv.TCPServer, HTTPServer])
def test_no_name_of_tornados_server_resolves_to_tornados_code(ours: type) -> None:
    names = defined_by(tornado.tcpserver.TCPServer)
    assert {"listen", "_handle_connection", "__init__"} <= set(names)
    found = {name: inspect.getattr_static(ours, name) for name in names}
    assert [name for name in names if found[name] is vars(tornado.tcpserver.TCPServer)[name]] == []


@pytest.mark.gen_test
async def test_no_field_of_tornados_server_is_there() -> None:
    fields = set(vars(tornado.tcpserver.TCPServer()))
    assert "_sockets" in fields
    for server in iostreamsrv.TCPServer(), HTTPServer(lambda request: None):
        assert fields & set(vars(server)) == set()
