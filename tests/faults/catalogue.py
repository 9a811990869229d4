"""All probes, in the order of the docs."""

from . import overload
from .probes import Probe

PROBES: tuple[Probe, ...] = overload.PROBES
