"""Echo server in three arguments: where to listen, the port, and a function of the received data."""

import argparse
import signal
import sys

import iostreamsrv
from iostreamsrv.styles import QueueServer


def echo(queue, data):
    queue.put(data)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--host", default="127.0.0.1", help="localhost, public, or an address; default: %(default)s")
parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
arguments = parser.parse_args()
try:
    server = QueueServer(arguments.host, arguments.port, echo)
except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
    sys.exit(f"queue_echo: {error}")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: server.stop())  # until run() installs its handlers
for host, port, *_ in server.addresses:
    print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
server.run()
