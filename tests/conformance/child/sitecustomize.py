"""The swap, in child processes: Python imports this module when it starts with this folder on its PYTHONPATH."""

import iostreamsrv
from tests.conformance import swap


class TCPServer(iostreamsrv.TCPServer):
    """The servers in those programs have no handler, for no client ever comes. Ours refuses to listen without one."""

    def handle_stream(self, _stream: object, _address: object) -> None:
        raise AssertionError("nobody was to connect")


swap.swap(TCPServer=TCPServer)
swap.watch_child()
