"""A key-value store that speaks RESP, the protocol of Redis: redis-cli and redis-benchmark are its clients.

It keeps everything in memory, and nothing when it ends. What it does not know it answers with an error, and goes on.
"""

import argparse
import sys

import iostreamsrv

MAX_LINE = 1000
MAX_VALUE = 512 * 1024
MAX_WORDS = 1000
"""Of one command: bytes of a line, bytes of a value, and how many of these."""

MAX_KEYS = 1_000_000
"""Values in the store."""


class ProtocolError(Exception):
    """What came is no RESP; nobody knows where the next command begins."""


class CommandError(Exception):
    """A command cannot be done; the next one can."""


class RespServer(iostreamsrv.TCPServer):
    max_buffer_size = 1 << 20

    def __init__(self, **options):
        super().__init__(**options)
        self.values = {}

    async def handle_stream(self, stream, address):
        try:
            while (words := await read_command(stream)) != [b"QUIT"]:
                if words:
                    await stream.write(self.answer(words))
            await stream.write(b"+OK\r\n")
        except ProtocolError as error:
            await stream.write(b"-ERR Protocol error: %s\r\n" % str(error).encode())

    def answer(self, words):
        name, *arguments = words
        try:
            command = COMMANDS.get(name.upper())
            if command is None:
                raise CommandError("unknown command")
            return command(self, *arguments)
        except CommandError as error:
            return b"-ERR %s\r\n" % str(error).encode()
        except TypeError:
            return b"-ERR wrong number of arguments\r\n"

    def ping(self, text=None):
        return b"+PONG\r\n" if text is None else bulk(text)

    def echo(self, text):
        return bulk(text)

    def get(self, key):
        return bulk(self.values.get(key))

    def set(self, key, value):
        self.make_room_for(key)
        self.values[key] = value
        return b"+OK\r\n"

    def delete(self, *keys):
        return b":%d\r\n" % sum(self.values.pop(key, None) is not None for key in keys)

    def exists(self, *keys):
        return b":%d\r\n" % sum(key in self.values for key in keys)

    def incr(self, key):
        try:
            value = int(self.values.get(key, b"0")) + 1
        except ValueError:
            raise CommandError("value is not an integer") from None
        self.make_room_for(key)
        self.values[key] = b"%d" % value
        return b":%d\r\n" % value

    def dbsize(self):
        return b":%d\r\n" % len(self.values)

    def config(self, verb, *names):
        return b"*0\r\n"  # redis-benchmark asks

    def make_room_for(self, key):
        if key not in self.values and len(self.values) >= MAX_KEYS:
            raise CommandError("the store is full")


COMMANDS = {
    b"PING": RespServer.ping,
    b"ECHO": RespServer.echo,
    b"GET": RespServer.get,
    b"SET": RespServer.set,
    b"DEL": RespServer.delete,
    b"EXISTS": RespServer.exists,
    b"INCR": RespServer.incr,
    b"DBSIZE": RespServer.dbsize,
    b"CONFIG": RespServer.config,
}


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


async def read_command(stream):
    """The words of the next command: a RESP array, or a line, as people type it."""
    line = await stream.read_until(b"\n", MAX_LINE)
    if line[:1] != b"*":
        return line.split()
    words = []
    for _ in range(number(line, MAX_WORDS)):
        line = await stream.read_until(b"\n", MAX_LINE)
        if line[:1] != b"$":
            raise ProtocolError(f"expected '$', got {line[:1].decode('ascii', 'replace')!r}")
        size = number(line, MAX_VALUE)
        value = await stream.read_bytes(size + 2)
        if value[-2:] != b"\r\n":
            raise ProtocolError("a value does not end where it should")
        words.append(value[:-2])
    return words


def number(line, most):
    """What is behind the first byte."""
    digits = line[1:].rstrip(b"\r\n")
    if not digits.isdigit() or len(digits) > 9 or int(digits) > most:
        raise ProtocolError("invalid length")
    return int(digits)


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
