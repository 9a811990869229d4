"""The search for a delimiter. ``search.pyx`` is the compiled twin."""

find = bytes.find
"""Where ``needle`` begins in ``data``, or -1: ``find(data, needle, begin=0)``. ``data`` is ``bytes``."""
