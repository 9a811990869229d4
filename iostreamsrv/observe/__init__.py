"""What an operator sees of a server: the access log; metrics, which need an extra, are in ``observe.metrics``."""

from .accesslog import AccessLog

__all__ = ["AccessLog"]
