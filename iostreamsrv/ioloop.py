"""Tornado's `IOLoop`, which wraps any asyncio loop (also uvloop's), and :func:`run`."""

import tornado.ioloop
from tornado.ioloop import IOLoop

from .runtime.exports import names_of
from .runtime.running import run

__all__ = ["IOLoop", "run"]

__getattr__, __dir__ = names_of(tornado.ioloop, globals())
