"""``iostreamsrv serve``."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..errors import ListenError, OptionError
from ..supervisor.settings import START_FAILED, Settings
from .configuration import configure
from .files import ConfigurationError

Callback = TypeVar("Callback", bound=Callable[..., Any])

ADDRESSES = """Where to listen: host:port, [::]:port, :port, unix:/path?mode=0660, fd://3 or systemd:name, each perhaps
with ?tls=off. May be given several times.  [127.0.0.1:8888]"""


def setting(*names: str, metavar: str, about: str, multiple: bool = False) -> Callable[[Callback], Callback]:
    """A flag that has a value. None, or nothing, is as if it were not there."""
    return click.option(*names, metavar=metavar, help=about, multiple=multiple)


@click.command("serve")
@click.argument("target", metavar="[MODULE:TARGET]", required=False)
@setting("--bind", metavar="ADDRESS", about=ADDRESSES, multiple=True)
@setting("--tls-cert", metavar="FILE", about="The certificate and its chain, in PEM.")
@setting("--tls-key", metavar="FILE", about="Its key, unless that is in the same file.")
@setting("-w", "--workers", metavar="N|auto", about="How many processes; auto: one for each core.  [1]")
@setting("-c", "--config", metavar="FILE", about="A TOML file of settings.  [iostreamsrv.toml, or pyproject.toml]")
@setting("--set", metavar="NAME=VALUE", about="An option of ServerOptions. May be given several times.", multiple=True)
@setting("--env-file", metavar="FILE", about="Environment variables, a NAME=VALUE each line.")
@setting("--pid-file", metavar="FILE", about="Where to write the number of the supervisor's process.")
@setting("--metrics", metavar="ADDRESS", about="Where to serve /metrics, /healthz and /readyz over HTTP.  [none]")
@setting("--access-log", metavar="FILE|-", about="A line for each connection; -: on stdout. USR1 opens it again.")
@setting("--access-log-format", metavar="text|json", about="What these lines are.  [text]")
@setting("--control", metavar="FILE", about="The control socket.  [control.sock in RUNTIME_DIRECTORY, or none]")
@setting("--user", metavar="NAME|ID", about="The user that workers run as.")
@setting("--group", metavar="NAME|ID", about="The group that workers run as.  [that of --user]")
@setting("--drain-timeout", metavar="SECONDS", about="What clients get when a worker ends.  [the server's: 15]")
@setting("--kill-timeout", metavar="SECONDS", about="What a worker gets to end after that.  [2]")
@setting("--ready-timeout", metavar="SECONDS", about="What a worker gets to start.  [30]")
@setting("--retire-timeout", metavar="SECONDS", about="How long a replaced worker serves its clients.  [1h]")
@setting("--worker-lifetime", metavar="SECONDS", about="Replace a worker after that time.  [none]")
@setting("--worker-max-rss", metavar="BYTES", about="Replace a worker that has more memory.  [none]")
@setting("--worker-max-accepted", metavar="N", about="Replace a worker after so many clients.  [none]")
@setting("--jitter", metavar="SHARE", about="How much lifetime and max-accepted vary from worker to worker.  [0.1]")
@setting("--hang-timeout", metavar="SECONDS", about="Replace a worker that shows no life for so long.  [30]")
@click.option("--reload/--no-reload", default=None, help="Replace the workers when a source file changes.")
@click.option("--check", is_flag=True, help="Import the target, make the server, read certificates; bind nothing.")
@click.option("--print", "show", is_flag=True, help="Print each setting, and where it is from.")
def serve(check: bool, show: bool, **flags: Any) -> int:
    """Serve a class of servers, a server, a function that makes one, or a handler: on several cores, with reload and
    upgrade without loss.

    Each setting may also be in a TOML file, or in a variable IOSTREAMSRV_...; the command line comes first. Durations
    are seconds, or 10s, 5m, 1h; sizes are bytes, or 512M, 2G; "none" is for no limit.
    """
    try:
        configuration = configure(flags)
        settings = configuration.checked()
        check_extras(settings)
    except ConfigurationError as error:
        return _go_on(error)
    if show:
        click.echo(configuration.shown(settings))
    if check:
        return checked(settings)
    if show:
        return 0
    from ..supervisor.master import serve_with

    return serve_with(settings, lambda: configure(flags).checked())


def check_extras(settings: Settings) -> None:
    """Check that the packages are installed that some settings need.

    :raises ConfigurationError: one is not.
    """
    for is_needed, extra, package in (
        (settings.reload, "reload", "watchfiles"),
        (settings.metrics is not None, "metrics", "prometheus-client"),
    ):
        if is_needed and importlib.util.find_spec(package.replace("-", "_")) is None:
            raise ConfigurationError(f'--{extra} needs {package}: pip install "iostreamsrv[{extra}]"')


def _go_on(error: ConfigurationError) -> int:
    """Serve with the settings of before, if this is an upgrade: what was checked a moment ago has become invalid."""
    from ..supervisor.master import serve_with
    from ..supervisor.upgrade import kept_settings

    settings = kept_settings()
    if settings is None:
        raise error
    print(f"iostreamsrv: {error}: the settings of before stay", file=sys.stderr)
    return serve_with(settings)


def checked(settings: Settings) -> int:
    """Say in one line whether the server can be made.

    :returns: the exit code.
    """
    from ..supervisor.target import TargetError, load, server_of

    try:
        server_of(load(settings.target), settings)
    except (TargetError, OptionError, ListenError) as error:
        print(f"iostreamsrv: {error}", getattr(error, "details", ""), sep="\n", end="", file=sys.stderr)
        return START_FAILED
    where = ", ".join(bind.text for bind in settings.binds)
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    click.echo(f"iostreamsrv: {settings.target} can be served on {where} by {workers}")
    return 0
