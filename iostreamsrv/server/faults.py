"""Decides why a handler failed: because of its client, or because of an error in the handler.

An exception is the client's only if the client's stream raised it: then its ``stream_id`` says so. An exception of any
other stream, such as one to an upstream server, should have been caught by the handler.

A plain `TimeoutError` has no ``stream_id``. It is the client's if the handler waited too long for the client's stream:

- in a write or a drain: the `CancelledError` from which it was made has the ``stream_id``;
- in ``tornado.gen.with_timeout``, which cancels nothing: a future that waits for the read or write has the error;
- in a read: its future is kept as small as possible, and its `CancelledError` has no ``stream_id``. So all of this must
  hold:

  - the error was made from a `CancelledError`;
  - the last read of the client's stream was cancelled, and nothing was received since;
  - the function in which the `CancelledError` was raised can reach that stream, or that read, by its variables;
  - it can reach no other future that was cancelled, and no other stream that was used since that read began.

If in doubt, it is the handler's error.
"""

import asyncio
import functools
import ssl
from collections.abc import Iterator
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType, TracebackType
from typing import Any

import tornado.iostream
import tornado.util

from ..errors import CloseReason, FramingError, StreamTimeoutError
from ..iostream import BaseIOStream
from ..streams.eager import waiter_of
from ..streams.wakeup import PendingFuture

DEPTH = 3
"""Steps from a variable to its attribute, to an attribute of that, and so on, to search for streams."""


def fault(stream: BaseIOStream, error: BaseException) -> tuple[CloseReason, BaseException]:
    """The reason for closing ``stream``, and the error to report.

    :param error: the exception of its handler. A group is the client's only if all exceptions in it are.
    """
    leaves = list(_leaves(error))
    reasons = [_reason(stream, leaf) for leaf in leaves]
    if CloseReason.HANDLER_ERROR in reasons:
        return CloseReason.HANDLER_ERROR, error
    # LOCAL errors only follow from the one that has closed the stream.
    telling = [number for number, reason in enumerate(reasons) if reason is not CloseReason.LOCAL]
    first = telling[0] if telling else 0
    return reasons[first], leaves[first]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _reason(stream: BaseIOStream, error: BaseException) -> CloseReason:
    if (late := _late(stream, error)) is not None:
        return late
    if getattr(error, "stream_id", None) != stream.id:
        return CloseReason.HANDLER_ERROR
    if isinstance(error, StreamTimeoutError):
        return CloseReason.WRITE_TIMEOUT if error.operation == "write" else CloseReason.READ_TIMEOUT
    if isinstance(error, tornado.iostream.StreamBufferFullError):
        return CloseReason.BUFFER_FULL
    if isinstance(error, ssl.SSLError):  # from start_tls(), which has reported it
        return CloseReason.TLS_ERROR
    if isinstance(error, FramingError):
        return CloseReason.HANDLER_ERROR if error.operation == "write" else CloseReason.LOCAL
    return CloseReason.LOCAL if isinstance(error, OSError) else CloseReason.HANDLER_ERROR


# ---- timeouts of asyncio's and Tornado's


_TIMEOUTS = (TimeoutError, tornado.util.TimeoutError)
"""The timeout errors of asyncio and of Tornado; in newer versions of Tornado they are the same class."""


def _late(stream: BaseIOStream, error: BaseException) -> CloseReason | None:
    """The reason to close ``stream`` if ``error`` is a timeout of a wait for it."""
    if type(error) not in _TIMEOUTS or getattr(error, "errno", None) is not None:  # with errno: from the kernel
        return None
    if any(_has_instead(future, error) for future in stream.queued_writes()):
        return CloseReason.WRITE_TIMEOUT
    read = stream.activity().read
    if read is not None and _has_instead(read, error):
        return CloseReason.READ_TIMEOUT
    cancel = error.__cause__ or error.__context__  # before Python 3.11.3 only the latter is set
    if not isinstance(cancel, asyncio.CancelledError):
        return None
    if (stream_id := getattr(cancel, "stream_id", None)) is not None:
        return CloseReason.WRITE_TIMEOUT if stream_id == stream.id else None
    return CloseReason.READ_TIMEOUT if _is_of_cancelled_read(stream, cancel) else None


