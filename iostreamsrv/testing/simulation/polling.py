"""What waits for simulated descriptors: the loop's selector, and the epoll that the hub makes.

A descriptor calls its watchers when something about it has changed. A watcher keeps those that may be ready, and asks
each of these for its events when it is itself asked. So a turn costs as much as there are events, and not as there are
connections.
"""

import errno
import os
import selectors
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Protocol

READ, WRITE = 0x001, 0x004  # EPOLLIN, EPOLLOUT
ERROR, HANGUP, PEER_ENDED = 0x008, 0x010, 0x2000  # EPOLLERR, EPOLLHUP, EPOLLRDHUP
EDGE = 1 << 31  # EPOLLET
ALWAYS = ERROR | HANGUP
TO_READ = READ | PEER_ENDED | ALWAYS
ALL = TO_READ | WRITE

SELECT_READ, SELECT_WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def fail(number: int) -> NoReturn:
    """Raise what a system call raises that fails with this errno."""
    raise OSError(number, os.strerror(number))


class Watcher(Protocol):
    """What hears of changes of a descriptor."""

    def woken(self, file: "File", events: int) -> None:
        """Something has happened; ``events`` are those that may be new."""

    def quiet(self, file: "File") -> None:
        """Nothing about it is ready any more."""

    def forget(self, file: "File") -> None:
        """The descriptor is closed."""


class File:
    """What a descriptor stands for.

    :ivar number: the descriptor; -1 if there is none.
    """

    number = -1

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self.number

    def events(self, wanted: int = ALL) -> int:
        """What epoll would report now; of what is not ``wanted`` it may know nothing."""
        raise NotImplementedError

    def wake(self, events: int) -> None:
        """Tell the watchers."""
        for watcher in self.watchers:
            watcher.woken(self, events)

    def unwatch(self) -> None:
        """Tell the watchers that the descriptor is closed."""
        for watcher in self.watchers:
            watcher.forget(self)
        self.watchers.clear()


class Descriptors(Protocol):
    """What the watchers need of the network."""

    def file(self, number: int) -> File:
        """What a descriptor stands for.

        :raises OSError: nothing.
        """

    def release(self, file: File) -> None:
        """Close the descriptor of a file."""

    def shuffle(self, ready: list[Any]) -> None:
        """Bring what is ready into a drawn order."""


class Epoll(File):
    """In place of ``select.epoll``."""

    def __init__(self, descriptors: Descriptors) -> None:
        super().__init__()
        self._descriptors = descriptors
        self._files: dict[File, int] = {}
        self._ready: dict[File, None] = {}
        self.closed = False

    def __enter__(self) -> "Epoll":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def register(self, number: int, events: int) -> None:
        """See ``select.epoll``."""
        file = self._descriptors.file(number)
        if file in self._files:
            fail(errno.EEXIST)
        self._files[file] = events = events | ALWAYS
        file.watchers.append(self)
        self._look(file, events)

    def modify(self, number: int, events: int) -> None:
        """See ``select.epoll``."""
        file = self._registered(number)
        self._files[file] = events = events | ALWAYS
        self._look(file, events)

    def unregister(self, number: int) -> None:
        """See ``select.epoll``."""
        file = self._registered(number)
        self.forget(file)
        file.watchers.remove(self)

    def _registered(self, number: int) -> File:
        file = self._descriptors.file(number)
        if file not in self._files:
            fail(errno.ENOENT)
        return file

    def _look(self, file: File, events: int) -> None:
        if file.events(events) & events:
            self.woken(file, events)

    def woken(self, file: File, events: int) -> None:
        """See `Watcher`."""
        if events & self._files[file]:
            if not self._ready:
                for watcher in self.watchers:
                    watcher.woken(self, READ)
            self._ready[file] = None

    def quiet(self, file: File) -> None:
        """See `Watcher`."""
        self._ready.pop(file, None)

    def forget(self, file: File) -> None:
        """See `Watcher`."""
        del self._files[file]
        self._ready.pop(file, None)

    def poll(self, timeout: float = -1, maxevents: int = -1) -> list[tuple[int, int]]:
        """See ``select.epoll``; it never waits."""
        watched, ready = self._files, self._ready
        found = []
        files = list(ready)
        ready.clear()
        if len(files) > 1:
            self._descriptors.shuffle(files)
        for file in files:
            wanted = watched[file]
            if events := file.events(wanted) & wanted:
                found.append((file.number, events))
                if not wanted & EDGE:
                    ready[file] = None
        if not ready:
            for watcher in self.watchers:
                watcher.quiet(self)
        return found

    def events(self, wanted: int = ALL) -> int:
        return READ if self._ready else 0

    def close(self) -> None:
        """See ``select.epoll``."""
        if not self.closed:
            self.closed = True
            for file in self._files:
                file.watchers.remove(self)
            self._files.clear()
            self._ready.clear()
            self.unwatch()
            self._descriptors.release(self)


class Selector(selectors.BaseSelector):
    """The selector of a simulated loop.

    :ivar maybe: what may be ready.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._map = Keys(self._keys)
        self._watched: dict[File, selectors.SelectorKey] = {}
        self._by_number: dict[int, File] = {}
        self.maybe: dict[File, None] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = _number(fileobj)
        if number in self._keys:
            raise KeyError(f"{fileobj!r} (FD {number}) is already registered")
        file = self._descriptors.file(number)
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        self._watched[file], self._by_number[number] = key, file
        self.maybe[file] = None
        file.watchers.append(self)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_number(fileobj))
        file = self._by_number.get(key.fd)
        if file is not None:
            file.watchers.remove(self)
            self.forget(file)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = _number(fileobj)
        old = self._keys[number]
        file = self._descriptors.file(number)
        if file not in self._watched:
            fail(errno.ENOENT)
        key = self._keys[number] = self._watched[file] = selectors.SelectorKey(old.fileobj, number, events, data)
        self.maybe[file] = None
        return key

    def woken(self, file: File, events: int) -> None:
        """See `Watcher`."""
        self.maybe[file] = None

    def quiet(self, file: File) -> None:
        """See `Watcher`."""
        self.maybe.pop(file, None)

    def forget(self, file: File) -> None:
        """See `Watcher`. The loop may unregister the number later."""
        del self._by_number[self._watched.pop(file).fd]
        self.maybe.pop(file, None)

    def select(self, timeout: float | None = 0) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, in a drawn order. It never waits."""
        watched = self._watched
        found, quiet = [], None
        for file in self.maybe:
            key = watched[file]
            wanted = key.events
            if wanted == SELECT_READ:  # nearly always
                seen = SELECT_READ if file.events(TO_READ) & TO_READ else 0
            else:
                events = file.events()
                seen = wanted & SELECT_READ if events & ~WRITE else 0
                if events & ~(READ | PEER_ENDED):
                    seen |= wanted & SELECT_WRITE
            if seen:
                found.append((key, seen))
            else:
                quiet = [*(quiet or ()), file]
        if quiet:
            for file in quiet:
                del self.maybe[file]
        if len(found) > 1:
            self._descriptors.shuffle(found)
        return found

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._map

    def close(self) -> None:
        for file in self._watched:
            file.watchers.remove(self)
        self._keys.clear()
        self._watched.clear()
        self._by_number.clear()
        self.maybe.clear()


class Keys(Mapping[Any, selectors.SelectorKey]):
    """The keys of a selector, by descriptors and by what has one."""

    def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_number(fileobj)]


def _number(fileobj: Any) -> int:
    number: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    return number
