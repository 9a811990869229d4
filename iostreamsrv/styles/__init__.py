"""Other ways to write a server, each an adapter over the public names of `TCPServer` and `IOStream`.

`CallbackServer` calls functions for what happens, `BlockingServer` gives threads something that looks like a socket,
`QueueServer` has a queue for each client.
"""

from .blocking import BlockingServer, Notice
from .callbacks import CallbackServer
from .handles import Handle, SendTimeoutError
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
