"""A key-value store that speaks RESP, the protocol of Redis: redis-cli and redis-benchmark are its clients.

It keeps everything in memory, and nothing when it ends. A command that it does not know, or cannot do, is answered with
an error, and the next one may follow. What is no RESP is answered with an error, too, and is the last that is read.
"""

import argparse
import functools
import re
import sys

import iostreamsrv

MAX_LINE = 1000
MAX_WORDS = 100
MAX_VALUE = 512 << 10
MAX_COMMAND = 1 << 20
"""Of one command: bytes of a line, words, bytes of a word and of them all. A command that comes byte by byte is looked
at again with each of them, so it cannot have many words."""

MAX_STORE = 256 << 20
PER_VALUE = 250
"""Bytes of the store, and what each value takes there beside its key and itself."""


class ProtocolError(Exception):
    """What came is no RESP; nobody knows where the next command begins."""


class CommandError(Exception):
    """A command cannot be done; the next one can."""


def command_in(buffer):
    """Take the words of one command, for `read_until_match`: an array of RESP, or a line, as people type it."""
    end = line_end(buffer, 0, "too big inline request")
    if not end:
        return None
    line = bytes(buffer[:end])
    if line[:1] != b"*":
        return end, line.split()
    words = []
    for _ in range(length(line, MAX_WORDS, "invalid multibulk length")):
        begin, end = end, line_end(buffer, end, "invalid bulk length")
        if not end:
            return None
        line = bytes(buffer[begin:end])
        if line[:1] != b"$":
            raise ProtocolError(f"expected '$', got {line[:1].decode('ascii', 'replace')!r}")
        begin, end = end, end + length(line, MAX_VALUE, "invalid bulk length") + 2
        if end > MAX_COMMAND:
            raise ProtocolError("too big a command")
        if len(buffer) < end:
            return None
        if buffer[end - 2 : end] != b"\r\n":
            raise ProtocolError("a value does not end where it should")
        words.append(bytes(buffer[begin : end - 2]))
    return end, words


def line_end(buffer, begin, problem):
    """Where the line ends that begins there; 0 if its end has not come yet."""
    end = buffer.find(b"\n", begin, begin + MAX_LINE) + 1
    if not end and len(buffer) >= begin + MAX_LINE:
        raise ProtocolError(problem)
    return end


@functools.lru_cache(10_000)  # most are seen again and again
def length(line, most, problem):
    """The number behind the first byte of a line."""
    digits = line[1:].removesuffix(b"\n").removesuffix(b"\r")
    if not digits.isdigit() or len(digits) > 9 or int(digits) > most:
        raise ProtocolError(problem)
    return int(digits)


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


class Store:
    """Values by their keys, and the commands for them, which give their answer."""

    def __init__(self):
        self.values = {}
        self.size = 0

    def answer(self, name, *arguments):
        """What a command is answered."""
        command, least, most = COMMANDS.get(name.upper(), (None, 0, 0))
        try:
            if command is None:
                raise CommandError("unknown command")
            if not least <= len(arguments) <= most:
                raise CommandError("wrong number of arguments")
            return command(self, *arguments)
        except CommandError as error:
            return b"-ERR %b\r\n" % str(error).encode()

    def ping(self, text=None):
        return b"+PONG\r\n" if text is None else bulk(text)

    def echo(self, text):
        return bulk(text)

    def get(self, key):
        return bulk(self.values.get(key))

    def set(self, key, value):
        old = self.values.get(key)
        size = self.size + len(value) + (len(key) + PER_VALUE if old is None else -len(old))
        if size > MAX_STORE:
            raise CommandError("the store is full")
        self.size = size
        self.values[key] = value
        return b"+OK\r\n"

    def delete(self, *keys):
        return b":%d\r\n" % sum(map(self.forget, keys))

    def forget(self, key):
        value = self.values.pop(key, None)
        if value is not None:
            self.size -= len(key) + len(value) + PER_VALUE
        return value is not None

    def exists(self, *keys):
        return b":%d\r\n" % sum(key in self.values for key in keys)

    def incr(self, key):
        digits = self.values.get(key, b"0")
        if not re.fullmatch(rb"-?[0-9]{1,19}", digits) or not -(1 << 63) <= int(digits) < (1 << 63) - 1:
            raise CommandError("value is not an integer or out of range")
        value = int(digits) + 1
        self.set(key, b"%d" % value)
        return b":%d\r\n" % value

    def dbsize(self):
        return b":%d\r\n" % len(self.values)

    def config(self, *words):
        return b"*0\r\n"  # redis-benchmark asks

    def quit(self):
        return b"+OK\r\n"


COMMANDS = {
    b"PING": (Store.ping, 0, 1),
    b"ECHO": (Store.echo, 1, 1),
    b"GET": (Store.get, 1, 1),
    b"SET": (Store.set, 2, 2),
    b"DEL": (Store.delete, 1, MAX_WORDS),
    b"EXISTS": (Store.exists, 1, MAX_WORDS),
    b"INCR": (Store.incr, 1, 1),
    b"DBSIZE": (Store.dbsize, 0, 0),
    b"CONFIG": (Store.config, 1, MAX_WORDS),
    b"QUIT": (Store.quit, 0, 0),
}
"""By name: what does it, and how many arguments it takes at least and at most."""


class RespServer(iostreamsrv.TCPServer):
    max_buffer_size = MAX_COMMAND

    def __init__(self, **options):
        super().__init__(**options)
        self.store = Store()

    async def handle_stream(self, stream, address):
        words = []
        try:
            while len(words) != 1 or words[0].upper() != b"QUIT":
                words = await self.read_command(stream)
                if words:
                    await stream.write(self.store.answer(*words))
        except ProtocolError as error:
            await stream.write(b"-ERR Protocol error: %b\r\n" % str(error).encode())

    def read_command(self, stream):
        """The words of the next command; none for an empty line."""
        return stream.read_until_match(command_in)


async def main(arguments):
    server = RespServer()
    server.listen(arguments.port, arguments.host)
    for host, port, *_ in server.addresses:
        print("listening on", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8888, help="0: any free one; default: %(default)s")
    try:
        iostreamsrv.run(main(parser.parse_args()))
    except (iostreamsrv.ListenError, iostreamsrv.OptionError) as error:
        sys.exit(f"resp_server: {error}")
