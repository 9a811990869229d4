"""Measures iostreamsrv beside Tornado, asyncio streams and a raw asyncio Protocol: ``python -m benchmarks --help``."""
