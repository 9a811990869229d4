"""Where settings come from: a TOML file, then the environment, then the command line; the last one counts."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

from ..errors import OptionError
from ..options import NAMES as OPTIONS
from ..options import UNLIMITED
from ..supervisor.settings import NAMES, Settings
from .files import ConfigurationError, read_toml, read_variables, suggestion

PREFIX = "IOSTREAMSRV_"

SET = "set"
"""Options of the server: a table ``[set]``, variables ``IOSTREAMSRV_SET_…``, flags ``--set NAME=VALUE``."""

WORDS = {name: {"binds": "bind"}.get(name, name) for name in NAMES if name != "options"}
"""What each setting is called in a file; in variables in capitals, in flags with dashes."""

SETTINGS = {word: name for name, word in WORDS.items()}

SHARED = frozenset(OPTIONS) & frozenset(SETTINGS)
"""Options of the server that are settings as well: ``drain_timeout``, which is one value under two names."""

ENV_FILE = "env_file"
CONFIG = "config"

VARIABLES = {PREFIX + word.upper(): word for word in (*SETTINGS, ENV_FILE, CONFIG)}

OPTION_VARIABLES = {f"{PREFIX}{SET}_{name}".upper(): name for name in OPTIONS}

OTHER_VARIABLES = frozenset(
    {
        "PURE",
        "BUILD",
        "ALL",
        "FULL",
        "UPGRADE",
        "FROM_ENV_FILE",
        "TORNADO_VERBOSE",
        "DROPIN_REPORT",
        "CONFORMANCE_REPORT",
    }
)
"""Variables of this project that are no settings: which core runs and is built, and what its tests do."""

FROM_FILE = f"{PREFIX}FROM_ENV_FILE"
"""Has the names of the variables that an ``env_file`` has set, also for the supervisor after an upgrade."""

OF_CONTAINERS = re.compile(r"SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?|NAME")
"""Variables that Kubernetes and Docker make for a service that is called ``iostreamsrv``."""

DEFAULT = "default"


class Given(NamedTuple):
    """A value, and where it was given."""

    value: Any
    source: str


class Configuration:
    """All that was given, each with its source. What is added later replaces what is there.

    :ivar settings: by the names of `Settings`, but for its options.
    :ivar options: options of the server, by their names. (``drain_timeout`` is among the settings.)
    :ivar export: puts the variables of ``env_file`` into the environment; :meth:`checked` calls it.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Given] = {}
        self.options: dict[str, Given] = {}
        self.export: Callable[[], None] = lambda: None

    def add(self, word: str, value: Any, source: str) -> None:
        """A setting, by what it is called in a file."""
        self.settings[SETTINGS[word]] = Given(value, source)

    def add_option(self, name: str, value: Any, source: str) -> None:
        """An option of the server."""
        (self.settings if name in SHARED else self.options)[name] = Given(value, source)

    def add_table(self, file: str, table: Mapping[str, Any]) -> None:
        """The settings of a TOML file.

        :raises ConfigurationError: a key is unknown.
        """
        for word, value in table.items():
            if word == SET:
                if not isinstance(value, dict):
                    raise ConfigurationError(f"{file}: {SET} must be a table: [{SET}]")
                for name, option in value.items():
                    self.add_option(name, option, file)
            elif word in SETTINGS:
                self.add(word, value, file)
            elif word != ENV_FILE:
                known = (*SETTINGS, SET, ENV_FILE)
                if word in OPTIONS:
                    hint = f": it is an option of the server, and belongs into [{SET}]"
                else:
                    hint = suggestion(word.replace("-", "_"), known)
                raise ConfigurationError(f"{file}: there is no setting {word!r}{hint}")

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """The settings of environment variables. One that is empty is as if it were not there.

        :raises ConfigurationError: a variable is unknown.
        """
        for variable in sorted(environ):
            name, value = variable.removeprefix(PREFIX), environ[variable]
            if name == variable or not value or name in OTHER_VARIABLES or OF_CONTAINERS.fullmatch(name):
                continue
            if variable in OPTION_VARIABLES:
                self.add_option(OPTION_VARIABLES[variable], value, variable)
            elif variable not in VARIABLES:
                hint = suggestion(variable.upper(), (*VARIABLES, *OPTION_VARIABLES))
                raise ConfigurationError(f"there is no variable {variable}{hint}")
            elif (word := VARIABLES[variable]) in SETTINGS:
                self.add(word, value.split(",") if word == "bind" else value, variable)

    def add_flags(self, flags: Mapping[str, Any]) -> None:
        """The settings of a command line: those that are not None, nor empty.

        :raises ConfigurationError: a ``--set`` is not NAME=VALUE.
        """
        for word, value in flags.items():
            if word in SETTINGS and value not in (None, ()):
                self.add(word, value, "MODULE:TARGET" if word == "target" else flag(word))
        for text in flags.get(SET, ()):
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigurationError(f"--set {text}: needs a value: --set {name}=VALUE")
            self.add_option(name.strip(), value.strip(), "--set")

    def checked(self) -> Settings:
        """The settings. Only if they are right the environment gets the variables of ``env_file``.

        :raises ConfigurationError: a value is invalid, or there is no target.
        """
        if "target" not in self.settings:
            raise ConfigurationError("what is to be served? Name a server: iostreamsrv serve MODULE:TARGET")
        values = {name: given.value for name, given in self.settings.items()}
        try:
            settings = Settings.of({**values, "options": {name: given.value for name, given in self.options.items()}})
        except OptionError as error:
            source = self._source_of(error)
            raise ConfigurationError(f"{error}{'' if source is None else f' (from {source})'}") from None
        self.export()
        return settings

    def _source_of(self, error: OptionError) -> str | None:
        name = str(error.value) if error.option == SET else error.option
        given = self.settings.get(SETTINGS.get(name, name)) or self.options.get(name)
        return given and given.source

    def shown(self, settings: Settings) -> str:
        """All settings as the lines of a TOML file, with comments that say where each value is from."""
        lines = []
        for word, name in SETTINGS.items():
            value, source = getattr(settings, name), self.settings.get(name, Given(None, DEFAULT)).source
            if value is ...:
                lines.append((f"# {word}:", "the server's own"))
            else:
                lines.append((f"{word} = {_toml(value)}", f"# {source}"))
        if self.options:
            lines += [("", ""), (f"[{SET}]", "")]
        for name, given in self.options.items():
            lines.append((f"{name} = {_toml(settings.options[name])}", f"# {given.source}"))
        width = max(len(left) for left, _ in lines)
        return "\n".join(f"{left:<{min(width, 40)}}  {right}".rstrip() for left, right in lines)


