"""The methods of `TCPServer` that listen: bind, accept, suspend, stop, retire."""

import socket
import ssl
from collections.abc import Iterable
from typing import Any, Literal

from ..certs.certificates import Certificates
from ..errors import ListenError, OptionError
from ..net.bind import BACKLOG, bind_sockets
from ..runtime.attributes import overridable
from ..runtime.checks import is_int, is_number
from .base import ServerBase, core_of
from .forking import fork_workers

SSLOptions = dict[str, Any] | ssl.SSLContext | Certificates | Literal[False] | None


class ListeningServer(ServerBase):
    """Has the methods of `TCPServer` that listen; see there."""

    def listen(
        self,
        port: int | str,
        address: str | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        backlog: int = BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
        ssl_options: SSLOptions = None,
    ) -> None:
        """Bind ``port`` and accept on it; may be called again for more ports and addresses. ::

            server.listen(8888, "127.0.0.1")
            print(server.addresses)

        Parameters: `bind_sockets`, and:

        :param ssl_options: TLS options for these clients; None for those of the server, False for plain connections.
        :raises OptionError: an argument is invalid.
        :raises ListenError: the address does not resolve, binding fails, or the kernel refuses a socket option. Nothing
            is left bound.
        :raises NotImplementedError: there is no ``handle_stream``.
        """
        core = core_of(self)
        core.need_handler()
        setup = core.listeners.setup_for(ssl_options, core.options)
        sockets = bind_sockets(port, address, family, backlog, flags, reuse_port)
        core.accept_on_bound([(each, setup) for each in sockets])

    def bind(
        self,
        port: int | str,
        address: str | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        backlog: int = BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
        ssl_options: SSLOptions = None,
    ) -> None:
        """Bind ``port``; clients wait in the backlog until :meth:`start`. After it, the same as :meth:`listen`. ::

            server.bind(8888)
            server.start()

        Parameters and errors are those of :meth:`listen`.
        """
        core = core_of(self)
        core.need_handler()
        setup = core.listeners.setup_for(ssl_options, core.options)
        sockets = bind_sockets(port, address, family, backlog, flags, reuse_port)
        if core.started:
            core.accept_on_bound([(each, setup) for each in sockets])
        else:
            core.listeners.hold(sockets, setup)

    def start(self, num_processes: int | None = 1, max_restarts: int | None = None) -> None:
        """Accept on all that was bound. ::

            server.bind(8888)
            server.start(4)  # four processes go on from here
            iostreamsrv.run(server)

        :param num_processes: 1 for this process; more to fork that many workers, which share the listeners; None or 0
            for one per core. The call returns in each worker. The first process stays in it: it replaces workers that
            die, passes on signals, and exits when all have ended; if it dies, they finish their clients and end. They
            share clients evenly, and ``max_connections``, where it is set, is for all of them. Not on Windows.
        :param max_restarts: how many dead workers are replaced in all; None for Tornado's 100.
        :raises RuntimeError: the server was started already; or it would fork while a loop exists (the workers would
            share its epoll), or outside the main thread.
        :raises OptionError: a number is invalid.
        :raises ListenError: the kernel refuses a socket option. Nothing is left bound.
        """
        core = core_of(self)
        core.need_handler()
        if core.started:
            raise RuntimeError("the server has been started already: call stop() first")
        if num_processes is not None and not is_int(num_processes, 0):
            raise OptionError("num_processes", num_processes, "must be 1 or more, or None for one for each core")
        if max_restarts is not None and not is_int(max_restarts, 0):
            raise OptionError("max_restarts", max_restarts, "must be 0 or more, or None for 100")
        if num_processes != 1:
            core.join(fork_workers(num_processes, max_restarts, core.options.drain_timeout, self.stop))
        core.started = True
        try:
            core.accept_on_bound(core.listeners.take_held())
        except ListenError:
            core.started = False
            raise

    def add_sockets(self, sockets: Iterable[socket.socket], ssl_options: SSLOptions = None) -> None:
        """Accept on these sockets; the server owns them, and :meth:`stop` closes them. ::

            server.add_sockets([*bind_sockets(8888), bind_unix_socket("/run/echo.sock")])

        :param sockets: sockets that are listening, or bound: then they begin to listen, with the default backlog.
        :param ssl_options: TLS options for their clients; None for those of the server, False for plain connections.
        :raises OptionError: a socket is closed, is neither listening nor bound, or was added before; then none of them
            is added.
        :raises ListenError: the kernel refuses a socket option, or to listen; then, too, none is added, and all stay
            open.
        """
        core = core_of(self)
        setup = core.listeners.setup_for(ssl_options, core.options)
        core.accept_on([(listener, setup) for listener in sockets])

    def add_socket(self, socket: socket.socket, ssl_options: SSLOptions = None) -> None:
        """:meth:`add_sockets` for one socket."""
        self.add_sockets([socket], ssl_options)

    def suspend(self) -> None:
        """Accept no client until :meth:`resume`: clients wait in the backlog, open streams stay open."""
        core_of(self).listeners.suspend()

    def resume(self) -> None:
        """Accept again after :meth:`suspend`."""
        core_of(self).listeners.resume()

    @overridable
    def suspended(self) -> bool:
        """Whether :meth:`suspend` was called without a :meth:`resume` since."""
        return core_of(self).listeners.suspended

    def stop(self) -> None:
        """Stop listening: new clients are refused, open streams stay open. The server may listen again afterwards."""
        core_of(self).stop()

    async def retire(self, timeout: float | None = 3600.0, rate: float = 0.1) -> None:
        """Leave new clients to other processes, and serve those that are connected until they leave. ::

            await server.retire(timeout=600)  # another process listens on the same socket

        This process stops listening. What waits in the accept backlog is left there for the other processes that have
        the same socket: a child, a parent, a process that has inherited it. (Without one these clients are lost; so are
        those of a socket that was bound with ``reuse_port``, which has a backlog of its own.) Open streams go on as
        before, `draining` stays False.

        After ``timeout`` seconds the clients that are left are closed, reason ``shutdown``, but not all at once: they
        connect again somewhere else. Those without a request in progress come first. The others are closed gracefully
        when their handler has answered and reads again; a handler that never does so keeps its client.

        It returns when all streams are closed and all handlers have ended; `serve_forever` returns then, too. A second
        call sets a new timeout, from then on, and a new rate. A :meth:`shutdown` meanwhile takes over. If cancelled,
        the streams stay open.

        :param timeout: seconds, 0 to begin at once; None to close no client.
        :param rate: which share of those clients may be closed in each second, above 0, up to 1 for all at once.
        :raises OptionError: an argument is invalid.
        """
        if timeout is not None and not (is_number(timeout) and timeout >= 0):
            raise OptionError("timeout", timeout, "must be a number of seconds, 0 or more, or None")
        if not (is_number(rate) and 0 < rate <= 1):
            raise OptionError("rate", rate, "must be a number above 0 and up to 1")
        await core_of(self).retire(timeout, rate)

    @overridable
    def addresses(self) -> list[Any]:
        """The bound addresses, as `socket.socket.getsockname` gives them: with the real port in place of port 0."""
        return core_of(self).listeners.addresses
