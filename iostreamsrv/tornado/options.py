"""The options with which our servers behave as Tornado's do."""

import math

from ..options import ServerOptions

OPTIONS = ServerOptions(
    max_buffer_size=100 << 20,
    max_write_buffer_size=math.inf,  # type: ignore[arg-type]  # any size is accepted
    close_on_return=False,
    max_connections=math.inf,
    write_timeout=None,
    handshake_timeout=None,
    keepalive=False,
    nodelay=False,
    allow_legacy_tls=True,
)
"""The `ServerOptions` of servers that a program makes by Tornado's names: Tornado's limits, and none of our timeouts.

Options that are not given here have their defaults. Their other timeouts and limits are off by default. These two are
on, as they change when bytes are sent and nothing else:

- ``cork``: replies to pipelined requests are sent together.
- ``linger``: it applies where an `HTTPServer` closes a connection, so that the last reply arrives. ``close()`` of other
  streams is Tornado's.
"""

IDLE_CONNECTION_TIMEOUT = 3600.0
"""Seconds in which an HTTP client must send its next request; the default of Tornado's HTTP server."""
