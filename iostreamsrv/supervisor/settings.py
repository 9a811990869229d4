"""What a supervisor is asked to do: one frozen object, checked when it is made."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import EllipsisType, ModuleType
from typing import Any

from ..errors import OptionError
from ..observe.accesslog import Format, check_format
from ..options import check_flag, check_optional_timeout, check_timeout
from ..runtime.checks import check_int, did_you_mean, is_number
from .binds import Bind, check_binds
from .values import (
    optional,
    read_count,
    read_duration,
    read_flag,
    read_number,
    read_size,
    read_text,
    server_options,
)

grp: ModuleType | None
pwd: ModuleType | None
try:
    import grp
    import pwd
except ImportError:  # Windows has neither, nor a supervisor; but the command `info`
    grp = pwd = None

DEFAULT_BIND = "127.0.0.1:8888"

AUTO = "auto"

CONTROL_FILE = "control.sock"

USAGE = 2
"""Exit code: what was typed or configured is wrong."""

START_FAILED = 3
"""Exit code: the server did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``iostreamsrv serve`` is asked to do. ::

        Settings(target="chat:Chat", binds=("0.0.0.0:8888", "unix:/run/chat.sock"), workers="auto", hang_timeout="1m")

    Each value may be a text, as a command line has it, and is kept as what it says.

    :raises OptionError: a value is invalid.

    :ivar target: the server, "module:Target": a class, an instance, a factory, or a handler.
    :ivar binds: where to listen. Default 127.0.0.1:8888.
    :ivar workers: how many processes, 1 to 128; "auto": one for each core that this process may use. Default 1.
    :ivar options: options of `ServerOptions`, which come before the server's own.
    :ivar tls_cert: the file of the certificate and its chain; None: the server's own TLS options.
    :ivar tls_key: the file of the key; None: it is in ``tls_cert``.
    :ivar pid_file: a file that has the supervisor's process number while it runs.
    :ivar metrics: where to serve metrics and the state of the service, over HTTP; None: nowhere.
    :ivar access_log: the file of the access log; "-": stdout; None: there is none.
    :ivar access_log_format: "text" or "json".
    :ivar control: the file of the control socket; None: no such socket; "auto", the default: ``control.sock`` in the
        folder that the environment variable ``RUNTIME_DIRECTORY`` names, and none without it. See :attr:`control_path`.
    :ivar user: name or number of the user that workers run as; see :attr:`uid`.
    :ivar group: name or number of their group; see :attr:`gid`.
    :ivar drain_timeout: seconds that a worker gives its clients when it ends; None for no limit; ``...``: the server's
        own. It is the server's option of that name: it is in ``options`` as well, whichever of both was given.
    :ivar kill_timeout: seconds after ``drain_timeout`` until a worker that has not ended is killed. Default 2.
    :ivar ready_timeout: seconds that a worker may take to start. Default 30.
    :ivar retire_timeout: seconds that a replaced worker serves its clients, before it closes them; None: until they
        leave. Default 3600.
    :ivar worker_lifetime: seconds after which a worker is replaced; None: never.
    :ivar worker_max_rss: resident bytes above which a worker is replaced; None: never.
    :ivar worker_max_accepted: clients after which a worker is replaced; None: never.
    :ivar jitter: how much ``worker_lifetime`` and ``worker_max_accepted`` vary from worker to worker, so that not all
        are replaced at once: 0.1, the default, is up to a tenth more.
    :ivar hang_timeout: seconds without a sign of life after which a worker is killed and replaced; None: never.
        Default 30.
    :ivar reload: whether workers are replaced when a source file changes. Default False.
    """

    target: str
    binds: tuple[Bind, ...] = (Bind.parse(DEFAULT_BIND),)
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    tls_cert: str | None = None
    tls_key: str | None = None
    pid_file: str | None = None
    metrics: Bind | None = None
    access_log: str | None = None
    access_log_format: Format = "text"
    control: str | None = AUTO
    user: str | None = None
    group: str | None = None
    drain_timeout: float | EllipsisType | None = ...
    kill_timeout: float = 2.0
    ready_timeout: float = 30.0
    retire_timeout: float | None = 3600.0
    worker_lifetime: float | None = None
    worker_max_rss: int | None = None
    worker_max_accepted: int | None = None
    jitter: float = 0.1
    hang_timeout: float | None = 30.0
    reload: bool = False

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self._share_drain_timeout()
        if self.tls_key is not None and self.tls_cert is None:
            raise OptionError("tls_key", self.tls_key, "needs tls_cert: the certificate that it is the key of")
        self._check_group()
        if self.metrics is not None and self.metrics in self.binds:
            raise OptionError("metrics", self.metrics.text, "is where the service itself listens")

    def _share_drain_timeout(self) -> None:
        own, servers = self.drain_timeout, self.options.get("drain_timeout", ...)
        if own is ... and servers is not ...:
            object.__setattr__(self, "drain_timeout", servers)
        elif own is not ... and servers is ...:
            object.__setattr__(self, "options", {**self.options, "drain_timeout": own})
        elif own != servers:
            raise OptionError("drain_timeout", own, f"is {servers} as an option of the server: it can be one only")

    def _check_group(self) -> None:
        if self.group is None and self.uid is not None and self.gid is None:
            raise OptionError("user", self.user, "the system knows no user of this number, so it needs a group, too")

    @property
    def control_path(self) -> str | None:
        """The file of the control socket; None without one."""
        return default_control() if self.control == AUTO else self.control

    @property
    def uid(self) -> int | None:
        """The number of :attr:`user`; None without one."""
        return None if self.user is None else _uid("user", self.user)

    @property
    def gid(self) -> int | None:
        """The number of :attr:`group`, or else of the group that the system has for :attr:`user`; None without both."""
        if self.group is not None:
            return _gid("group", self.group)
        try:
            return None if self.uid is None or pwd is None else int(pwd.getpwuid(self.uid).pw_gid)
        except KeyError:
            return None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from a mapping.

        :raises OptionError: a name is unknown, a value is invalid, or there is no target.
        """
        for name, value in values.items():
            if name not in NAMES:
                raise OptionError(name, value, f"there is no such setting: {did_you_mean(name, NAMES)}")
        if values.get("target") is None:
            raise OptionError("target", None, NO_TARGET)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, for :meth:`from_json`."""
        values = {name: getattr(self, name) for name in NAMES}
        values["binds"] = [bind.text for bind in self.binds]
        values["metrics"] = None if self.metrics is None else self.metrics.text
        if self.drain_timeout is ...:
            del values["drain_timeout"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """What :meth:`to_json` has made; it may have been JSON in between.

        :raises OptionError: it is something else.
        """
        return cls.of(values)


def default_control() -> str | None:
    """The default file of the control socket; None without ``RUNTIME_DIRECTORY``, which systemd sets."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return os.path.join(folder, CONTROL_FILE) if folder else None  # noqa: PTH118 (a text is wanted)


