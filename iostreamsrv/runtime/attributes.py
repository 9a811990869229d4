"""Properties that do not take a name away from subclasses."""

from functools import cached_property
from typing import Any, Self, TypeVar, overload

T = TypeVar("T")


class overridable(cached_property[T]):
    """A property that an attribute of the instance, or of a subclass, replaces: it has no setter, and caches nothing.

    A program for Tornado may have given the name to something of its own. So code of this package never reads such a
    property of an object whose class users may extend.
    """

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Self | T:
        return self if instance is None else self.func(instance)
