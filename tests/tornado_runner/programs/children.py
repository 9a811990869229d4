"""Which classes the Python processes have that a program starts."""

import asyncio
import multiprocessing
import os
import subprocess
import sys

from tornado.process import Subprocess

CODE = "import sys; from tornado.iostream import IOStream; print(IOStream.__module__, sys.argv)"


def home(_: object = None) -> str:
    from tornado.iostream import IOStream

    return IOStream.__module__


async def main() -> None:
    child = Subprocess([sys.executable, "-c", CODE, "a"], stdout=Subprocess.STREAM)
    print(type(child.stdout).__module__, (await child.stdout.read_until_close()).decode().strip())
    print(await child.wait_for_exit())


if __name__ == "__main__":
    asyncio.run(main())
    print(subprocess.check_output([sys.executable, "-c", CODE], text=True).strip())
    print(subprocess.check_output([sys.executable, "-c", CODE], text=True, cwd="/", env={**os.environ}).strip())
    for method in "spawn", "forkserver", "fork":
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.map(home, [None]))