NAMES = tuple(each.name for each in fields(Settings))

NO_TARGET = 'what is to be served? It needs the name of a server, as in "chat:Chat"'


# ---- checks

Check = Callable[[str, Any], Any]


def check_target(name: str, value: Any) -> str:
    """ "module:Target", whether or not there is such a thing.

    :raises OptionError: it has another form.
    """
    if not isinstance(value, str) or not value:
        raise OptionError(name, value, NO_TARGET)
    module, _, attribute = value.partition(":")
    if _is_dotted(module) and not module.endswith(".py") and _is_dotted(attribute):
        return value
    path = re.fullmatch(r"(?:\./)?([\w/]+)\.py(:[\w.]*)?", value)
    if path is not None:
        found = f"{path[1].replace('/', '.')}{path[2] or ':'}"
        problem = f'is the path of a file: write the name of a module, "{found}{"" if path[2] else "Target"}"'
    elif _is_dotted(value):
        as_name = ":".join(value.rsplit(".", 1))
        problem = f'has no ":": write "{value}:Target"' + (f', or "{as_name}"' if as_name != value else "")
    else:
        problem = 'must be "module:Target", as in "chat:Chat"'
    raise OptionError(name, value, problem)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _check_binds(name: str, value: Any) -> tuple[Bind, ...]:
    if isinstance(value, str | Bind) or not isinstance(value, Iterable):
        value = [value]
    return check_binds(each if isinstance(each, Bind) else Bind.parse(each) for each in value)


MAX_WORKERS = 128
"""Half of the places in the memory that workers share: a reload needs one for the next worker of each."""


