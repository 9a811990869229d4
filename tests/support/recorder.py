"""A `CallbackServer` that notes what it calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

from iostreamsrv.styles import CallbackServer
from iostreamsrv.styles.callbacks import CALLBACKS
from tests.support.waiting import eventually


def nothing(*_: Any) -> None:
    """What a callback does that is not given: ``on_data`` consumes nothing."""


class Recorder(CallbackServer):
    """Notes each call of a callback and then does what that callback was given to do.

    :ivar calls: the name of each and its arguments, in order.
    """

    def __init__(self, **keywords: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        for name in CALLBACKS:
            keywords[name] = partial(self._note, name, keywords.get(name, nothing))
        super().__init__(**keywords)

    def _note(self, name: str, callback: Callable[..., Any], *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        return callback(*arguments)

    @property
    def names(self) -> list[str]:
        """What was called for clients, in order."""
        return [name for name, *_ in self.calls if name not in ("on_listen", "on_write", "on_tick")]

    def of(self, name: str) -> list[list[Any]]:
        """The arguments of each call of this one."""
        return [arguments for each, *arguments in self.calls if each == name]

    async def called(self, name: str, times: int = 1) -> list[Any]:
        """The arguments of the call of this one with this number, which may be still to come."""
        await eventually(lambda: len(self.of(name)) >= times)
        return self.of(name)[times - 1]

    @property
    def received(self) -> list[bytes]:
        """What ``on_data`` was offered, call by call."""
        return [data for _, data in self.of("on_data")]
