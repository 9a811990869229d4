"""Tries the iostreamsrv that is installed: an echo by TCP and by TLS, on the core that is named.

python .ci/smoke.py compiled, or python
"""

import asyncio
import sys
import tempfile

import iostreamsrv
from iostreamsrv.certificates import self_signed
from iostreamsrv.testing import running


class Echo(iostreamsrv.TCPServer):
    async def handle_stream(self, stream, address):
        while True:
            await stream.write(await stream.read_until(b"\n"))


async def echo(server, **options):
    async with running(server) as address:
        stream = await iostreamsrv.TCPClient().connect(*address, **options)
        for line in [b"hello\n", b"x" * 100_000 + b"\n"]:
            await stream.write(line)
            assert await stream.read_until(b"\n") == line
        stream.close()


async def main():
    await echo(Echo())
    with tempfile.TemporaryDirectory() as folder:
        files = self_signed().write(folder)
        await echo(Echo(ssl_options=files), ssl_options={"ca_certs": files["certfile"]})


asyncio.run(main())
assert iostreamsrv.core == sys.argv[1], f"the core is {iostreamsrv.core}, and should be {sys.argv[1]}"
print(f"iostreamsrv {iostreamsrv.__version__} works on its {iostreamsrv.core} core, from {iostreamsrv.__file__}")
