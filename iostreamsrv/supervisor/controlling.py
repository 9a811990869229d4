"""What the control socket of a service does: the verbs, and who waits for which of them to end."""

import logging
import selectors
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..control.protocol import FAILED, INVALID, REFUSED, ControlError, Request
from ..control.server import Answer, ControlServer
from ..runtime.checks import did_you_mean, is_int
from ..runtime.clock import real_time_ns
from ..server.scoreboard import TOTALS
from .children import Children
from .plan import Plan
from .settings import Settings

STOPPING = "the service is shutting down"

LONGEST_NAME = 80
"""Characters of an unknown name that its error shows."""

CHANGES = {1: "TTIN", -1: "TTOU"}
"""The signals that change the number of workers."""


class Reload:
    """A reload that a client waits for.

    :ivar has_begun: whether it is the one that goes on now; else it is the one after that.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.has_begun = False


class Control:
    """Acts on the requests that come over the control socket, in the first process of a service.

    :param on_signal: acts as on that signal: "HUP".
    :ivar settings: those that count now.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        settings: Settings,
        plan: Plan,
        children: Children,
        on_signal: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._plan = plan
        self._children = children
        self._on_signal = on_signal
        self._reloads: list[Reload] = []
        self._upgrades: list[Answer] = []
        self._said: list[tuple[int, str]] | None = None  # while a request is acted on
        self._is_stopping = False
        self._server = ControlServer(selector, settings.control_path, self._act)

    # ---- the socket

    def listen(self) -> None:
        """Begin to listen, if there is to be a socket."""
        self._server.listen()

    def close_listener(self) -> None:
        """Stop listening, for an upgrade. The clients stay, until the program is replaced."""
        self._server.close_listener()

    def close(self) -> None:
        """Close it, and its clients."""
        self._server.close()

    def on_time(self) -> None:
        """Time has passed: once a second."""
        self._server.resume()

    # ---- what the service does

    def on_said(self, level: int, text: str) -> None:
        """A line was written to the log."""
        if self._said is not None:
            self._said.append((level, text))

    def on_announced(self, state: Literal["ready", "reloading", "stopping"], problem: str) -> None:
        """The service reloads, or is ready: a reload has ended, which has failed if there is a problem."""
        if state == "reloading":
            for each in self._reloads:
                each.has_begun = True
        elif state == "ready":
            self._end_reloads(ControlError(FAILED, problem) if problem else {})
        else:
            self._is_stopping = True
            self._end_upgrades(REFUSED, STOPPING)
            for each in self._reloads:
                each.has_begun = True
            self._end_reloads(ControlError(REFUSED, STOPPING))

    def on_checked(self, problem: str) -> None:
        """An upgrade was checked. If there is no problem, it goes on."""
        if problem:
            self._end_upgrades(FAILED, problem)

    def on_not_replaced(self, problem: str) -> None:
        """The program could not be replaced."""
        self.listen()
        self._end_upgrades(FAILED, problem)

    def _end_reloads(self, result: Any) -> None:
        ended = [each for each in self._reloads if each.has_begun]
        self._reloads = [each for each in self._reloads if not each.has_begun]
        for each in ended:
            each.answer(result)

    def _end_upgrades(self, code: str, problem: str) -> None:
        ended, self._upgrades = self._upgrades, []
        for answer in ended:
            answer(ControlError(code, problem))

    # ---- the verbs

    def _act(self, request: Request, answer: Answer) -> None:
        verb = VERBS.get(request.verb)
        if verb is None:
            name = request.verb[:LONGEST_NAME]
            raise ControlError(INVALID, f"there is no verb {name!r}: {did_you_mean(name, VERBS)}")
        act, known = verb
        for name in request.arguments:
            if name not in known:
                raise ControlError(INVALID, f"{request.verb} has no argument {name[:LONGEST_NAME]!r}")
        act(self, request.arguments, answer)

    def _show_workers(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        now, state = real_time_ns(), self._plan.to_json()
        workers = [
            {"number": each["number"], "generation": each["generation"], "state": each["state"], **figures}
            for each in state["workers"]
            if (figures := self._children.figures(each["number"], now))
        ]
        answer({"slots": len(state["slots"]), "generation": state["generation"], "workers": workers})

    def _show_stats(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        answer(dict(zip(TOTALS, self._children.scoreboard.totals(), strict=True)))

    def _show_config(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        answer({**self.settings.to_json(), "control": self.settings.control_path})

    def _reload(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        self._refuse_if_stopping()
        mine = Reload(answer)
        self._reloads.append(mine)
        problems = self._signal("HUP", logging.ERROR)
        if problems and not mine.has_begun and mine in self._reloads:  # the settings are wrong, during another reload
            self._reloads.remove(mine)
            raise ControlError(FAILED, problems[0])

    def _upgrade(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        """Answered only if it fails: else the connection ends with the program."""
        self._refuse_if_stopping()
        self._upgrades.append(answer)
        self._signal("USR2", logging.ERROR)

    def _workers(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        change = arguments.get("change")
        if not is_int(change, -1, 1) or change == 0:
            raise ControlError(INVALID, "change must be 1 or -1")
        self._refuse_if_stopping()
        problems = self._signal(CHANGES[change], logging.WARNING)
        if problems:
            raise ControlError(REFUSED, problems[0])
        answer({"workers": len(self._plan.to_json()["slots"])})

    def _drain(self, arguments: Mapping[str, Any], answer: Answer) -> None:
        if not self._is_stopping:  # a second signal would close all clients at once
            self._signal("TERM", logging.ERROR)
        answer({})

    def _refuse_if_stopping(self) -> None:
        if self._is_stopping:
            raise ControlError(REFUSED, STOPPING)

    def _signal(self, name: str, level: int) -> list[str]:
        """Act as on a signal; return the lines of the log about it that are of that level, or above."""
        said: list[tuple[int, str]] = []
        self._said = said
        try:
            self._on_signal(name)
        finally:
            self._said = None
        return [text for of, text in said if of >= level]


Verb = Callable[[Control, Mapping[str, Any], Answer], None]

VERBS: dict[str, tuple[Verb, tuple[str, ...]]] = {
    "show workers": (Control._show_workers, ()),
    "show stats": (Control._show_stats, ()),
    "show config": (Control._show_config, ()),
    "reload": (Control._reload, ()),
    "upgrade": (Control._upgrade, ()),
    "workers": (Control._workers, ("change",)),
    "drain": (Control._drain, ()),
}
"""What each verb does, and the arguments that it takes."""