def _has_instead(future: "asyncio.Future[Any]", error: BaseException) -> bool:
    """Whether Tornado has set ``error`` on a future that would have got the result of ``future``, which is pending."""
    for callback, _ in future._callbacks or ():
        for cell in getattr(callback, "__closure__", None) or ():
            waiting = cell.cell_contents
            if callback.__module__ == "tornado.concurrent" and _is_future(waiting) and _error_of(waiting) is error:
                return True
    task = waiter_of(future)
    return task is not None and _has_instead(task, error)


def _error_of(future: "asyncio.Future[Any]") -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


def _is_of_cancelled_read(stream: BaseIOStream, cancel: asyncio.CancelledError) -> bool:
    _, _, read_since, read = stream.activity()
    if read is None or not read.cancelled():
        return False
    values = _values_where_raised(cancel)
    cancelled = [value for value in values if _is_future(value) and value.cancelled()]
    if cancelled:  # asyncio.wait_for and asyncio.gather have one
        return any(read in (each, *getattr(each, "_children", ())) for each in cancelled)
    streams = _streams_at_hand(values)
    return stream in streams and not any(_was_used_since(read_since, each) for each in streams - {stream})


def _was_used_since(began: float, stream: BaseIOStream) -> bool:
    """Whether the wait that was cancelled may have been for this stream. A pending read was not cancelled."""
    _, sent_at, read_since, read = stream.activity()
    cancelled = read is not None and read.cancelled()
    pending = read is not None and not read.done()
    has_read = not pending and (read_since > began or (read_since == began and cancelled))
    return has_read or sent_at > began


def _values_where_raised(error: BaseException) -> list[Any]:
    """The values of all local variables of the function that raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and not _is_compiled(trace.tb_next):
        trace = trace.tb_next
    return [] if trace is None else list(trace.tb_frame.f_locals.values())


def _is_compiled(trace: TracebackType) -> bool:
    """Whether this is in a future of the compiled core, not in the function that awaits it. It has no variables."""
    return trace.tb_frame.f_code.co_filename.endswith(".pyx")


def _streams_at_hand(values: list[Any]) -> set[BaseIOStream]:
    """The streams among ``values``, and in their attributes."""
    found: set[BaseIOStream] = set()
    seen: dict[int, Any] = {}
    for _ in range(DEPTH + 1):
        values = list({id(value): value for value in values if id(value) not in seen}.values())
        seen |= {id(value): value for value in values}
        found |= {value for value in values if _is_stream(value)}
        values = [part for value in values for part in _parts(value)]
    return found


# issubclass(type(x), ...): isinstance would also ask the object, which may run any code.


def _is_stream(value: Any) -> bool:
    return issubclass(type(value), BaseIOStream)


def _is_future(value: Any) -> bool:
    return issubclass(type(value), (asyncio.Future, PendingFuture))


_NOT_TAKEN_APART = (BaseIOStream, asyncio.Future, PendingFuture, asyncio.AbstractEventLoop, ModuleType, type)


def _parts(value: Any) -> list[Any]:
    """What a function or an object refers to, found without calling anything that it defines."""
    kind = type(value)
    if kind is MethodType:
        return [value.__self__]
    if kind is FunctionType:
        return _contents(value)
    if issubclass(kind, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if issubclass(kind, _NOT_TAKEN_APART):
        return []
    parts = [_attribute(value, member) for each in kind.__mro__ for member in vars(each).values()]
    try:
        parts += object.__getattribute__(value, "__dict__").values()
    except AttributeError:
        pass
    return parts


def _contents(function: FunctionType) -> list[Any]:
    """The values of a function's closure."""
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # the cell is empty
            pass
    return contents


def _attribute(value: Any, member: Any) -> Any:
    """The value of a slot."""
    try:
        return member.__get__(value) if type(member) is MemberDescriptorType else None
    except AttributeError:
        return None
