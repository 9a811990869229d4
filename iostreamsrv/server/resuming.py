"""The methods of `TCPServer` for clients that go on in another process."""

from collections.abc import Awaitable
from typing import Any

from ..iostream import IOStream
from .base import ServerBase


class ResumingServer(ServerBase):
    """Has the methods of `TCPServer` that hand clients over, and take them; see there."""

    def handle_handover(self, stream: IOStream) -> Any:
        """What to remember of a client that another process goes on serving: may be overridden, by a plain function,
        together with :meth:`handle_resume`. ::

            class Counter(TCPServer):
                async def handle_stream(self, stream, address):
                    await self.handle_resume(stream, address, 0)

                def handle_handover(self, stream):
                    return stream.data["count"]

                async def handle_resume(self, stream, address, state):
                    stream.data["count"] = state
                    while True:
                        await stream.read_until(b"\\n")
                        stream.data["count"] += 1
                        await stream.write(b"%d\\n" % stream.data["count"])

        A reload under ``iostreamsrv serve`` then moves clients to the new worker, instead of leaving them with the old
        one: each when its handler waits in a read and no output is queued. In the old worker that read raises
        `StreamClosedError`, and :meth:`handle_close` is called, both with the reason ``detached``. What was received
        and not read, ``stream.data`` and the counters go with the client. Groups do not: join them again.

        A client that can't go is served where it is: one under TLS, whose keys stay in the process; one whose state or
        ``data`` can't be pickled, or that the new worker can't unpickle (an error in the log says so).

        :param stream: the client; it is open.
        :returns: anything that can be pickled; NotImplemented to keep this client here.
        """
        return NotImplemented

    def handle_resume(self, stream: IOStream, address: Any, state: Any) -> Awaitable[None] | None:
        """Serve a client that another process has handed over, as :meth:`handle_stream` serves a new one.

        :param stream: the client.
        :param address: its address.
        :param state: what `handle_handover` has returned there.
        """
        raise NotImplementedError
