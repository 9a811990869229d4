"""Echo server over TLS: sends back every line that it receives, and logs the address of each client.

Without --certfile it creates a self-signed certificate, for tests only. SIGHUP reloads the files; existing connections
continue. Behind a proxy, set --proxy-from to the proxy's network: then the addresses of the real clients are logged.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile

import iostreamsrv
from iostreamsrv.certificates import self_signed

log = logging.getLogger("tls_echo")


def show(address):
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class EchoServer(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        log.info("%s is here, with %s", show(address), stream.socket.version())
        try:
            while True:
                await stream.write(await stream.read_until(b"\n"))
        except iostreamsrv.StreamClosedError as error:
            log.info("%s is gone: %s", show(address), error.reason)


async def serve(arguments, files):
    server = EchoServer(ssl_options=files, proxy_protocol=arguments.proxy_from)
    server.listen(arguments.port, arguments.host)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload_certificates)
    for address in server.addresses:
        print("listening on", show(address), flush=True)
    await server.serve_forever()


async def main(arguments):
    if arguments.certfile:
        return await serve(arguments, {"certfile": arguments.certfile, "keyfile": arguments.keyfile})
    with tempfile.TemporaryDirectory() as folder:
        files = self_signed("localhost", "127.0.0.1", "::1").write(folder)
        log.info("made a certificate for localhost: %s", files["certfile"])
        await serve(arguments, files)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
parser.add_argument("--certfile", help="the certificate and its intermediates; default: a self-signed one")
parser.add_argument("--keyfile", help="the private key; default: also in --certfile")
parser.add_argument("--proxy-from", nargs="+", metavar="NETWORK", help="networks of proxies that send a PROXY header")
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
try:
    iostreamsrv.run(main(parser.parse_args()))
except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
    sys.exit(f"tls_echo: {error}")
