"""How Sphinx builds these pages: ``make docs``. No network is needed for it."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent.parent))

import iostreamsrv

project = "iostreamsrv"
version = release = iostreamsrv.__version__
copyright = "the iostreamsrv contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "py:obj"
add_module_names = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"iostreamsrv {release}"
html_show_sphinx = False
html_copy_source = False

PYTHON = "https://docs.python.org/3/library/"
TORNADO = "https://www.tornadoweb.org/en/stable/"


def locate(name: str) -> tuple[str, str] | None:
    """The module and the rest of a dotted name that can be imported, which is how we know that it is there."""
    module, names = name, []
    while module:
        try:
            found: Any = importlib.import_module(module)
            for each in names:
                found = inspect.getattr_static(found, each)
        except (ImportError, AttributeError):
            module, _, last = module.rpartition(".")
            names.insert(0, last)
        else:
            return module, ".".join(names)
    return None


def page_of(module: str, name: str) -> str | None:
    """The address of a thing's own documentation, which is Python's or Tornado's."""
    top, _, rest = module.partition(".")
    if top == "tornado":
        return f"{TORNADO}{rest}.html#{module}.{name}"
    if module == "builtins":
        kind = getattr(importlib.import_module(module), name.partition(".")[0])
        raised = isinstance(kind, type) and issubclass(kind, BaseException)
        return f"{PYTHON}{'exceptions' if raised else 'stdtypes'}.html#{name}"
    return f"{PYTHON}{module}.html#{module}.{name}" if top in sys.stdlib_module_names else None


def find(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """What a reference stands for that names neither its module nor one of the names beside it.

    That is the one entry that ends so; or something of Python or Tornado; or something private of ours, which stays
    without a link. All else is a mistake, and reported.
    """
    target = node["reftarget"]
    domain = env.get_domain("py")
    entries = [name for name, entry in domain.objects.items() if name.endswith(f".{target}") and not entry.aliased]
    if len(entries) == 1:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", entries[0], node, content)
    found = locate(target) or locate(f"builtins.{target}")
    address = page_of(*found) if found and found[1] else None
    if address:
        return nodes.reference("", "", content, internal=False, refuri=address)
    return content if locate(f"{node.get('py:module')}.{target}") or found else None


def setup(app: Any) -> None:
    app.connect("missing-reference", find)
