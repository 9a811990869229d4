"""The open streams of a server, and named groups of them: count, find, broadcast."""

import asyncio
from asyncio import Future
from collections.abc import Collection, Iterable, Iterator
from contextvars import Context
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakValueDictionary

from ..errors import CloseReason, OptionError, StreamClosedError
from ..iostream import IOStream
from ..runtime.cleanup import may_end_with_loop
from ..streams.served import loop_of
from ..streams.writing import write_to_each

Slow = Literal["drop", "kick", "wait"]
"""What happens to a stream whose queue has no room for a broadcast: it misses the message, it is closed, or the
broadcast waits for it."""


class Streams(Collection[IOStream]):
    """The open streams of a server, ``server.streams``. ::

        for stream in server.streams:
            if stream.idle_time > 3600:
                stream.close()

    It is a collection. An iteration covers the streams that are open when it begins.
    """

    def __init__(self, streams: dict[int, IOStream]) -> None:
        self._streams = streams

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[IOStream]:
        return iter(list(self._streams.values()))

    def __contains__(self, stream: object) -> bool:
        return isinstance(stream, IOStream) and self._streams.get(stream.id) is stream

    def get(self, id: int) -> IOStream | None:
        """The open stream with this ``id``, or None."""
        return self._streams.get(id)


class Group(Streams):
    """A named set of a server's streams; made by `TCPServer.group`. ::

        room = server.group("lobby")
        room.join(stream)
        room.broadcast(b"somebody came in\\n", exclude=stream)

    A stream may be in several groups, and leaves them all when it is closed. A group without streams costs nothing: it
    is deleted, and created again when it is next used.

    :ivar name: the name of the group.
    """

    def __init__(self, name: object, groups: "Groups") -> None:
        super().__init__({})
        self.name = name
        self._groups = groups

    def __repr__(self) -> str:
        return f"<Group {self.name!r}: {len(self)} streams>"

    def join(self, stream: IOStream) -> None:
        """Add ``stream``; do nothing if it is in the group already.

        :raises StreamClosedError: the stream is closed.
        :raises ValueError: it is not a stream of this server.
        """
        self._groups.join(self, stream)

    def leave(self, stream: IOStream) -> None:
        """Remove ``stream``; do nothing if it is not in the group."""
        self._groups.leave(self, stream)

    def broadcast(
        self, data: bytes | bytearray | memoryview, exclude: IOStream | Iterable[IOStream] = (), slow: Slow = "drop"
    ) -> "Future[int]":
        """Write ``data`` to each stream of the group that has a handler; see `TCPServer.broadcast`."""
        return self._groups.broadcast(self, data, exclude, slow)


class Groups:
    """All groups of a server, and broadcasts to them.

    :param streams: the open streams of the server.
    :param armed: the ids of those whose handler is still to be called; may change.
    """

    def __init__(self, streams: dict[int, IOStream], armed: Collection[int]) -> None:
        self._streams = streams
        self._armed = armed
        self._waiting: dict[int, asyncio.Task[bool]] = {}  # the last broadcast that waits for a stream
        # A group exists as long as there is a reference to it, which its streams have by _of.
        self._by_name: WeakValueDictionary[object, Group] = WeakValueDictionary()
        self._of: dict[int, set[Group]] = {}

    def get(self, name: object) -> Group:
        """The group with this name; created if there is none."""
        group = self._by_name.get(name)
        if group is None:
            group = self._by_name[name] = Group(name, self)
        return group

    def join(self, group: Group, stream: IOStream) -> None:
        """See `Group.join`."""
        if stream.closed():
            raise StreamClosedError(stream.error, "write", stream.close_reason or CloseReason.LOCAL, stream.id)
        if self._streams.get(stream.id) is not stream:
            raise ValueError(f"{stream} is not a stream of this server")
        group._streams[stream.id] = stream
        self._of.setdefault(stream.id, set()).add(group)

    def leave(self, group: Group, stream: IOStream) -> None:
        """See `Group.leave`."""
        if group._streams.pop(stream.id, None) is not None:
            memberships = self._of[stream.id]
            memberships.discard(group)
            if not memberships:
                del self._of[stream.id]

    def replace(self, stream: IOStream) -> None:
        """Replace the stream that had the ``id`` of ``stream``."""
        for group in self._of.get(stream.id, ()):
            group._streams[stream.id] = stream

    def forget(self, stream: IOStream) -> Collection[Group]:
        """Remove a closed stream from all groups; return those that it was in."""
        groups = self._of.pop(stream.id, ())
        for group in groups:
            group._streams.pop(stream.id, None)
        return groups

    # ---- broadcasts

    def broadcast(
        self,
        streams: Iterable[IOStream],
        data: bytes | bytearray | memoryview,
        exclude: IOStream | Iterable[IOStream],
        slow: Slow,
    ) -> "Future[int]":
        """Write ``data`` to each of ``streams``; they share one copy. See `TCPServer.broadcast`."""
        if slow not in get_args(Slow):
            raise OptionError("slow", slow, "must be 'drop', 'kick' or 'wait'")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"can only broadcast bytes, bytearray or memoryview, not {type(data).__name__}")
        data = bytes(data)  # bytes are not copied
        left_out = {exclude.id} if isinstance(exclude, IOStream) else {stream.id for stream in exclude}
        left_out.update(self._armed)
        streams = list(streams)  # a write that fails closes a stream
        full: list[IOStream] = []
        if self._waiting:  # for an earlier message, which this one must not overtake
            full = [stream for stream in streams if stream.id in self._waiting and stream.id not in left_out]
            left_out.update(self._waiting)
        taken = write_to_each(streams, data, left_out, full)
        loop = asyncio.get_running_loop()
        if full and slow == "wait":
            later = [self._write_later(stream, data) for stream in full]
            task = loop.create_task(_sum(taken, later), context=Context())
            may_end_with_loop(task)
            return task
        if slow == "kick":
            for stream in full:  # after all others have the data: a callback of these closes may write to them
                stream.kick("does not read what is broadcast")
        done: Future[int] = loop.create_future()
        done.set_result(taken)
        return done

    def _write_later(self, stream: IOStream, data: bytes) -> "asyncio.Task[bool]":
        task = loop_of(stream).create_task(_write_later(self._waiting.get(stream.id), stream, data), context=Context())
        may_end_with_loop(task)
        self._waiting[stream.id] = task
        task.add_done_callback(partial(self._written, stream.id), context=Context())
        return task

    def _written(self, id: int, task: "asyncio.Task[bool]") -> None:
        if self._waiting[id] is task:
            del self._waiting[id]


async def _write_later(previous: "asyncio.Task[bool] | None", stream: IOStream, data: bytes) -> bool:
    """Write as soon as ``previous`` is done and there is room; return False if the stream is closed before."""
    if previous is not None:
        await asyncio.wait([previous])
    limit: Any = stream.max_write_buffer_size
    while True:
        try:
            # Wait for at least one byte to be sent: for many small writes the queue counts more than their bytes.
            await stream.drain(max(0, min(limit - len(data), stream.queued - 1)))
        except StreamClosedError:
            return False
        full: list[IOStream] = []
        taken = write_to_each([stream], data, (), full)
        if not full:  # otherwise another write has taken the room
            return taken > 0


async def _sum(taken: int, later: "list[asyncio.Task[bool]]") -> int:
    return taken + sum(await asyncio.gather(*later))
