"""The command ``python -m iostreamsrv``: ``info`` says what runs here. It needs nothing but the package."""

import argparse
import importlib.metadata
import json
import platform
import ssl
from collections.abc import Sequence
from pathlib import Path

from . import cores
from .streams import hub
from .version import __version__

COMMAND = "python -m iostreamsrv"


def info() -> dict[str, str]:
    """What runs here; for a bug report, too. The names stay, and others may come.

    ``core_reason`` is why the core is Python's: empty where it is the compiled one.
    """
    return {
        "version": __version__,
        "core": cores.core,
        "core_reason": cores.why,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "tornado": _version_of("tornado"),
        "cryptography": _version_of("cryptography"),
        "openssl": ssl.OPENSSL_VERSION,
        "hub": "epoll" if hub.driver is hub.EpollHub else "loop",
        "system": platform.platform(),
        "path": str(Path(__file__).parent),
    }


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def as_text(found: dict[str, str]) -> str:
    """One thing a line; the reason behind the core."""
    shown = {**found, "core": found["core"] + (f" ({found['core_reason']})" if found["core_reason"] else "")}
    del shown["core_reason"]
    return "\n".join(f"{name:<14}{value}" for name, value in shown.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` name; without one print the help."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=f"iostreamsrv {__version__}: the TCP server you subclass."
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    says = "say which version and which core run, on what"
    of_info = commands.add_parser("info", help=says, description=says[0].upper() + says[1:] + ".")
    of_info.add_argument("--json", action="store_true", help="as one JSON object")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
    else:
        found = info()
        print(json.dumps(found, indent=2) if options.json else as_text(found))


if __name__ == "__main__":
    main()
