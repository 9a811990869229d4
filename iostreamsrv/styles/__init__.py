"""Other ways to write a server, each an adapter over the public API of `TCPServer` and `IOStream`.

`CallbackServer` calls functions when something happens, `BlockingServer` gives threads objects that look like sockets,
`QueueServer` has a send queue for each client.
"""

from .blocking import BlockingServer, Handle, Notice, SendTimeoutError
from .callbacks import CallbackServer
from .queues import QueueServer, SendQueue

__all__ = [
    "BlockingServer",
    "CallbackServer",
    "Handle",
    "Notice",
    "QueueServer",
    "SendQueue",
    "SendTimeoutError",
]
