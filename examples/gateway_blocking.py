"""Gateway between two networks: devices send lines to one address, and clients of the other one receive them."""

import argparse
import contextlib
import signal
import sys
import threading

import iostreamsrv
from iostreamsrv.styles import BlockingServer, Notice

watchers = set()


def notify(watcher, notice):
    if notice is Notice.CONNECT:
        watchers.add(watcher)
    elif notice is Notice.DISCONNECT:
        watchers.discard(watcher)
    else:
        watcher.recv(4096)  # what a watcher sends is ignored


def report(line):
    for watcher in list(watchers):
        try:
            watcher.sendall(line, timeout=1)
        except OSError:  # it has disconnected, or does not read
            watcher.close()


def serve(device):  # in a separate thread
    with contextlib.suppress(ConnectionError), device, device.makefile("rb") as lines:
        for line in lines:
            report(line)
            device.sendall(b"passed to %d\n" % len(watchers))


def main(arguments):
    with BlockingServer() as devices, BlockingServer(notify=notify) as others:
        for server, host in zip((devices, others), arguments.host, strict=True):
            server.listen(arguments.port, host)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: devices.stop())
        for host, port, *_ in (*devices.addresses, *others.addresses):
            print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
        with contextlib.suppress(ConnectionAbortedError):  # stop() was called
            while True:
                threading.Thread(target=serve, args=[devices.accept()], daemon=True).start()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument(
    "--host", nargs=2, default=["127.0.0.1", "127.0.0.2"], help="address for devices, address for watchers"
)
parser.add_argument("--port", type=int, default=8888, help="0: free ones; default: %(default)s")
try:
    main(parser.parse_args())
except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
    sys.exit(f"gateway_blocking: {error}")
