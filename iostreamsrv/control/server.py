"""The control socket of a service, for a process that has a selector instead of an event loop.

Nothing here waits. Each client has one request at a time: the next one is read only when the answer before it has left,
so a client that sends much, or does not read, has what it sends kept in its own kernel buffer.
"""

import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

from ..net import unixlistener
from ..runtime.logs import general
from .protocol import INTERNAL, LONGEST_ANSWER, REFUSED, ControlError, Id, Request, Requests, answer_line
from .protocol import InvalidRequestError as Invalid

MOST_CLIENTS = 16
"""Clients at a time. One more takes the place of the one that has waited longest without a request."""

BACKLOG = 128
CHUNK = 1 << 16
MODE = 0o600

Answer = Callable[[Any], None]
"""Takes the answer to a request, once: a result that JSON can have, or a `ControlError`."""

Act = Callable[[Request, Answer], None]
"""Acts on a request, and answers at once or later. A `ControlError` that it raises is the answer, too."""


class ControlServer:
    """Listens on a Unix socket, which only its own user may use.

    :param selector: calls what is registered with it: ``key.data()``.
    :param path: the socket's file. What a dead process has left there is replaced. None: there is no socket.
    :param act: is called with each request.
    """

    def __init__(self, selector: selectors.BaseSelector, path: str | None, act: Act) -> None:
        self._selector = selector
        self._path = path
        self._act = act
        self._listener: socket.socket | None = None
        self._accepts = False
        self._clients: dict[Client, None] = {}  # the one that was active last is the last one

    @property
    def is_listening(self) -> bool:
        """Whether clients can connect."""
        return self._listener is not None

    def listen(self) -> None:
        """Begin to listen, if there is a path. If that is not possible, the log has one line about it."""
        if self._path is None:
            return
        before = os.umask(0o777 & ~MODE)
        try:
            self._listener = unixlistener.bind(self._path, MODE, BACKLOG)
        except (OSError, ValueError) as error:
            general.warning("no control socket: %s: %s", self._path, getattr(error, "strerror", None) or error)
            return
        finally:
            os.umask(before)
        self.resume()

    def close_listener(self) -> None:
        """Stop listening, and remove the file. The clients stay."""
        self._pause()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Stop listening, and close all clients."""
        self.close_listener()
        for client in list(self._clients):
            client.close()

    def resume(self) -> None:
        """Accept again, if there was no descriptor left before."""
        if self._listener is not None and not self._accepts:
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)
            self._accepts = True

    def _pause(self) -> None:
        if self._listener is not None and self._accepts:
            self._selector.unregister(self._listener)
            self._accepts = False

    def _on_connect(self) -> None:
        if self._listener is None:
            return
        try:
            end, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # no descriptor is left; resume() tries again
            self._pause()
            return
        if len(self._clients) >= MOST_CLIENTS:
            self._make_room()
        client = Client(end, self._selector, self._act, self._touch, self._forget)
        if len(self._clients) > MOST_CLIENTS:
            client.refuse(f"{MOST_CLIENTS} clients wait for their answers")

    def _make_room(self) -> None:
        idle = next((client for client in self._clients if not client.is_waiting), None)
        if idle is not None:
            idle.close()

    def _touch(self, client: "Client") -> None:
        self._clients.pop(client, None)
        self._clients[client] = None

    def _forget(self, client: "Client") -> None:
        self._clients.pop(client, None)


class Client:
    """One client, from its connect to its end.

    :param touch: called when it is active.
    :param forget: called when it is closed.
    """

    def __init__(
        self,
        end: socket.socket,
        selector: selectors.BaseSelector,
        act: Act,
        touch: Callable[["Client"], None],
        forget: Callable[["Client"], None],
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._selector = selector
        self._act = act
        self._touch = touch
        self._forget = forget
        self._requests = Requests()
        self._output = bytearray()
        self._asked = 0  # requests so far: an answer that comes twice is not for the next one
        self._got_all = False  # it sends no more
        self._events = 0
        self.is_waiting = False
        """Whether it waits for an answer."""
        touch(self)
        self._watch()

    def refuse(self, why: str) -> None:
        """Close it, with an error for whatever it asks."""
        self._got_all = True
        self._output += answer_line(None, ControlError(REFUSED, why))
        self._go_on()

    def close(self) -> None:
        """Close it. An answer that comes later is dropped."""
        if self._end.fileno() >= 0:
            self._watch_for(0)
            self._end.close()
            self._forget(self)

    # ---- what happens

    def _on_ready(self) -> None:
        """It has sent something, or takes more, or was next in turn."""
        if self._end.fileno() < 0:  # closed since the selector has found this
            return
        if self._events & selectors.EVENT_READ:
            self._receive()
        self._go_on()

    def _receive(self) -> None:
        try:
            data = self._end.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._touch(self)
            self._requests.feed(data)
        else:
            self._got_all = True

    def _go_on(self) -> None:
        """Send; then act on one request, if the answer before it has left."""
        self._send()
        if not self._output and not self.is_waiting and not self._requests.is_waiting:
            self._take()
            self._send()
        self._watch()

    def _take(self) -> None:
        request_id: Id = None
        try:
            request = self._requests.take()
            if request is None:
                return
            request_id = request.id
            self.is_waiting = True
            self._asked += 1
            self._act(request, self._answer_to(self._asked, request.id))
        except Invalid as error:
            self._put(error.id, error)
        except ControlError as error:
            self._put(request_id, error)
        except Exception:  # the service must go on
            general.exception("a request on the control socket has failed")
            self._put(request_id, ControlError(INTERNAL, "a fault in the service, which is in its log"))

    def _answer_to(self, asked: int, request_id: Id) -> Answer:
        def answer(result: Any) -> None:
            if self.is_waiting and asked == self._asked and self._end.fileno() >= 0:
                self._put(request_id, result)
                self._send()
                self._watch()

        return answer

    def _put(self, request_id: Id, result: Any) -> None:
        self.is_waiting = False
        line = answer_line(request_id, result)
        if len(line) > LONGEST_ANSWER:
            line = answer_line(request_id, ControlError(REFUSED, f"the answer is longer than {LONGEST_ANSWER} bytes"))
        self._output += line

    def _send(self) -> None:
        if self._output and self._end.fileno() >= 0:
            try:
                sent = self._end.send(self._output)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            del self._output[:sent]

    # ---- what it waits for

    def _watch(self) -> None:
        if self._end.fileno() < 0:
            return
        if self._output:
            self._watch_for(selectors.EVENT_WRITE)
        elif self.is_waiting:  # of one that waits the end is seen when it is answered
            self._watch_for(0)
        elif not self._requests.is_waiting:  # at the next turn
            self._watch_for(selectors.EVENT_WRITE)
        elif self._got_all:
            self.close()
        else:
            self._watch_for(selectors.EVENT_READ)

    def _watch_for(self, events: int) -> None:
        if events == self._events:
            return
        if not events:
            self._selector.unregister(self._end)
        elif not self._events:
            self._selector.register(self._end, events, self._on_ready)
        else:
            self._selector.modify(self._end, events, self._on_ready)
        self._events = events
