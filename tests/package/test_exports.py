"""The modules with Tornado's names have every public name of Tornado's."""

import asyncio
import importlib
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import tornado.ioloop
import tornado.netutil

import iostreamsrv
from iostreamsrv.certificates import Certificates, KeyPair
from iostreamsrv.runtime import exports
from tests.support.programs import PROJECT


def public(module: ModuleType) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]


def both(name: str) -> tuple[ModuleType, ModuleType]:
    return importlib.import_module(f"iostreamsrv.{name}"), importlib.import_module(f"tornado.{name}")


every_module = pytest.mark.parametrize("name", exports.MODULES)


@every_module
def test_every_public_name_of_tornados_module_is_in_ours(name: str) -> None:
    ours, theirs = both(name)
    assert len(public(theirs)) > 10
    assert [each for each in public(theirs) if not hasattr(ours, each)] == []
    assert set(public(theirs)) <= set(dir(ours))


@every_module
def test_names_are_tornados_objects_but_for_those_that_are_written_here(name: str) -> None:
    ours, theirs = both(name)
    others = {each for each in public(theirs) if getattr(ours, each) is not getattr(theirs, each)}
    homes = {each: getattr(getattr(ours, each), "__module__", None) or getattr(ours, each).__name__ for each in others}
    assert {each: home for each, home in homes.items() if not home.startswith("iostreamsrv.")} == {}


@every_module
def test_no_module_gives_tornados_object_where_there_is_one_of_ours(name: str) -> None:
    ours, theirs = both(name)
    counterparts: dict[int, Any] = {}
    for module in exports.MODULES:
        its_own, tornados = both(module)
        counterparts[id(tornados)] = its_own
        counterparts |= {
            id(getattr(tornados, each)): getattr(its_own, each) for each in public(tornados) if each in vars(its_own)
        }
    assert [
        each
        for each in public(theirs)
        if id(getattr(theirs, each)) in counterparts
        and getattr(ours, each) is not counterparts[id(getattr(theirs, each))]
    ] == []


@pytest.mark.parametrize("name", ["certificates", "ioloop", "netutil"])
def test_what_a_public_module_re_exports_says_that_it_is_from_there(name: str) -> None:
    module = importlib.import_module(f"iostreamsrv.{name}")
    homes = {getattr(getattr(module, each), "__module__", None) for each in module.__all__}
    others = {None, "iostreamsrv.errors", "tornado.ioloop"}  # a constant, and what has its home elsewhere
    assert homes - others == {f"iostreamsrv.{name}"}


def test_what_is_re_exported_can_be_pickled() -> None:
    (endpoint,) = asyncio.run(iostreamsrv.resolve("127.0.0.1", 80))
    pair = KeyPair(b"certificate", b"key")
    for each in endpoint, pair, iostreamsrv.run, iostreamsrv.bind_sockets, Certificates:
        assert pickle.loads(pickle.dumps(each)) == each


def test_the_imports_of_programs_for_tornado_work() -> None:
    from iostreamsrv.httpserver import netutil
    from iostreamsrv.ioloop import IOLoop, PeriodicCallback, TimeoutError
    from iostreamsrv.netutil import Resolver, is_valid_ip, ssl_options_to_context
    from iostreamsrv.tcpserver import bind_sockets, errno_from_exception

    assert IOLoop is tornado.ioloop.IOLoop
    assert PeriodicCallback is tornado.ioloop.PeriodicCallback
    assert TimeoutError is tornado.ioloop.TimeoutError
    assert Resolver is tornado.netutil.Resolver
    assert is_valid_ip("127.0.0.1")
    assert ssl_options_to_context is tornado.netutil.ssl_options_to_context
    assert netutil.__name__ == "iostreamsrv.netutil"
    assert bind_sockets is netutil.bind_sockets
    assert errno_from_exception(OSError(3, "")) == 3


@every_module
def test_a_name_that_nobody_has_is_an_attribute_error_that_names_the_module(name: str) -> None:
    ours, _ = both(name)
    for missing in ("nothing", "_private", "__path__"):
        with pytest.raises(AttributeError, match=f"module 'iostreamsrv.{name}' has no attribute '{missing}'"):
            getattr(ours, missing)


EACH_FIRST = """
import importlib, os, sys
import tornado.httpserver, tornado.netutil, tornado.tcpclient, tornado.tcpserver  # which take long, and all import
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        module = importlib.import_module(f"iostreamsrv.{name}")
        [getattr(module, name) for name in dir(module)]
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_module_can_be_imported_first() -> None:
    command = [sys.executable, "-W", "error", "-c", EACH_FIRST, *exports.MODULES]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=60)


def test_without_certificates_cryptography_is_not_imported() -> None:
    """It would be a fifth of the time in which a program starts."""
    source = "import sys, iostreamsrv, iostreamsrv.tcpclient; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", source], cwd=PROJECT, check=True, timeout=60)
