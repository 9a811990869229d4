"""Values that a text gives, on a command line, in a file or in the environment: durations, sizes, flags, options.

Each reader takes the name of the value, for errors, and the value. What is no text is returned as it is: it has its
type already, and is checked where it is used.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError
from ..net.trusted_proxies import TrustedNetworks
from ..options import (
    CHECKS,
    NAMES,
    SIZES,
    ServerOptions,
    check_count,
    check_flag,
    check_keepalive,
    check_kernel_size,
    check_linger,
    check_optional_timeout,
    check_rate,
    check_timeout,
    check_when_full,
)
from ..runtime.checks import did_you_mean

Reader = Callable[[str, Any], Any]

FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read_text(name: str, value: Any) -> Any:
    """A word."""
    return value


def read_flag(name: str, value: Any) -> Any:
    """``true`` or ``false``, ``yes`` or ``no``, ``on`` or ``off``, ``1`` or ``0``."""
    if not isinstance(value, str):
        return value
    try:
        return FLAGS[value.strip().lower()]
    except KeyError:
        raise OptionError(name, value, "must be true or false") from None


def read_duration(name: str, value: Any) -> Any:
    """Seconds: ``10``, ``0.5``, ``10s``, ``500ms``, ``5m``, ``1h``, ``7d``.

    :raises OptionError: it is a text, and none of these.
    """
    return _read_unit(name, value, SECONDS, 'a duration, such as 10, "10s", "5m" or "1h"')


def read_size(name: str, value: Any) -> Any:
    """Bytes: ``4096``, ``64K``, ``512M``, ``2G`` (of 1024, also written ``MB`` or ``MiB``), or ``inf``.

    :raises OptionError: it is a text, and none of these.
    """
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "inf":
        return math.inf
    short = re.sub(r"(?i)([KMGT])(i?B)?$", lambda unit: unit[1].upper(), value.strip())
    size = _read_unit(name, short, BYTES, 'a number of bytes, such as 4096, "64K", "512M" or "2G"', given=value)
    return int(size)


def read_count(name: str, value: Any) -> Any:
    """An integer, or ``inf``.

    :raises OptionError: it is a text, and neither.
    """
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "inf":
        return math.inf
    if re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise OptionError(name, value, "must be an integer")


def read_number(name: str, value: Any) -> Any:
    """A number.

    :raises OptionError: it is a text, and no number.
    """
    if not isinstance(value, str):
        return value
    return _read_unit(name, value, {"": 1.0}, "a number")


def optional(reader: Reader) -> Reader:
    """A reader that takes ``none`` as well, for no limit."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        try:
            return reader(name, value)
        except OptionError as error:
            problem = str(error).partition(": ")[2]
            raise OptionError(name, error.value, f'{problem}, or "none"') from None

    return read


def read_keepalive(name: str, value: Any) -> Any:
    """A flag, or ``idle,interval,probes``: three integers.

    :raises OptionError: it is a text, and neither.
    """
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*){2}", value):
        return tuple(map(int, value.split(",")))
    if value.strip().lower() in FLAGS and value.strip() not in ("0", "1"):
        return FLAGS[value.strip().lower()]
    raise OptionError(name, value, "must be true, false, or idle,interval,probes, such as 60,10,6")


def read_list(name: str, value: Any) -> Any:
    """Words with commas between them."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _read_unit(name: str, value: Any, units: Mapping[str, float], wanted: str, given: str | None = None) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)", value.strip())
    if found is None or found[2] not in units:
        raise OptionError(name, value if given is None else given, f"must be {wanted}")
    return float(found[1]) * units[found[2]]


# ---- the options of a server

READERS: dict[Callable[[str, Any], Any], Reader] = {
    check_flag: read_flag,
    check_kernel_size: optional(read_size),
    check_count: optional(read_count),
    check_when_full: read_text,
    check_optional_timeout: optional(read_duration),
    check_timeout: read_duration,
    check_rate: optional(read_size),
    check_linger: read_duration,
    check_keepalive: optional(read_keepalive),
}
"""How a value is read that is checked so."""

OPTION_READERS: dict[str, Reader] = {
    **{name: READERS[check] for check, names in CHECKS for name in names},
    **dict.fromkeys(SIZES, optional(read_size)),
    "proxy_protocol": optional(read_list),
}
"""How each option of a server is read."""


def server_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `ServerOptions`, each a text or a value, as that class keeps them.

    :raises OptionError: there is no such option, or its value is invalid.
    """
    read = {}
    for name, value in given.items():
        if name not in OPTION_READERS:
            raise OptionError("set", name, f"a server has no such option: {did_you_mean(name, NAMES)}")
        read[name] = OPTION_READERS[name](name, value)
    if read.get("proxy_protocol") is not None:
        TrustedNetworks(read["proxy_protocol"])
    checked = ServerOptions.of(read)
    return {name: getattr(checked, name) for name in read}
