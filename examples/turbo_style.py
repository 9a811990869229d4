"""Turbo's TCPServer in Python, with the same names of arguments, bind and start. Echoes lines until "quit".

With --cert-file and --key-file it uses TLS.
"""

import argparse
import socket
import sys

import iostreamsrv


class LineServer(iostreamsrv.TCPServer):
    def __init__(self, io_loop=None, ssl_options=None, max_buffer_size=None):
        super().__init__(io_loop=io_loop, ssl_options=ssl_options, max_buffer_size=max_buffer_size)

    async def handle_stream(self, stream, address):
        while (line := await stream.read_until(b"\n")) != b"quit\n":
            await stream.write(line)
        await stream.write(b"good bye\n")  # it arrives: when a handler returns, the stream is closed gracefully


async def main(arguments):
    ssl_options = None
    if arguments.cert_file:
        ssl_options = {"key_file": arguments.key_file, "cert_file": arguments.cert_file}
    server = LineServer(iostreamsrv.IOLoop.current(), ssl_options, 65536)
    server.bind(arguments.port, address=arguments.host, backlog=128, family=socket.AF_INET)
    for host, port in server.addresses:
        print("listening on", f"{host}:{port}", flush=True)
    server.start()
    await server.serve_forever()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--host", default="127.0.0.1", help="IPv4; default: %(default)s")
parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
parser.add_argument("--cert-file", help="the certificate, for TLS")
parser.add_argument("--key-file", help="its key")
try:
    iostreamsrv.run(main(parser.parse_args()))
except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
    sys.exit(f"turbo_style: {error}")
