"""What a buffer does with ``bytes``. ``search.pyx`` is the compiled twin."""

find = bytes.find
"""Where ``needle`` begins in ``data``, or -1: ``find(data, needle, begin=0)``."""
