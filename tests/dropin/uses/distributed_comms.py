"""distributed's comms by themselves, over tcp, tls, ws or wss: messages of all sizes, and ends in every state."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import checks
import dask
import numpy
from checks import acheck, raises
from distributed import Security
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import Serialized, to_serialize

checks.PATIENCE = 20.0
Handler = Callable[[Any], Awaitable[None]]


class Comms:
    """Makes listeners and connections of a protocol."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.plain = protocol in ("tcp", "tls")
        """Whether its comms are streams. Over WebSockets they do less: messages that are written at the same time get
        mixed up, arrays cannot be written to, and tasks are left."""
        secure = protocol in ("tls", "wss")
        self.security = Security.temporary() if secure else Security()
        self.listening = self.security.get_listen_args("scheduler") if secure else {}
        self.connecting = self.security.get_connection_args("client") if secure else {}

    async def listen(self, handler: Handler, **options: Any) -> Any:
        return await listen(f"{self.protocol}://127.0.0.1:0", handler, **self.listening, **options)

    async def connect(self, address: str, **options: Any) -> Any:
        return await connect(address, **self.connecting, **options)

    async def pair(self) -> tuple[Any, Any, Any]:
        """A listener, a comm to it, and the comm at its end."""
        accepted: asyncio.Queue[Any] = asyncio.Queue()
        done = asyncio.Event()

        async def handler(comm: Any) -> None:
            accepted.put_nowait(comm)
            await done.wait()

        listener = await self.listen(handler)
        one = await self.connect(listener.contact_address)
        other = await asyncio.wait_for(accepted.get(), 10)
        self.done = done
        return listener, one, other


async def echo(comm: Any) -> None:
    try:
        while True:
            await comm.write(await comm.read())
    except CommClosedError:
        pass


