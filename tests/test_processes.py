"""A server in several processes."""

import os
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 20.0

TWO_WORKERS = """
import os
import iostreamsrv

class WhoAreYou(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.read_until(b"?")
        await stream.write(str(os.getpid()).encode())

server = WhoAreYou()
server.bind(0, "127.0.0.1")
print(server.addresses[0][1], flush=True)
server.start(2)
iostreamsrv.run(server)
"""


def ask(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"?")
        return int(client.makefile("rb").read())


def test_two_workers_share_the_listener_and_both_get_clients() -> None:
    command = [sys.executable, "-c", TWO_WORKERS]
    # In a session of its own, because ending the first process leaves the workers to themselves.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        try:
            assert first.stdout is not None
            port = int(first.stdout.readline())
            workers: set[int] = set()
            end = time.monotonic() + PATIENCE
            while len(workers) < 2 and time.monotonic() < end:
                workers.add(ask(port))
            assert len(workers) == 2
            assert first.pid not in workers
        finally:
            os.killpg(first.pid, signal.SIGTERM)
