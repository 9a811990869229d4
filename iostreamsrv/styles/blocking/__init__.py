"""A server for threads, which get objects that look like sockets and wait with real timeouts.

The loop runs in a separate thread, or is run by the program's main loop with `BlockingServer.process`. There are three
ways to use the server:

- ``accept()`` returns a `Handle` for each client, which any thread may use. Received data comes from the loop's
  thread; sent data goes there without waiting for it.
- ``handle(sock, address)``, if overridden, is called in a pool of threads, as by `socketserver`. Without TLS and
  without a PROXY header it gets a real, blocking socket, and no data goes through the loop's thread.
- ``notify(handle, notice)``, overridden or passed as a keyword, is called when a client connects, sends or disconnects.
"""

from .handle import Handle, SendTimeoutError
from .notifier import Notice
from .server import BlockingServer

__all__ = ["BlockingServer", "Handle", "Notice", "SendTimeoutError"]
