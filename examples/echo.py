"""Echo server: sends back every line that it receives."""

import argparse
import sys

import iostreamsrv


class EchoServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\n"))


async def main(arguments):
    server = EchoServer()
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
    sys.exit(f"echo: {error}")
