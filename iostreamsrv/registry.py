"""The streams of a server, and groups of them."""

from .server.groups import Group, Slow, Streams

__all__ = ["Group", "Slow", "Streams"]
