"""The commands, and how each of them ends: with an exit code, and one line about what is wrong."""

import sys

import click

from ..errors import ListenError, OptionError
from ..runtime.text import printable
from ..supervisor.settings import START_FAILED, USAGE
from ..version import __version__
from . import info
from .control import NotDoneError, ctl
from .files import ConfigurationError
from .serve import serve

INTERRUPTED = 130
"""Exit code, by the convention of shells: Ctrl-C, before a server was there to be ended."""


@click.group("iostreamsrv", invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """The TCP server you subclass."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command("info")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show_info(as_json: bool) -> None:
    """Say which version and which core run, on what."""
    click.echo(info.text(as_json))


commands.add_command(serve)
commands.add_command(ctl)


def run(words: list[str]) -> int:
    """Run a command.

    :returns: the exit code.
    """
    try:
        return commands.main(words, standalone_mode=False) or 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except NotDoneError as error:
        return _failed(error.format_message(), error.code)
    except click.ClickException as error:
        return _failed(error.format_message(), USAGE)
    except (ConfigurationError, OptionError) as error:
        return _failed(str(error), USAGE)
    except ListenError as error:
        return _failed(str(error), START_FAILED)


def _failed(problem: str, code: int) -> int:
    print(f"iostreamsrv: {printable(problem)}", file=sys.stderr)
    return code
