"""TCP forwarder: connects each client to another server, and forwards data in both directions.

EOF is forwarded as EOF while the other direction continues; a reset is forwarded as a reset. The next data is read only
after the last was written, so a fast sender is slowed down to the speed of the other side.
"""

import argparse
import asyncio
import contextlib
import logging
import sys

import iostreamsrv

CHUNK = 512 * 1024
"""Most bytes per read, and most bytes held per direction if one side does not read. More bytes mean fewer calls."""


class Proxy(iostreamsrv.TCPServer):
    def __init__(self, host, port):
        super().__init__(allow_half_open=True, read_chunk_size=CHUNK, drain_timeout=2)
        self.to = host, port
        self.tcp_client = iostreamsrv.TCPClient()

    async def handle_stream(self, stream, address):
        try:
            upstream = await self.tcp_client.connect(*self.to, timeout=10)  # else the kernel would try for minutes
        except OSError as error:
            return logging.getLogger("proxy").warning("proxy: turned a client away: %s", error)
        upstream.allow_half_open = True
        upstream.read_chunk_size = CHUNK
        upstream.set_nodelay(True)
        with contextlib.closing(upstream):
            await asyncio.gather(forward(stream, upstream), forward(upstream, stream))


async def forward(source, sink):
    """Forward data, then EOF. If one of the connections is reset, reset the other."""
    try:
        await copy(source, sink)
        await sink.send_eof()
        source.set_close_callback(sink.abort)  # nothing reads it now, but it may still be reset
    except iostreamsrv.StreamClosedError as error:
        for stream in (source, sink):  # after a shutdown of this server, close instead of reset
            (stream.close if error.reason == "shutdown" else stream.abort)()


async def copy(source, sink):
    try:
        while True:
            await sink.write(await source.read_bytes(CHUNK, partial=True))
    except iostreamsrv.StreamClosedError as error:
        if error.reason != "eof":
            raise


def endpoint(text):
    host, _, port = text.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError
    return host.strip("[]"), int(port)


async def main(arguments):
    server = Proxy(*arguments.to)
    server.listen(arguments.port, arguments.host)
    for host, port, *_ in server.addresses:
        print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8889, help="0: a free one; default: %(default)s")
    parser.add_argument("--to", type=endpoint, default="127.0.0.1:8888", help="HOST:PORT; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"proxy: {error}")
