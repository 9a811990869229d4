"""Run a program that was written for Tornado on this package, without a change to it.

From a shell, together with all Python processes that it starts::

    python -m iostreamsrv.tornado program.py --port=8888
    python -m iostreamsrv.tornado -m package.module

Or in the program, before it defines subclasses of Tornado's classes, for this process only::

    import iostreamsrv.tornado

    iostreamsrv.tornado.install()

Limits and timeouts of servers are Tornado's there, see :data:`OPTIONS`.
"""

from .options import OPTIONS
from .replacements import install

__all__ = ["OPTIONS", "install"]
