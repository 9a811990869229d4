"""thrift's TTornado: a server and its clients, with what the compiler would generate written by hand."""

import asyncio
import socket
import ssl
import struct
import tempfile
from typing import Any

import certificate
from checks import acheck, raises
from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.Thrift import TApplicationException, TMessageType, TType
from thrift.transport.TTransport import TMemoryBuffer, TTransportException
from thrift.TTornado import TTornadoServer, TTornadoStreamTransport
from tornado import gen

FACTORY = TBinaryProtocolFactory()


class Processor:
    """A service: ``echo(string)``, ``slow(string)``, ``fail(string)``, and ``note(string)``, which is oneway."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    @gen.coroutine
    def process(self, iprot: Any, oprot: Any) -> Any:
        name, _, number = iprot.readMessageBegin()
        argument = read_string(iprot)
        if name == "note":
            self.noted.append(argument)
            return
        if name == "slow":
            yield gen.sleep(0.05)
        if name in ("echo", "slow"):
            oprot.writeMessageBegin(name, TMessageType.REPLY, number)
            write_string(oprot, argument)
        else:
            oprot.writeMessageBegin(name, TMessageType.EXCEPTION, number)
            TApplicationException(TApplicationException.INTERNAL_ERROR, argument).write(oprot)
        oprot.writeMessageEnd()
        yield oprot.trans.flush()


def read_string(protocol: Any) -> Any:
    protocol.readStructBegin()
    _, kind, _ = protocol.readFieldBegin()
    assert kind == TType.STRING
    value = protocol.readString()
    protocol.readFieldEnd()
    protocol.readFieldBegin()
    protocol.readStructEnd()
    protocol.readMessageEnd()
    return value


def write_string(protocol: Any, value: str) -> None:
    protocol.writeStructBegin("it")
    protocol.writeFieldBegin("it", TType.STRING, 0)
    protocol.writeString(value)
    protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()


class Client:
    """A connection, whose replies are given to their calls by number, as in generated code."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.protocol = FACTORY.getProtocol(transport)
        self.calls: dict[int, asyncio.Future[str]] = {}
        self.number = 0
        self.receiving = asyncio.ensure_future(self.receive())

    async def receive(self) -> None:
        while True:
            try:
                frame = await self.transport.readFrame()
            except TTransportException as error:
                for call in self.calls.values():
                    call.set_exception(error)
                return
            protocol = FACTORY.getProtocol(TMemoryBuffer(frame))
            _, kind, number = protocol.readMessageBegin()
            call = self.calls.pop(number)
            if kind == TMessageType.EXCEPTION:
                error = TApplicationException()
                error.read(protocol)
                call.set_exception(error)
            else:
                call.set_result(read_string(protocol))

    def call(self, name: str, argument: str) -> "asyncio.Future[str]":
        self.number += 1
        self.send(name, TMessageType.CALL, argument)
        self.calls[self.number] = asyncio.get_running_loop().create_future()
        return self.calls[self.number]

    def send(self, name: str, kind: int, argument: str) -> None:
        self.protocol.writeMessageBegin(name, kind, self.number)
        write_string(self.protocol, argument)
        self.protocol.writeMessageEnd()
        self.transport.flush()

    async def close(self) -> None:
        self.transport.close()
        await self.receiving


def serve(**options: Any) -> tuple[TTornadoServer, Processor, int]:
    processor = Processor()
    server = TTornadoServer(processor, FACTORY, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server.add_sockets([listening])
    return server, processor, listening.getsockname()[1]


async def connect(port: int, **options: Any) -> Client:
    transport = TTornadoStreamTransport("127.0.0.1", port, **options)
    await transport.open(timeout=__import__("datetime").timedelta(seconds=5))
    return Client(transport)


async def main() -> None:
    server, processor, port = serve()
    client = await connect(port)
    async with acheck("a call"):
        assert await client.call("echo", "hello") == "hello"
    async with acheck("1,000 calls, one after another"):
        for number in range(1000):
            assert await client.call("echo", str(number)) == str(number)
    async with acheck("500 calls at once on a connection"):
        replies = await asyncio.gather(*(client.call("echo", str(number)) for number in range(500)))
        assert replies == [str(number) for number in range(500)]
    async with acheck("strings of up to 10 MB"):
        for size in (0, 1, 70_000, 10_000_000):
            assert await client.call("echo", "x" * size) == "x" * size
    async with acheck("an exception"):
        with raises(TApplicationException):
            await client.call("fail", "as it must")
        assert await client.call("echo", "after it") == "after it"
    async with acheck("oneway calls"):
        for number in range(20):
            client.send("note", TMessageType.ONEWAY, str(number))
        assert await client.call("echo", "then") == "then"
        assert processor.noted == [str(number) for number in range(20)]
    async with acheck("50 connections at once"):
        clients = await asyncio.gather(*(connect(port) for _ in range(50)))
        replies = await asyncio.gather(*(each.call("slow", str(number)) for number, each in enumerate(clients)))
        assert replies == [str(number) for number in range(50)]
        for each in clients:
            await each.close()
    async with acheck("a close callback"):
        another = await connect(port)
        closed = asyncio.Event()
        another.transport.set_close_callback(closed.set)
        assert another.transport.isOpen()
        another.transport.stream.close()
        await asyncio.wait_for(closed.wait(), 5)
        assert not another.transport.isOpen()
    async with acheck("a client that leaves amid a call"):
        leaving = await connect(port)
        call = leaving.call("slow", "x")
        await asyncio.sleep(0.01)
        leaving.transport.stream.close()
        with raises(TTransportException):
            await asyncio.wait_for(call, 5)
        assert await client.call("echo", "still") == "still"
    async with acheck("frames that are too large, or negative, close a connection"):
        for size in (struct.pack("!i", 1 << 30), struct.pack("!i", -5)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(size)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
    async with acheck("nobody listens"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = free.getsockname()[1]
        with raises(TTransportException):
            await connect(nobody)
    async with acheck("a stopped server keeps its connections, and takes no more"):
        server.stop()
        assert await client.call("echo", "still") == "still"
        with raises(TTransportException):
            await connect(port)
    async with acheck("close"):
        await client.close()
    with tempfile.TemporaryDirectory() as folder:
        async with acheck("over TLS"):
            files = certificate.make(folder)
            secure, _, secure_port = serve(ssl_options={"certfile": files[0], "keyfile": files[1]})
            context = ssl.create_default_context(cafile=files[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", secure_port, ssl=context)
            sent = TMemoryBuffer()
            protocol = FACTORY.getProtocol(sent)
            protocol.writeMessageBegin("echo", TMessageType.CALL, 1)
            write_string(protocol, "secret")
            writer.write(struct.pack("!i", len(sent.getvalue())) + sent.getvalue())
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            assert b"secret" in await reader.readexactly(size)
            writer.close()
            secure.stop()
    async with acheck("no task is left"):
        await asyncio.sleep(0.2)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others


if __name__ == "__main__":
    asyncio.run(main())
