"""The loggers. Each has a name in this package, and acts for Tornado's logger of the same purpose as well.

``iostreamsrv.application`` is for errors in user code, ``iostreamsrv.general`` for everything else. Programs written
for Tornado, and its test suite, filter, silence or redirect ``tornado.application`` and ``tornado.general``. Therefore
each line passes the filters of both loggers, and goes to the handlers of both, once. A line that a `logging.Filter`
selects by Tornado's name has that name.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any

from tornado import log

from .clock import Clock, current_time

__all__ = ["LogRateLimit", "application", "general", "log_to_stderr"]


class TwoNames(logging.Logger):
    """A logger of this package that also obeys the settings of Tornado's logger (``tornado``) and of both parents.

    - Levels: the higher of those set on both sides; if only one side has a level, that one; else the root's.
    - Filters: a filter on either of the two loggers may drop a line.
    - Handlers: those of both sides get it, and those of the root logger, unless one side does not propagate.
    - Name: Tornado's, for a handler or logger whose `logging.Filter` selects that name.
    - ``disabled``: if both are. (`logging.config` disables all loggers that a configuration does not name.)
    """

    tornado: logging.Logger
    _disabled: bool

    @property
    def disabled(self) -> bool:
        return self._disabled and self.tornado.disabled

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self._disabled = value

    def getEffectiveLevel(self) -> int:
        levels = [level for level in (_own_level(self), _own_level(self.tornado)) if level]
        return max(levels, default=self.root.level)

    def filter(self, record: logging.LogRecord) -> Any:
        passed: Any = super().filter(record)
        if isinstance(passed, logging.LogRecord):  # since Python 3.12 a filter may replace it
            record = passed
        asked = self._as_selected_by(self.tornado, record)
        answer: Any = self.tornado.filter(asked)
        return passed and (record if answer is asked else answer)

    def callHandlers(self, record: logging.LogRecord) -> None:
        sides = [list(_propagating(self)), list(_propagating(self.tornado))]
        loggers = dict.fromkeys(logger for side in sides for logger in side)
        if not all(self.root in side for side in sides):
            loggers.pop(self.root, None)
        handlers = dict.fromkeys(handler for logger in loggers for handler in logger.handlers)
        if not handlers and self.root in loggers and logging.lastResort is not None:
            handlers = {logging.lastResort: None}
        for handler in handlers:
            if record.levelno >= handler.level:
                handler.handle(self._as_selected_by(handler, record))

    def _as_selected_by(self, filterer: logging.Filterer, record: logging.LogRecord) -> logging.LogRecord:
        """The record, under Tornado's name if ``filterer`` selects only that name."""
        if filterer.filters and any(_wants_only(each, self.tornado.name) for each in filterer.filters):
            record = copy.copy(record)
            record.name = self.tornado.name
        return record


def _wants_only(filter_: Any, name: str) -> bool:
    """Whether a filter passes only this name, or one of its parents' names."""
    if getattr(type(filter_), "filter", None) is not logging.Filter.filter or not filter_.name:
        return False
    return name == filter_.name or name.startswith(f"{filter_.name}.")


def _above(logger: logging.Logger | None) -> Iterator[logging.Logger]:
    """A logger and its parents."""
    while logger is not None:
        yield logger
        logger = logger.parent


def _own_level(logger: logging.Logger) -> int:
    """The level set on a logger or on its parents, except the root; 0 if none is set."""
    return next((each.level for each in _above(logger) if each.level and each.parent is not None), 0)


def _propagating(logger: logging.Logger) -> Iterator[logging.Logger]:
    """The loggers whose handlers get the records of ``logger``."""
    for each in _above(logger):
        yield each
        if not each.propagate:
            return


def _with_two_names(name: str, tornado: logging.Logger) -> logging.Logger:
    # It may exist already, if it was configured before this module was imported.
    logger = logging.getLogger(name)
    if not isinstance(logger, TwoNames):
        disabled = vars(logger).pop("disabled")
        logger.__class__ = TwoNames
        assert isinstance(logger, TwoNames)
        logger.tornado = tornado
        logger.disabled = disabled
    return logger


application = _with_two_names("iostreamsrv.application", log.app_log)
general = _with_two_names("iostreamsrv.general", log.gen_log)


# ---- clients cannot flood the log

BURST = 10
PER_SECOND = 1.0
"""Lines at once, and per second in the long run: enough to see what happens, too few to fill a disk."""


class LogRateLimit:
    """Limits the rate of log lines, and counts those that are dropped, for the next line to say."""

    def __init__(self, clock: Clock = current_time) -> None:
        self._clock = clock
        self._tokens = float(BURST)
        self._at = clock()
        self._dropped = 0

    def admit(self) -> int | None:
        """For one line: None to drop it, else the number of lines dropped since the last one that was admitted."""
        now = self._clock()
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._dropped += 1
            return None
        self._tokens -= 1
        dropped, self._dropped = self._dropped, 0
        return dropped


def log_to_stderr() -> None:
    """Write the log to stderr, with the process of each line; nothing changes if the root logger has a handler."""
    logging.basicConfig(format="%(asctime)s [%(process)d] %(levelname)s %(message)s", level=logging.INFO)
