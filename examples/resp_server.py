"""A key-value store that speaks RESP, the protocol of Redis, for clients such as redis-cli and redis-benchmark.

It keeps everything in memory and saves nothing. The reply to an unknown or invalid command is an error, and the next
command may follow. The reply to data that is not RESP is also an error, and then the connection ends.

Start it in the project's folder, with one worker, which has all values in its memory:

    iostreamsrv serve examples.resp_server:RespServer --bind 127.0.0.1:6379
"""

import functools
import re

import iostreamsrv

MAX_LINE = 1000
MAX_WORDS = 100
MAX_VALUE = 512 << 10
MAX_COMMAND = 1 << 20
"""Limits of a command: bytes of a line, words, bytes of a word, bytes in all. A command that arrives byte by byte is
parsed from the start at each byte, so the number of words must be small."""

MAX_STORE = 256 << 20
PER_VALUE = 250
"""Most bytes of the store, and the overhead of each value in addition to its key and data."""


class ProtocolError(Exception):
    """The data is not RESP, so the start of the next command is unknown."""


class CommandError(Exception):
    """The command is invalid. The next one may follow."""


def command_in(buffer):
    """Take the words of one command, for `read_until_match`: a RESP array, or a line as typed by a person."""
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
    """The end of the line that starts at ``begin``; 0 if it has not arrived yet."""
    end = buffer.find(b"\n", begin, begin + MAX_LINE) + 1
    if not end and len(buffer) >= begin + MAX_LINE:
        raise ProtocolError(problem)
    return end


@functools.lru_cache(10_000)  # the same lines come again and again
def length(line, most, problem):
    """The number after the first byte of a line."""
    digits = line[1:].removesuffix(b"\n").removesuffix(b"\r")
    if not digits.isdigit() or len(digits) > 9 or int(digits) > most:
        raise ProtocolError(problem)
    return int(digits)


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


class Store:
    """The values by their keys, and the commands, which return their replies."""

    def __init__(self):
        self.values = {}
        self.size = 0

    def answer(self, name, *arguments):
        """The reply to a command."""
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
        return b"*0\r\n"  # for redis-benchmark

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
"""The method of each command, and its least and greatest number of arguments."""


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
        """Read the next command; return its words, none for an empty line."""
        return stream.read_until_match(command_in)
