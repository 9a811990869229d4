"""Echo server on a Unix socket: sends a greeting, and sends back every line that it receives.

For programs on the same machine: there is no port, and the mode of the file controls which users may connect.
"""

import argparse
import sys

import iostreamsrv


class EchoServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(b"hello\n")
        while True:
            await stream.write(await stream.read_until(b"\n"))


def octal(text):
    return int(text, 8)


async def main(arguments):
    server = EchoServer()
    server.add_socket(iostreamsrv.bind_unix_socket(arguments.path, arguments.mode))
    for path in server.addresses:
        print("listening on", path, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="echo.sock", help="default: %(default)s")
    parser.add_argument(
        "--mode", type=octal, default="600", help="octal mode of the file; default: %(default)s, only you"
    )
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"unix_socket: {error}")