def _check_workers(name: str, value: Any) -> int:
    if value == "auto":
        return min(cores(), MAX_WORKERS)
    if isinstance(value, str) and not value.strip().isdigit():
        raise OptionError(name, value, 'must be a number of processes, or "auto": one for each core')
    hint = ', or "auto": one for each core'
    return check_int(name, read_count(name, value), 1, MAX_WORKERS, "a number of processes", hint)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "process_cpu_count"):  # from 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_options(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(name, value, "must be options of a server, by their names")
    return server_options(value)


def _check_path(name: str, value: Any) -> str | None:
    value = optional(read_text)(name, value)
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in os.fsdecode(value):
        raise OptionError(name, value, "must be the path of a file")
    return os.fsdecode(value)


def _check_metrics(name: str, value: Any) -> Bind | None:
    value = optional(read_text)(name, value)
    if value is None or isinstance(value, Bind):
        return value
    try:
        return Bind.parse(value)
    except OptionError as error:
        raise OptionError(name, value, error.problem) from None


def _check_user(name: str, value: Any) -> str | None:
    text = _check_owner(name, value)
    if text is not None:
        _uid(name, text)
    return text


def _check_group(name: str, value: Any) -> str | None:
    text = _check_owner(name, value)
    if text is not None:
        _gid(name, text)
    return text


def _check_owner(name: str, value: Any) -> str | None:
    value = optional(read_text)(name, value)
    if value is None or (isinstance(value, str) and value):
        return value
    return str(check_int(name, value, 0, MAX_ID, f"the name or the number of a {name}"))


MAX_ID = (1 << 32) - 2
"""The greatest number of a user or group: one more means "unchanged"."""


def _uid(name: str, text: str) -> int:
    if _is_id(text):
        return int(text)
    try:
        if pwd is not None:
            return int(pwd.getpwnam(text).pw_uid)
    except (KeyError, ValueError):
        pass
    raise OptionError(name, text, "there is no such user")


def _gid(name: str, text: str) -> int:
    if _is_id(text):
        return int(text)
    try:
        if grp is not None:
            return int(grp.getgrnam(text).gr_gid)
    except (KeyError, ValueError):
        pass
    raise OptionError(name, text, "there is no such group")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def _check_drain_timeout(name: str, value: Any) -> float | EllipsisType | None:
    return value if value is ... else check_optional_timeout(name, optional(read_duration)(name, value))


def _check_timeout(name: str, value: Any) -> float:
    return check_timeout(name, read_duration(name, value))


def _check_optional_timeout(name: str, value: Any) -> float | None:
    return check_optional_timeout(name, optional(read_duration)(name, value))


def _check_optional_size(name: str, value: Any) -> int | None:
    size = optional(read_size)(name, value)
    return None if size is None else check_int(name, size, 1, what="a number of bytes", hint=", or None for no limit")


def _check_optional_count(name: str, value: Any) -> int | None:
    count = optional(read_count)(name, value)
    return None if count is None else check_int(name, count, 1, hint=", or None for no limit")


def _check_share(name: str, value: Any) -> float:
    share = read_number(name, value)
    if not is_number(share) or not 0 <= share <= 1:
        raise OptionError(name, value, "must be a number from 0 to 1")
    return float(share)


def _check_flag(name: str, value: Any) -> bool:
    return check_flag(name, read_flag(name, value))


CHECKS: dict[str, Check] = {
    "target": check_target,
    "binds": _check_binds,
    "workers": _check_workers,
    "options": _check_options,
    "tls_cert": _check_path,
    "tls_key": _check_path,
    "pid_file": _check_path,
    "metrics": _check_metrics,
    "access_log": _check_path,
    "access_log_format": check_format,
    "control": _check_path,
    "user": _check_user,
    "group": _check_group,
    "drain_timeout": _check_drain_timeout,
    "kill_timeout": _check_timeout,
    "ready_timeout": _check_timeout,
    "retire_timeout": _check_optional_timeout,
    "worker_lifetime": _check_optional_timeout,
    "worker_max_rss": _check_optional_size,
    "worker_max_accepted": _check_optional_count,
    "jitter": _check_share,
    "hang_timeout": _check_optional_timeout,
    "reload": _check_flag,
}
"""How each setting is read and checked."""
