"""Futures that other code may have cancelled."""

from asyncio import Future
from typing import Any


def set_result(future: "Future[Any]", result: Any = None) -> None:
    """Complete ``future``, unless it is done already: the caller's task may have cancelled it."""
    if not future.done():
        future.set_result(result)
