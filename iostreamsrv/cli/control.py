"""``iostreamsrv ctl``: speaks to a service over its control socket."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from ..control import ControlClient, ControlError
from ..control.protocol import FAILED
from ..errors import OptionError
from ..supervisor.settings import AUTO, CHECKS, START_FAILED, default_control
from .configuration import configure
from .files import ConfigurationError

NOT_DONE = 1
"""Exit code: no service answers, or it refuses."""

COLUMNS = {
    "worker": "number",
    "pid": "pid",
    "generation": "generation",
    "state": "state",
    "open": "open",
    "accepted": "accepted",
    "closed": "closed",
    "rejected": "rejected",
    "errors": "errors",
    "received": "bytes_received",
    "sent": "bytes_sent",
    "alive": "heartbeat_age",
    "rss": "rss",
}
"""The columns of the table of workers, and what is in them."""


class NotDoneError(click.ClickException):
    """The service has not done it.

    :ivar code: the exit code.
    """

    def __init__(self, message: str, code: int = NOT_DONE) -> None:
        super().__init__(message)
        self.code = code


class Service:
    """The service that is spoken to.

    :param path: the file of its control socket; None: where it is configured.
    :param as_json: whether its answers are shown as JSON.
    """

    def __init__(self, path: str | None, as_json: bool) -> None:
        self._path = path
        self._as_json = as_json

    def ask(self, question: Callable[[ControlClient], Any]) -> Any:
        """What it answers.

        :raises NotDoneError: it is not there, or fails, or refuses.
        """
        path = control_path(self._path)
        try:
            with ControlClient(path) as client:
                return question(client)
        except ControlError as error:
            raise NotDoneError(error.message, START_FAILED if error.code == FAILED else NOT_DONE) from None
        except OSError as error:
            raise NotDoneError(f"{path}: {error.strerror or error}") from None

    def show(self, found: Any, text: str) -> None:
        """Show an answer: as JSON, or as that text."""
        click.echo(json.dumps(found, indent=2) if self._as_json else text)


def control_path(given: str | None) -> str:
    """The file of the control socket: what is given, else what ``serve`` would take in this folder.

    :raises ConfigurationError: there is none.
    """
    found = configure({"control": given}).settings.get("control")
    try:
        path = AUTO if found is None else CHECKS["control"]("control", found.value)
    except OptionError as error:
        raise ConfigurationError(str(error)) from None
    path = default_control() if path == AUTO else path
    if path is None:
        raise ConfigurationError("which service? Name its control socket: iostreamsrv ctl --control FILE ...")
    return str(path)


@click.group("ctl")
@click.option("--control", metavar="FILE", help="Its control socket.  [what serve would take in this folder]")
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON.")
@click.pass_context
def ctl(context: click.Context, control: str | None, as_json: bool) -> None:
    """Ask a service that runs, and tell it what to do, over its control socket.

    The exit code is 1 if no service answers or it refuses, and 3 if the new code did not start.
    """
    context.obj = Service(control, as_json)


@ctl.group("show")
def show() -> None:
    """Show what the service does."""


@show.command("workers")
@click.pass_obj
def show_workers(service: Service) -> None:
    """The processes, those that retire included."""
    found = service.ask(ControlClient.workers)
    rows = [[cell(name, worker[key]) for name, key in COLUMNS.items()] for worker in found]
    service.show(found, table(COLUMNS, rows))


@show.command("stats")
@click.pass_obj
def show_stats(service: Service) -> None:
    """The sums over all workers, the dead ones included."""
    found = service.ask(ControlClient.stats)
    service.show(found, pairs(found))


@show.command("config")
@click.pass_obj
def show_config(service: Service) -> None:
    """The settings that count now."""
    found = service.ask(ControlClient.config)
    service.show(found, pairs({name: json.dumps(value) for name, value in found.items()}))


@ctl.command("reload")
@click.pass_obj
def reload(service: Service) -> None:
    """Replace all workers, and wait until the new ones serve."""
    service.ask(ControlClient.reload)
    service.show({}, "reloaded")


@ctl.command("upgrade")
@click.pass_obj
def upgrade(service: Service) -> None:
    """Replace the supervisor and all workers; wait until the new supervisor answers."""
    service.ask(ControlClient.upgrade)
    service.show({}, "upgraded: the workers are being replaced")


@ctl.command("workers", context_settings={"ignore_unknown_options": True})
@click.argument("change", metavar="+1|-1", type=click.Choice(["+1", "-1"]))
@click.pass_obj
def workers(service: Service, change: str) -> None:
    """Start one worker more, or have one less."""
    count = service.ask(lambda client: client.change_workers(1 if change == "+1" else -1))
    service.show({"workers": count}, f"{count} workers" if count > 1 else "1 worker")


@ctl.command("drain")
@click.pass_obj
def drain(service: Service) -> None:
    """Shut the service down: it ends when its clients have left, or after --drain-timeout."""
    service.ask(ControlClient.drain)
    service.show({}, "shutting down")


# ---- tables


def cell(name: str, value: Any) -> str:
    """A value of the table of workers, as people read it."""
    if value is None:
        return "-"
    if name == "alive":
        return f"{value:.1f} s"
    if name == "rss":
        return f"{value / (1 << 20):.1f} M"
    return str(value)


def table(names: Iterable[str], rows: list[list[str]]) -> str:
    """Columns with their names above them, numbers at the right."""
    lines = [list(names), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def pairs(found: Mapping[str, Any]) -> str:
    """A name and a value each line."""
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())
