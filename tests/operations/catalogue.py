"""All rows, in the order of the docs."""

from . import deaths, handover, reloads, sharing
from .rows import Row

ROWS: tuple[Row, ...] = (*reloads.ROWS, *handover.ROWS, *deaths.ROWS, *sharing.ROWS)