def flag(word: str) -> str:
    """The flag of a setting."""
    return f"--{word.replace('_', '-')}"


def configure(flags: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ) -> Configuration:
    """All settings of the command line, the environment and the file.

    :param flags: by what each is called in a file, with ``config``, ``env_file`` and ``set``.
    :param environ: the environment, which gets the variables of ``env_file`` that it has not once all is checked.
    :raises ConfigurationError: something is wrong with them, but for their values.
    """
    found = Configuration()
    file, table = read_toml(flags.get(CONFIG) or environ.get(f"{PREFIX}CONFIG") or None)
    found.add_table(file, table)
    env_file = flags.get(ENV_FILE) or environ.get(f"{PREFIX}ENV_FILE") or table.get(ENV_FILE)
    if env_file is not None:
        if not isinstance(env_file, str):
            raise ConfigurationError(f"{file}: {ENV_FILE} must be the path of a file")
        variables = read_variables(env_file)
        found.export = lambda: _set_variables(environ, variables)
        seen = dict(environ)
        _set_variables(seen, variables)
        found.add_environment(seen)
    else:
        found.add_environment(environ)
    found.add_flags(flags)
    return found


def _set_variables(environ: MutableMapping[str, str], variables: Mapping[str, str]) -> None:
    """Set those that the environment has not, in place of what an earlier reading of the file has set: it may have
    changed, and a reload and an upgrade read it again."""
    for name in environ.pop(FROM_FILE, "").split():
        environ.pop(name, None)
    added = {name: value for name, value in variables.items() if name not in environ}
    environ.update(added)
    environ[FROM_FILE] = " ".join(added)


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "inf" if value >= UNLIMITED else repr(int(value) if value == int(value) else value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False)
