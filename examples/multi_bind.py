"""One server on several addresses and ports. It tells each client which of them it connected to, then echoes lines.

Two ports on every host: --port, and the one after it. Try --host 127.0.0.1 ::1, or a name with several addresses.
"""

import argparse
import sys

import iostreamsrv


def show(address):
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class DoorServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        await stream.write(f"you came in by {show(stream.local_address)}\n".encode())
        while True:
            await stream.write(await stream.read_until(b"\n"))


async def main(arguments):
    server = DoorServer()
    for host in arguments.host:
        server.listen(arguments.port, host)
        server.listen(arguments.port and arguments.port + 1, host)  # 0 stays 0: any free one, again
    for address in server.addresses:
        print("listening on", show(address), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", nargs="+", default=["127.0.0.1"], help="one or more; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0: free ones; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"multi_bind: {error}")
