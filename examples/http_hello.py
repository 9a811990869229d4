"""An HTTP/1.1 server in one page: h11 handles the protocol, the stream moves the bytes.

It answers every request with a greeting, keeps connections alive, and reports invalid requests in HTTP.

Start it in the project's folder:

    iostreamsrv serve examples.http_hello:HelloServer --bind 127.0.0.1:8888 --workers auto
"""

import h11

import iostreamsrv

MAX_BODY = 1_000_000
"""Most bytes of a request's body, which is read and discarded."""


class HelloServer(iostreamsrv.TCPServer):
    read_timeout = 30  # seconds for each piece of a request
    max_connections = 10_000

    async def handle_stream(self, stream, address):
        connection = h11.Connection(h11.SERVER)
        while True:
            try:
                method = await self.read_request(stream, connection)
            except h11.RemoteProtocolError as error:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self.answer(stream, connection, error.error_status_hint, f"{error}\n".encode(), b"GET")
                return
            await self.answer(stream, connection, 200, b"Hello, world\n", method)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    async def read_request(self, stream, connection):
        """Read a whole request; return its method."""
        method, size = b"GET", 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await stream.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                connection.receive_data(await stream.read_bytes(65536, partial=True))
            elif isinstance(event, h11.Request):
                method = event.method
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > MAX_BODY:
                    raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage):
                return method

    async def answer(self, stream, connection, status, body, method):
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        if connection.their_state in (h11.ERROR, h11.SEND_BODY):
            headers.append(("Connection", "close"))
        head = connection.send(h11.Response(status_code=status, headers=headers))
        sent = connection.send(h11.Data(data=body)) if method != b"HEAD" else b""
        await stream.write(head + sent + connection.send(h11.EndOfMessage()))
