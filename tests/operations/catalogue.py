"""All rows, in the order of the docs."""

from . import deaths, reloads, sharing
from .rows import Row

ROWS: tuple[Row, ...] = (*reloads.ROWS, *deaths.ROWS, *sharing.ROWS)
