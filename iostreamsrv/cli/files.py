"""The files that a configuration is in: TOML, and environment variables. Errors have the file and the line."""

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from ..runtime.checks import nearest

OWN_FILE = "iostreamsrv.toml"
PROJECT_FILE = "pyproject.toml"
TABLE = "tool.iostreamsrv"


class ConfigurationError(ValueError):
    """What was typed or configured is wrong; one line says where, and what."""


def read_toml(path: str | None) -> tuple[str, dict[str, Any]]:
    """The table of settings, and the file it is in, which errors name.

    :param path: the file: a ``pyproject.toml`` has the settings in ``[tool.iostreamsrv]``. None: ``iostreamsrv.toml``
        in the current folder, else a ``pyproject.toml`` there that has the table; if there is neither, no settings.
    :raises ConfigurationError: the file is not there, or cannot be read; it is no TOML; it has no such table.
    """
    if path is not None:
        table = _table(path)
        if table is None:
            raise ConfigurationError(f"{path}: has no [{TABLE}]")
        return path, table
    for name in (OWN_FILE, PROJECT_FILE):
        if _is_file(name):
            table = _table(name)
            if table is not None:
                return name, table
    return OWN_FILE, {}


def _is_file(name: str) -> bool:
    try:
        return stat.S_ISREG(Path(name).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # after --user the current folder may be closed to this process
        raise ConfigurationError(f"{name}: {error.strerror}") from None


def _table(path: str) -> dict[str, Any] | None:
    found = _parsed(path)
    if Path(path).name != PROJECT_FILE:
        return found
    for name in TABLE.split("."):
        inner = found.get(name)
        if not isinstance(inner, dict):
            return None
        found = inner
    return found


def _parsed(path: str) -> dict[str, Any]:
    text = _read(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).partition(" (at ")
        number = re.match(r"line (\d+)", place)
        line = number[1] if number else text.count("\n") + 1
        raise ConfigurationError(f"{path}:{line}: {problem[:1].lower()}{problem[1:]}") from None


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}:{line}: is not UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {getattr(error, 'strerror', error)}") from None


def read_variables(path: str) -> dict[str, str]:
    r"""The environment variables of a file, one a line: ``NAME=VALUE``, perhaps with ``export`` before it.

    A value may be in single quotes, which keep all in them; or in double quotes, where ``\n``, ``\t``, ``\r``, ``\"``,
    ``\$`` and ``\\`` stand for one character. Without quotes it ends before a blank and ``#``: a comment.

    :raises ConfigurationError: the file cannot be read, or a line is something else.
    """
    variables = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, text = re.sub(r"^export\s+", "", line).partition("=")
        value = _value(text.strip()) if equals else None
        if value is None or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ConfigurationError(f"{path}:{number}: must be NAME=VALUE, in quotes or without")
        variables[name.strip()] = value
    return variables


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$"}


def _value(text: str) -> str | None:
    """What a text after ``=`` stands for; None if its quotes do not end, or something follows them."""
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s+)#", text, maxsplit=1)[0]
    pattern = r"'([^']*)'" if text[0] == "'" else r'"((?:[^"\\]|\\.)*)"'
    found = re.fullmatch(pattern + r"\s*(?:#.*)?", text)
    if found is None or text[0] == "'":
        return found and found[1]
    return re.sub(r"\\(.)", lambda escape: ESCAPES.get(escape[1], escape[0]), found[1])


def suggestion(name: str, known: tuple[str, ...]) -> str:
    """ ": did you mean …?", if a known name resembles it."""
    near = nearest(name, known)
    return "" if near is None else f": did you mean {near!r}?"
