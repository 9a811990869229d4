"""The loggers: each has a name of this package, and the one that Tornado has for such lines.

``iostreamsrv.application`` is for what users' code did wrong, ``iostreamsrv.general`` for all else. Programs that were
written for Tornado, and its own suites, filter, silence or redirect ``tornado.application`` and ``tornado.general``:
each line passes both loggers' filters, and goes to the handlers of both, once. So nobody has to choose. A line that a
`logging.Filter` selects by Tornado's name has that name.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any

from tornado import log

__all__ = ["application", "general"]


class TwoNames(logging.Logger):
    """A logger of this package, to which all applies that is set on Tornado's (``tornado``) or on one above either.

    - A level that is set on either side counts; if there is one on both, a line has to reach both; else the root's.
    - A filter on either of the two loggers may drop a line.
    - Handlers on both sides get it, and those of the root logger, unless one side does not propagate.
    - Where a `logging.Filter` selects Tornado's name, on a handler or on that logger, the line has that name.
    - It is ``disabled`` if both are: `logging.config` disables all loggers that a configuration does not name.
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
        """The record; under Tornado's name, if it is for one who wants those of that name only."""
        if filterer.filters and any(_wants_only(each, self.tornado.name) for each in filterer.filters):
            record = copy.copy(record)
            record.name = self.tornado.name
        return record


def _wants_only(filter_: Any, name: str) -> bool:
    """Whether a filter lets pass those of this name, or of names above, and no others."""
    if getattr(type(filter_), "filter", None) is not logging.Filter.filter or not filter_.name:
        return False
    return name == filter_.name or name.startswith(f"{filter_.name}.")


def _above(logger: logging.Logger | None) -> Iterator[logging.Logger]:
    """A logger, and those above it."""
    while logger is not None:
        yield logger
        logger = logger.parent


def _own_level(logger: logging.Logger) -> int:
    """The level that was set on a logger or above it, but not on the root; 0 if none was."""
    return next((each.level for each in _above(logger) if each.level and each.parent is not None), 0)


def _propagating(logger: logging.Logger) -> Iterator[logging.Logger]:
    """Those whose handlers get what is logged to ``logger``."""
    for each in _above(logger):
        yield each
        if not each.propagate:
            return


def _with_two_names(name: str, tornado: logging.Logger) -> logging.Logger:
    # It may exist already: somebody has configured it before this was imported.
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
