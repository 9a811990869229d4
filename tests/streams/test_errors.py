"""Every exception of the package: it can be copied and sent to another process, with all it knows."""

import copy
import errno
import importlib
import pickle
import pkgutil
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import iostreamsrv
from iostreamsrv import CloseReason
from iostreamsrv.certificates import CertificateError
from iostreamsrv.errors import (
    ConcurrentReadError,
    ListenError,
    OptionError,
    ResolveError,
    StreamBufferFullError,
    StreamClosedError,
    StreamTimeoutError,
    of_stream,
)
from iostreamsrv.sansio.reads import ReadFailed
from iostreamsrv.styles import SendTimeoutError

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "TargetError": ("chat:Chat", "there is none", "the traceback"),
    "StreamClosedError": (ConnectionResetError(errno.ECONNRESET, "gone"), "read", CloseReason.RESET, 7),
    "StreamTimeoutError": ("write", 2.5, "the peer took nothing"),
    "SendTimeoutError": (2.5, 100, 4000),
    "StreamBufferFullError": ("it is full", "read"),
    "ConcurrentReadError": (),
    "ConcurrentConnectError": (),
    "OptionError": ("port", -1, "must be more"),
    "CertificateError": ("certfile", "/etc/x.pem", "No such file"),
    "ListenError": (errno.EADDRINUSE, "cannot listen on *:80: Address already in use"),
    "ResolveError": (socket.EAI_NONAME, "cannot resolve x: Name or service not known"),
    "ReadFailed": (ValueError("why"),),
    "ControlError": ("refused", "it is the last worker"),
    "InvalidRequestError": ("a request must have a verb", 7),
}
"""What the constructors take that take something else than a text."""


def exceptions() -> Iterator[type[BaseException]]:
    """All classes of exceptions that the package has, wherever."""
    found: dict[type[BaseException], None] = {}
    for module in pkgutil.walk_packages(iostreamsrv.__path__, "iostreamsrv."):
        names = vars(importlib.import_module(module.name))
        for each in names.values():
            if (
                isinstance(each, type)
                and issubclass(each, BaseException)
                and each.__module__.startswith("iostreamsrv.")
            ):
                found[each] = None
    yield from found


def made(kind: type[BaseException]) -> BaseException:
    error = kind(*ARGUMENTS.get(kind.__name__, ("what went wrong",)))
    return of_stream(error, 7) if hasattr(kind, "stream_id") else error


def known(error: object) -> Any:
    """All that an exception knows, to be compared."""
    if not isinstance(error, BaseException):
        return error
    fields = {name: known(value) for name, value in vars(error).items()}
    errnos = [getattr(error, name, None) for name in ("errno", "strerror", "filename")]
    return type(error), str(error), [known(each) for each in error.args], fields, errnos


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": lambda error, p=protocol: pickle.loads(pickle.dumps(error, p)) for protocol in range(6)},
}


def test_the_walk_finds_the_exceptions_it_is_about() -> None:
    names = {kind.__name__ for kind in exceptions()}
    assert ARGUMENTS.keys() <= names
    assert {"ProxyError", "Truncated", "FramingError", "KickedError", "UnsatisfiableReadError", "StreamError"} <= names


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_can_be_copied_and_pickled_with_its_fields(kind: type[BaseException]) -> None:
    for way, copied in COPIES.items():
        error = made(kind)
        again = copied(error)
        assert again is not error, way
        assert known(again) == known(error), way
        assert known(copied(again)) == known(error), way


def test_what_another_one_knows_is_kept() -> None:
    error = pickle.loads(pickle.dumps(made(StreamClosedError)))
    assert (error.errno, error.operation, error.reason, error.stream_id) == (errno.ECONNRESET, "read", "reset", 7)
    assert error.real_error.strerror == "gone"
    assert pickle.loads(pickle.dumps(made(SendTimeoutError))).sent == 100
    assert pickle.loads(pickle.dumps(made(StreamTimeoutError))).operation == "write"
    assert pickle.loads(pickle.dumps(made(StreamBufferFullError))).reason == "buffer_full"
    assert pickle.loads(pickle.dumps(made(ConcurrentReadError))).stream_id == 7
    for kind in (OptionError, CertificateError):
        again = pickle.loads(pickle.dumps(made(kind)))
        assert (again.option, again.value) == ARGUMENTS[kind.__name__][:2]
    for kind in (ListenError, ResolveError):
        assert pickle.loads(pickle.dumps(made(kind))).errno == ARGUMENTS[kind.__name__][0]
    assert str(pickle.loads(pickle.dumps(made(ReadFailed))).error) == "why"


def test_an_error_of_openssl_keeps_its_stream_too() -> None:
    error = of_stream(ssl.SSLError(1, "wrong version number"), 7)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (again.stream_id, again.errno, str(again)) == (7, 1, str(error))


def test_the_first_stream_that_an_error_is_of_stays() -> None:
    error = of_stream(StreamTimeoutError("read", 1), 7)
    assert of_stream(error, 8).stream_id == 7


class WithMore(StreamTimeoutError):
    """One of a user's own."""

    def __init__(self, device: str) -> None:
        super().__init__("read", 1)
        self.device = device


def test_an_exception_derived_from_ours_is_copied_whole() -> None:
    again = pickle.loads(pickle.dumps(WithMore("lamp")))
    assert (type(again), again.device, again.operation) == (WithMore, "lamp", "read")


def raise_it(error: BaseException) -> None:
    raise error


def test_a_pool_of_processes_survives_whatever_a_worker_raises() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for kind in (StreamTimeoutError, SendTimeoutError, OptionError, CertificateError, ConcurrentReadError):
            error = made(kind)
            with pytest.raises(kind) as caught:
                pool.submit(raise_it, error).result(timeout=60)
            assert known(caught.value) == known(error)
