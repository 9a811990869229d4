"""A chat for a few people: the first line of a client is its name, every further line is sent to all others.

Lines end with CR LF. "quit" ends a connection. On SIGTERM or Ctrl-C, the server tells everyone and stops.

Start it in the project's folder, with one worker, which has all people in its memory:

    iostreamsrv serve examples.chat:ChatServer --bind 127.0.0.1:8888
"""

import asyncio

import iostreamsrv

CONTROL = bytes([*range(32), 127])


class ChatServer(iostreamsrv.TCPServer):
    allow_half_open = True  # a client that half-closes after its last line still gets the reply

    def __init__(self, max_people=5):
        super().__init__()
        self.max_people = max_people
        self.names = {}  # of each client; None until the client has sent it

    async def handle_stream(self, stream, address):
        if len(self.names) >= self.max_people:
            await stream.write(b"Sorry, I only allow %d concurrent connections!\r\n" % self.max_people)
            return
        self.names[stream] = None
        try:
            await stream.write(b"Welcome! Please enter your name:\r\n")
            await self.converse(stream)
        finally:
            name = self.names.pop(stream, None)
            if name is not None:
                self.tell_others(stream, b"%s disconnected!\r\n" % name)

    async def converse(self, stream):
        while True:
            line = await self.read_line(stream)
            if stream not in self.names:
                return  # the server is shutting down, so this line is too late
            text = line.removesuffix(b"\r\n").translate(None, delete=CONTROL)
            name = self.names[stream]
            if name is None:
                await self.introduce(stream, text)
            elif text == b"quit":
                await stream.write(b"Goodbye, %s!\r\n" % name)
                return
            elif text:
                self.tell_others(stream, b"%s wrote: %s\r\n" % (name, text))
                await stream.write(b"You wrote: %s\r\n" % text)

    async def read_line(self, stream):
        """Read a line, or an incomplete one at EOF."""
        try:
            return await stream.read_until(b"\r\n")
        except iostreamsrv.StreamClosedError as error:
            if error.reason != "eof" or not stream.buffered:
                raise
            return await stream.read_bytes(stream.buffered)

    async def introduce(self, stream, name):
        if not name:
            await stream.write(b"Please enter your name:\r\n")
        elif name.lower() in (taken.lower() for taken in self.names.values() if taken is not None):
            await stream.write(b"Choose a different name, please:\r\n")
        else:
            self.names[stream] = name
            self.tell_others(stream, b"%s joined!\r\n" % name)
            await stream.write(b"Thank you, %s! Type 'quit' to disconnect.\r\n" % name)

    def tell_others(self, stream, news):
        for other, name in list(self.names.items()):
            if other is not stream and name is not None:
                self.tell(other, news + b"\r\n")

    def tell(self, stream, line):
        try:
            stream.write(line)  # not awaited, or everyone would wait for the slowest client
        except iostreamsrv.StreamBufferFullError:
            stream.abort()  # this client does not read
        except iostreamsrv.StreamClosedError:
            pass  # this client is just leaving

    async def shutdown(self, *timeout):
        """Tell everyone that the server stops, without further messages about who leaves."""
        self.stop()
        people, self.names = self.names, {}
        for stream in people:
            self.tell(stream, b"Server is shutting down!\r\n")
        await asyncio.gather(*(stream.aclose(timeout=5) for stream in people))
        await super().shutdown(*timeout)
