"""Functions and methods from users: which are there, and what they take."""

import inspect
from collections.abc import Sequence
from typing import Any

from ..errors import OptionError


def is_overridden(instance: object, base: type, name: str) -> bool:
    """Whether the user has replaced the method ``name`` of ``base``, in a subclass or on the instance."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)


def takes(function: Any, count: int) -> bool:
    """Whether ``function`` can be called with ``count`` positional arguments; True if that is not known."""
    signature = _signature(function)
    return signature is None or _binds(signature, count)


def check_function(name: str, function: Any, parameters: Sequence[str]) -> None:
    """Check a function that is called with these parameters, by position.

    :raises OptionError: if it is no function, or has other parameters.
    """
    wanted = ", ".join(parameters)
    if not callable(function):
        raise OptionError(name, function, f"must be a function of ({wanted})")
    signature = _signature(function)
    if signature is not None and not _binds(signature, len(parameters)):
        raise OptionError(name, function, f"must take ({wanted}), takes {signature}")


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
