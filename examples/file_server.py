"""File server: a client sends a line with a file name, and gets "SIZE n" and the n bytes, or "ERR reason".

More names may follow on the same connection, also without waiting. Only regular files in the directory and its
subdirectories are available: not with "..", nor with an absolute name, nor through a symbolic link.
"""

import argparse
import contextlib
import errno
import os
import stat
import sys

import iostreamsrv

MAX_LINE = 4096
"""Most bytes of a line: the longest path on Linux. A client that sends more is closed."""


class FileServer(iostreamsrv.TCPServer):
    def __init__(self, directory):
        super().__init__()
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    async def handle_stream(self, stream, address):
        while True:
            name = await stream.read_until(b"\n", max_bytes=MAX_LINE)
            try:
                file = open_beneath(self.directory, name.rstrip(b"\r\n"))
            except OSError as error:
                await stream.write(f"ERR {os.strerror(error.errno)}\n".encode())
                continue
            with file:
                await self.answer(stream, file, os.fstat(file.fileno()).st_size)

    async def answer(self, stream, file, size):
        await stream.write(b"SIZE %d\n" % size)
        if await stream.sendfile(file, count=size) < size:
            stream.abort()  # the file was shortened, so the client would take the next reply for its data


def open_beneath(directory, name):
    """Open a regular file in a directory, given as a descriptor, or in its subdirectories.

    Done folder by folder: between a check of the whole name and its use, the name could be changed to lead elsewhere.
    """
    *folders, last = name.split(b"/")
    if b"\0" in name or not {b"", b".", b".."}.isdisjoint((*folders, last)):
        raise OSError(errno.EINVAL, "not a name in the directory")
    with contextlib.ExitStack() as opened:
        for folder in folders:
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            opened.callback(os.close, directory)
        return open_regular(directory, last)


def open_regular(directory, name):
    def opener(name, flags):  # O_NONBLOCK: a pipe without a writer would block
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)

    file = open(name, "rb", buffering=0, opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EACCES, "not a regular file")
    return file


async def main(arguments):
    server = FileServer(arguments.directory)
    server.listen(arguments.port, arguments.host)
    for host, port, *_ in server.addresses:
        print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="0: a free one; default: %(default)s")
    parser.add_argument("--directory", default=".", help="the directory of the files; default: the current one")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except OSError as error:  # a ListenError, or there is no such directory
        sys.exit(f"file_server: {error}")
    except iostreamsrv.OptionError as error:
        sys.exit(f"file_server: {error}")
