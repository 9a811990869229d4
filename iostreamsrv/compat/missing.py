"""Private names of Tornado's that are not there."""

from typing import Any


class Missing:
    """A class attribute that raises an `AttributeError`, as if it was not there, with a text that helps.

    A ``__getattr__`` of the class would make every access to every attribute slow.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(
            f"{owner.__name__!r} has no attribute {self._name!r}: it is private to Tornado's class of that name. If a "
            "program of yours needs it, please report that to iostreamsrv",
            name=self._name,
            obj=instance,
        )
