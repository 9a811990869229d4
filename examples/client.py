"""Line client, similar to nc: sends the lines of stdin, and prints what the server replies.

At EOF on stdin it half-closes the connection and prints the remaining replies.
"""

import asyncio
import os
import sys
import threading
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import iostreamsrv


def send_stdin(stream, loop):
    """Runs in a thread, because reading stdin blocks. Not with sys.stdin, for which the exit would wait."""

    async def send(data):
        await (stream.write(data) if data else stream.send_eof())

    data = None
    while data != b"":
        data = os.read(sys.stdin.fileno(), 65536)  # of a terminal, a line
        try:
            asyncio.run_coroutine_threadsafe(send(data), loop).result()
        except Exception:
            return  # the connection or the program has ended; the main thread reports why


async def print_answers(stream):
    try:
        while True:
            sys.stdout.buffer.write(await stream.read_bytes(65536, partial=True))
            sys.stdout.flush()
    except iostreamsrv.StreamClosedError as error:
        if error.reason != "eof":
            raise


async def main(arguments):
    client = iostreamsrv.TCPClient()
    stream = await client.connect(arguments.host, arguments.port, timeout=arguments.timeout)
    threading.Thread(target=send_stdin, args=(stream, asyncio.get_running_loop()), daemon=True).start()
    await print_answers(stream)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="a name or an address; default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to connect; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (OSError, iostreamsrv.OptionError) as error:
        sys.exit(f"client: {error}")
