"""All probes, in the order of the docs."""

from . import closing, ends, lines, overload, secured, slow
from .probes import Probe

PROBES: tuple[Probe, ...] = (
    *overload.PROBES,
    *slow.PROBES,
    *ends.PROBES,
    *closing.PROBES,
    *lines.PROBES,
    *secured.PROBES,
)