async def messages(comms: Comms) -> None:
    listener = await comms.listen(echo)
    comm = await comms.connect(listener.contact_address)

    async def same(message: Any) -> Any:
        await comm.write(message)
        return await comm.read()

    small = 1000 if comms.plain else 100  # over WebSockets each takes 80 ms on Tornado: Nagle's algorithm
    async with acheck(f"small messages, {small:,} of them"):
        for number in range(small):
            assert await same({"op": "ping", "number": number}) == {"op": "ping", "number": number}
    for size in (0, 1, 1000, 65_535, 65_536, 65_537, 1_000_000, 20_000_000):
        async with acheck(f"{size:,} bytes"):
            assert (await same({"data": b"x" * size}))["data"] == b"x" * size
    for size in (1000, 3_000_000, 100_000_000):
        async with acheck(f"an array of {size:,} bytes"):
            array = numpy.arange(size // 8)
            assert numpy.array_equal((await same({"data": to_serialize(array)}))["data"], array)
    async with acheck("an array that is not contiguous"):
        array = numpy.arange(2_000_000).reshape(1000, 2000)[::2, ::3]
        assert numpy.array_equal((await same({"data": to_serialize(array)}))["data"], array)
    async with acheck("3,000 frames in a message"):
        frames = [numpy.full(number % 50, number) for number in range(3000)]
        back = await same([to_serialize(frame) for frame in frames])
        assert all(numpy.array_equal(one, other) for one, other in zip(back, frames, strict=True))
    async with acheck("frames of all sizes, some empty"):
        frames = [bytearray(size) for size in (0, 1, 0, 70_000, 0, 5_000_000, 3, 0)]
        assert list(map(bytes, await same([to_serialize(frame) for frame in frames]))) == list(map(bytes, frames))
    if comms.plain:
        async with acheck("an array read may be written to"):
            array = (await same({"data": to_serialize(numpy.zeros(100_000))}))["data"]
            array[:] = 1
            assert array.sum() == 100_000
    async with acheck("20 messages written before the first is read"):
        for writes in [range(20)] if comms.plain else [[number] for number in range(20)]:
            await asyncio.gather(*(comm.write({"number": number, "pad": b"p" * 5000}) for number in writes))
        assert [(await comm.read())["number"] for _ in range(20)] == list(range(20))
    async with acheck("both directions at once, 30 MB each"):
        _, _, back = await asyncio.gather(comm.write({"data": b"y" * 30_000_000}), asyncio.sleep(0), comm.read())
        assert len(back["data"]) == 30_000_000
    async with acheck("what is not deserialized"):
        raw_listener = await comms.listen(echo, deserialize=False)
        raw = await comms.connect(raw_listener.contact_address, deserialize=False)
        await raw.write({"data": to_serialize(numpy.arange(1000))})
        back = (await raw.read())["data"]
        assert isinstance(back, Serialized), type(back)
        await raw.close()
        raw_listener.stop()
    async with acheck("30 comms at once"):

        async def talk(number: int) -> None:
            one = await comms.connect(listener.contact_address)
            for _ in range(20):
                await one.write({"number": number, "pad": b"q" * (number * 1000)})
                assert (await one.read())["number"] == number
            await one.close()

        await asyncio.gather(*map(talk, range(30)))
    async with acheck("addresses"):
        assert comm.peer_address == listener.contact_address
        assert comm.local_address.startswith(f"{comms.protocol}://")
        assert isinstance(comm.extra_info, dict)
    await comm.close()
    listener.stop()


async def nothing(_one: Any, _other: Any) -> list[Awaitable[Any]]:
    return []


async def reading(one: Any, _other: Any) -> list[Awaitable[Any]]:
    return [one.read()]


async def peer_reading(_one: Any, other: Any) -> list[Awaitable[Any]]:
    return [other.read()]


async def both_reading(one: Any, other: Any) -> list[Awaitable[Any]]:
    return [one.read(), other.read()]


async def writing(one: Any, _other: Any) -> list[Awaitable[Any]]:
    return [one.write({"data": to_serialize(numpy.zeros(8_000_000))})]


async def peer_writing(_one: Any, other: Any) -> list[Awaitable[Any]]:
    return [other.write({"data": to_serialize(numpy.zeros(8_000_000))})]


STATES = (nothing, reading, peer_reading, both_reading, writing, peer_writing)
STATES_OF_WEBSOCKETS = (nothing, writing, peer_writing)
"""On Tornado, too, the end of one leaves a read pending for ever."""


async def ended(comms: Comms, state: Any, end: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Bring a pair into a state, end it, and see that everything ends soon, with nothing but a CommClosedError."""
    listener, one, other = await comms.pair()
    pending = [asyncio.ensure_future(each) for each in await state(one, other)]
    await asyncio.sleep(0.02)
    await end(one, other)
    if pending:
        await asyncio.wait(pending, timeout=2)
        other.abort()
        one.abort()
        _, unfinished = await asyncio.wait(pending, timeout=10)
        assert not unfinished, "a read or write that does not end"
        for task in pending:
            error = task.exception()
            assert error is None or isinstance(error, CommClosedError), repr(error)
    one.abort()
    other.abort()
    assert one.closed() and other.closed()
    for comm in (one, other):
        if comms.plain or state is nothing:  # else a read of half a message, which is left of it, is pending for ever
            with raises(CommClosedError):
                await comm.read()
        with raises(CommClosedError):
            await comm.write({})
    comms.done.set()
    listener.stop()


async def ends(comms: Comms) -> None:
    closings: list[asyncio.Future[None]] = []

    async def close(one: Any, _other: Any) -> None:
        """It waits for what is being written, which nobody may be reading: then it ends when the peer does."""
        closing = asyncio.ensure_future(one.close())
        if (await asyncio.wait([closing], timeout=1))[0]:
            assert one.closed()
            await one.close()
        else:
            closings.append(closing)

    async def abort(one: Any, _other: Any) -> None:
        one.abort()
        assert one.closed()
        one.abort()

    async def peer_closes(_one: Any, other: Any) -> None:
        await close(other, None)

    async def peer_aborts(_one: Any, other: Any) -> None:
        other.abort()

    async def both_close(one: Any, other: Any) -> None:
        await asyncio.gather(close(one, None), close(other, None))

    for state in STATES if comms.plain else STATES_OF_WEBSOCKETS:
        for end in (close, abort, peer_closes, peer_aborts, both_close):
            async with acheck(f"{end.__name__} while {state.__name__}"):
                await ended(comms, state, end)
                if closings:
                    _, unfinished = await asyncio.wait(closings, timeout=10)
                    closings.clear()
                    assert not unfinished, "a close that does not end"


async def special_ends(comms: Comms) -> None:
    async with acheck("the peer's close ends a read"):
        listener, one, other = await comms.pair()
        read = asyncio.ensure_future(one.read())
        await asyncio.sleep(0.02)
        await other.close()
        with raises(CommClosedError):
            await asyncio.wait_for(read, 10)
        assert one.closed()
        comms.done.set()
        listener.stop()
    async with acheck("what was written before a close arrives"):
        listener, one, other = await comms.pair()
        await one.write({"data": b"z" * 1_000_000})
        await one.close()
        assert len((await other.read())["data"]) == 1_000_000
        with raises(CommClosedError):
            await other.read()
        comms.done.set()
        listener.stop()
    async with acheck("a reply arrives, though a close follows at once"):

        async def reply(comm: Any) -> None:
            await comm.write(await comm.read())
            await comm.close()

        listener = await comms.listen(reply)
        for number in range(20):
            one = await comms.connect(listener.contact_address)
            await one.write(number)
            assert await one.read() == number
            one.abort()
        listener.stop()
    async with acheck("a cancelled read closes the comm, or leaves it whole"):
        listener, one, other = await comms.pair()
        read = asyncio.ensure_future(one.read())
        await asyncio.sleep(0.02)
        read.cancel()
        with raises(asyncio.CancelledError):
            await read
        one.abort()
        with raises(CommClosedError):
            await other.read()
        comms.done.set()
        listener.stop()
    async with acheck("a handler that raises closes its comm"):

        async def handler(comm: Any) -> None:
            await comm.read()
            comm.abort()

        listener = await comms.listen(handler)
        one = await comms.connect(listener.contact_address)
        await one.write({})
        with raises(CommClosedError):
            await asyncio.wait_for(one.read(), 10)
        listener.stop()
    async with acheck("nobody listens"):
        listener = await comms.listen(echo)
        address = listener.contact_address
        listener.stop()
        await asyncio.sleep(0.05)
        with raises(OSError, CommClosedError):
            await comms.connect(address, timeout=1)
    async with acheck("a listener stopped leaves its comms"):
        listener = await comms.listen(echo)
        one = await comms.connect(listener.contact_address)
        listener.stop()
        await one.write({"still": 1})
        assert await asyncio.wait_for(one.read(), 10) == {"still": 1}
        await one.close()
    async with acheck("someone who is silent does not keep others from connecting"):
        listener = await comms.listen(echo)
        host, _, port = listener.contact_address.rpartition("/")[2].partition(":")
        _, silent = await asyncio.open_connection(host, int(port))
        one = await comms.connect(listener.contact_address)
        await one.write(1)
        assert await one.read() == 1
        silent.close()
        await one.close()
        listener.stop()
    async with acheck("someone who sends rubbish does not end the listener"):
        listener = await comms.listen(echo)
        host, _, port = listener.contact_address.rpartition("/")[2].partition(":")
        for rubbish in (b"\x00" * 100, b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 9, b"\x00"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(rubbish)
            await asyncio.sleep(0.05)
            writer.close()
        one = await comms.connect(listener.contact_address)
        await one.write(2)
        assert await one.read() == 2
        await one.close()
        listener.stop()
    async with acheck("100 comms connected and closed, one after another"):
        listener = await comms.listen(echo)
        for number in range(100):
            one = await comms.connect(listener.contact_address)
            await one.write(number)
            assert await one.read() == number
            await one.close() if number % 2 else one.abort()
        listener.stop()
    async with acheck("a comm dropped without a close warns and frees its socket"):
        listener, one, other = await comms.pair()
        other.abort()
        one.abort()
        del one, other
        gc.collect()
        comms.done.set()
        listener.stop()


async def main(protocol: str) -> None:
    dask.config.set({"distributed.comm.timeouts.connect": "10s"})
    comms = Comms(protocol)
    await messages(comms)
    await ends(comms)
    await special_ends(comms)
    if comms.plain:
        async with acheck("no task is left"):
            await asyncio.sleep(0.5)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, [task.get_stack() for task in others]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
