"""Finds packets, <pkt>…</pkt>, in data that arrives in pieces, and replies "got …" to each. Other data is skipped.

Start it in the project's folder:

    iostreamsrv serve examples.packets:server --bind 127.0.0.1:8888 --workers auto
"""

import sys

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


server = CallbackServer(on_data=on_data, on_error=on_error, max_buffer_size=65536, idle_timeout=60)
