"""A key-value store with a line protocol: one command per line, one line of reply.

    SET key value    OK
    GET key          VALUE value, or NONE
    DEL key          OK, or NONE
    COUNT            VALUE number
    QUIT             BYE, and the connection ends

The reply to an invalid command is "ERR reason"; the next command may follow. A client that sends no line in time, or
one that is too long, gets the same kind of reply, and then the connection ends.

Start it in the project's folder, with one worker, which has all values in its memory:

    iostreamsrv serve examples.line_protocol:StoreServer --bind 127.0.0.1:8888 --set read_timeout=60
"""

import iostreamsrv

MAX_LINE = 1000
"""Most bytes of a line with its newline, so the most memory that one client can use."""

MAX_KEYS = 10_000
"""Most values in the store, so the most memory that all clients together can use."""


class CommandError(Exception):
    """The command is invalid. The next one may follow."""


class LineTooLong(Exception):
    """The line is too long, so the start of the next command is unknown."""


def next_line(buffer):
    """Take one line, for `read_until_match`. (`read_until` would close the stream, and we want to reply.)"""
    end = buffer.find(b"\n", 0, MAX_LINE)
    if end >= 0:
        return end + 1, bytes(buffer[:end])
    if len(buffer) >= MAX_LINE:
        raise LineTooLong
    return None


class StoreServer(iostreamsrv.TCPServer):
    read_timeout = 60  # seconds to send a line

    def __init__(self, **options):
        super().__init__(**options)
        self.values = {}
        # the method of each command, and its number of words; the last word may contain spaces
        self.commands = {
            b"SET": (self.set, 2),
            b"GET": (self.get, 1),
            b"DEL": (self.delete, 1),
            b"COUNT": (self.count, 0),
        }

    async def handle_stream(self, stream, address):
        """Serve one client. In every case, the server delivers the last reply and closes the stream."""
        try:
            while (line := await self.read_command(stream)).upper() != b"QUIT":
                await stream.write(self.answer(line) + b"\n")
            await stream.write(b"BYE\n")
        except iostreamsrv.StreamTimeoutError:
            await stream.write(b"ERR timeout, good bye\n")
        except LineTooLong:
            await stream.write(b"ERR line too long, good bye\n")

    async def read_command(self, stream):
        # with a timeout of its own a read leaves the stream open, for the reply
        line = await stream.read_until_match(next_line, timeout=self.options.read_timeout)
        return line.strip()

    def answer(self, line):
        try:
            return self.execute(line)
        except CommandError as error:
            return f"ERR {error}".encode()

    def execute(self, line):
        name, *words = line.split(maxsplit=2) or [b""]
        command, arity = self.commands.get(name.upper(), (None, 0))
        if command is None:
            raise CommandError("unknown command")
        if len(words) != arity:
            raise CommandError(f"wrong number of words, {arity} expected")
        return command(*words)

    def set(self, key, value):
        if key not in self.values and len(self.values) == MAX_KEYS:
            raise CommandError("the store is full")
        self.values[key] = value
        return b"OK"

    def get(self, key):
        return b"VALUE " + self.values[key] if key in self.values else b"NONE"

    def delete(self, key):
        return b"OK" if self.values.pop(key, None) is not None else b"NONE"

    def count(self):
        return b"VALUE %d" % len(self.values)
