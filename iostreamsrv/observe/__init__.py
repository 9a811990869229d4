"""What an operator sees of a server: the access log."""

from .accesslog import AccessLog

__all__ = ["AccessLog"]
