"""All probes, in the order of the docs."""

from . import ends, lines, overload, secured, slow
from .probes import Probe

PROBES: tuple[Probe, ...] = (*overload.PROBES, *slow.PROBES, *ends.PROBES, *lines.PROBES, *secured.PROBES)
