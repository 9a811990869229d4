"""Methods of a stream that its users may override: in a subclass, or by assigning to one stream.

Tornado's ``read_from_fd`` and ``write_to_fd`` move the bytes of a stream, and programs override them. To look for that
with each receive would cost what it costs to make a bound method. So a stream looks once, when it gets its transport,
and these two are descriptors that tell it when they are assigned to later.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_ours: set[Callable[..., Any]] = set()


class _Overridable:
    """A method of a class that tells an object when it is assigned to."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._name = method.__name__
        self.__doc__ = method.__doc__

    def __get__(self, stream: Any, owner: type | None = None) -> Any:
        if stream is None:
            return self._method
        assigned = stream._assigned
        return assigned[self._name] if assigned and self._name in assigned else self._method.__get__(stream)

    def __set__(self, stream: Any, value: Any) -> None:
        stream._assigned = {**(stream._assigned or {}), self._name: value}
        stream._choose_carrier()

    def __delete__(self, stream: Any) -> None:
        del stream._assigned[self._name]
        stream._choose_carrier()


def overridable(method: F) -> F:
    """Mark a method that does no more than to call the stream's transport, so that it may be left out."""
    _ours.add(method)
    return cast(F, _Overridable(method))


def overridden(stream: Any) -> tuple[bool, bool]:
    """Whether the ``read_from_fd`` and the ``write_to_fd`` of a stream are its user's."""
    kind, assigned = type(stream), stream._assigned or ()
    return (
        kind.read_from_fd not in _ours or "read_from_fd" in assigned,
        kind.write_to_fd not in _ours or "write_to_fd" in assigned,
    )
