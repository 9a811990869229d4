"""Checks of arguments, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable
from typing import TypeGuard

from ..errors import OptionError


def is_int(value: object, lowest: int, highest: int | None = None) -> TypeGuard[int]:
    """Whether ``value`` is an integer, and not a bool, from ``lowest`` to ``highest`` (None: no upper limit)."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return lowest <= value and (highest is None or value <= highest)


def check_int(
    name: str, value: object, lowest: int, highest: int | None = None, what: str = "an integer", hint: str = ""
) -> int:
    """An integer from ``lowest`` to ``highest``.

    :param highest: None for no upper limit.
    :param what: what it is, for the error's text: "a number of bytes".
    :param hint: the end of the error's text: what else is allowed.
    :raises OptionError: if it is anything else.
    """
    if is_int(value, lowest, highest):
        return value
    limits = f", {lowest} or more" if highest is None else f" from {lowest} to {highest}"
    raise OptionError(name, value, f"must be {what}{limits}{hint}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def nearest(name: object, known: Iterable[str], similarity: float = 0.6) -> str | None:
    """The known name that ``name`` was probably meant to be; None if none resembles it.

    :param similarity: how alike both must be, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), 1, similarity)), None)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest known one, or all of them."""
    known = tuple(known)
    near = nearest(name, known)
    return f"there are {', '.join(known)}" if near is None else f"did you mean {near!r}?"
