"""Finds packets, <pkt>…</pkt>, in data that arrives in pieces, and replies "got …" to each. Other data is skipped."""

import argparse
import sys

import iostreamsrv
from iostreamsrv.styles import CallbackServer

BEGIN, END = b"<pkt>", b"</pkt>"


def on_data(stream, data):
    """Consume one packet, or data that belongs to none. What is left is passed again, with new data."""
    skipped = begin_of_packet(data)
    if skipped:
        stream.write(b"skipped %d bytes\n" % skipped)
        return skipped
    end = data.find(END)
    if end < 0:
        return 0  # the packet is incomplete
    stream.write(b"got %s\n" % data[len(BEGIN) : end])
    return end + len(END)


def begin_of_packet(data):
    """The position where a packet begins, or may begin when more data arrives."""
    begin = data.find(BEGIN)
    if begin >= 0:
        return begin
    return next(at for at in range(max(0, len(data) - len(BEGIN)), len(data) + 1) if BEGIN.startswith(data[at:]))


def on_error(stream, error):
    if error.reason == "buffer_full":
        print(f"{stream.remote_address} has sent a packet that is too long", file=sys.stderr)


async def main(arguments):
    server = CallbackServer(on_data=on_data, on_error=on_error, max_buffer_size=65536, idle_timeout=60)
    server.listen(arguments.port, arguments.host)
    for host, port, *_ in server.addresses:
        print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
    await server.serve_forever()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
try:
    iostreamsrv.run(main(parser.parse_args()))
except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
    sys.exit(f"packets: {error}")
