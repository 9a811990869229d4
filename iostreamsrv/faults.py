"""Whose fault it is that a handler failed: its client's, or its own.

Only what the client's own stream raised is the client's: the exception says so by its ``stream_id``. What another
stream raised, that of an upstream server for instance, the handler should have caught.

An `asyncio.timeout` round a read cancels the read and raises a plain `TimeoutError`, which knows of no stream. Nor does
a future tell who has cancelled it. So there must be evidence, and in doubt it is the handler's error:

- the error comes from a `CancelledError`;
- the last read of the client's stream was cancelled, and nothing has come since;
- the function in which the `CancelledError` was raised has that stream, or that read, at hand;
- no other stream that it has at hand has been read from or written to since that read began.
"""

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import tornado.iostream

from .errors import CloseReason, FramingError, StreamTimeoutError
from .iostream import BaseIOStream


def fault(stream: BaseIOStream, error: BaseException) -> tuple[CloseReason, BaseException]:
    """The reason for which ``stream`` is to be closed, and the error that says most of it.

    :param error: what its handler raised. A group is the client's fault if all that is in it is.
    """
    leaves = list(_leaves(error))
    reasons = [_reason(stream, leaf) for leaf in leaves]
    if CloseReason.HANDLER_ERROR in reasons:
        return CloseReason.HANDLER_ERROR, error
    # That the stream is closed is what all the others find out when one of them has closed it.
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
    if type(error) is TimeoutError and _is_of_cancelled_read(stream, error):
        return CloseReason.READ_TIMEOUT
    if getattr(error, "stream_id", None) != stream.id:
        return CloseReason.HANDLER_ERROR
    if isinstance(error, StreamTimeoutError):
        return CloseReason.WRITE_TIMEOUT if error.operation == "write" else CloseReason.READ_TIMEOUT
    if isinstance(error, tornado.iostream.StreamBufferFullError):
        return CloseReason.BUFFER_FULL
    if isinstance(error, ssl.SSLError):  # of its start_tls(), which has said so
        return CloseReason.TLS_ERROR
    if isinstance(error, FramingError):
        return CloseReason.HANDLER_ERROR if error.operation == "write" else CloseReason.LOCAL
    return CloseReason.LOCAL if isinstance(error, OSError) else CloseReason.HANDLER_ERROR


# ---- timeouts of asyncio's


def _is_of_cancelled_read(stream: BaseIOStream, error: TimeoutError) -> bool:
    cancel = error.__cause__ or error.__context__  # before Python 3.11.3 only the latter is set
    if not isinstance(cancel, asyncio.CancelledError) or not stream._read_was_cancelled():
        return False
    values = _values_where_raised(cancel)
    if any(value is stream._read_future for value in values):  # asyncio.wait_for has it
        return True
    streams = {id(each): each for value in values for each in _streams_of(value)}
    if streams.pop(id(stream), None) is None:
        return False
    began = stream._read_since
    return not any(each._read_since > began or each._sent_at > began for each in streams.values())


def _values_where_raised(error: BaseException) -> list[Any]:
    """Of all local variables."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return [] if trace is None else list(trace.tb_frame.f_locals.values())


def _streams_of(value: Any) -> list[BaseIOStream]:
    """A stream, or those that are attributes of an object."""
    if issubclass(type(value), BaseIOStream):  # isinstance would ask the object, which may be anything
        return [value]
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    return [each for each in attributes.values() if issubclass(type(each), BaseIOStream)]
