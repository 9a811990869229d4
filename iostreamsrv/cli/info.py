"""What runs here: ``iostreamsrv info``. It needs nothing but the package."""

import importlib.metadata
import json
import platform
import ssl
from pathlib import Path

from .. import cores
from ..streams import hub
from ..version import __version__


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
        "path": str(Path(__file__).parent.parent),
    }


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def text(as_json: bool = False) -> str:
    """What runs here, one thing a line, the reason behind the core; or as one JSON object."""
    found = info()
    if as_json:
        return json.dumps(found, indent=2)
    shown = {**found, "core": found["core"] + (f" ({found['core_reason']})" if found["core_reason"] else "")}
    del shown["core_reason"]
    return "\n".join(f"{name:<14}{value}" for name, value in shown.items())
