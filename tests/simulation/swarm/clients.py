"""A function for each character of client. Each says what it may be closed for: an innocent client for nothing."""

import socket
from collections.abc import Awaitable, Callable

from iostreamsrv import CloseReason
from tests.support.tls_records import Records

from .peer import UNLIMITED, Peer, Surroundings
from .protocol import BLOCK, BLOCKS, BROADCAST, ECHO, FAIL, LEAVE_READING, QUIT, WATCH, WORK

ROUNDS = 6

FULL = CloseReason.BUFFER_FULL
SLOW = (CloseReason.WRITE_TIMEOUT, CloseReason.IDLE_TIMEOUT)


# ---- innocent ones


async def honest(peer: Peer) -> None:
    """Asks and reads, one request after the other, and sometimes one that takes a while."""
    peer.record.innocent = peer.record.sequential = True
    if not await peer.open():
        return
    for _ in range(ROUNDS):
        if not await peer.ask(peer.chance.choice([ECHO, ECHO, WORK])):
            return
        await peer.pause(0, 0.5)
    peer.close()


async def thinking(peer: Peer) -> None:
    """Stays until the server ends, and says something as often as it must."""
    peer.record.innocent = peer.record.sequential = peer.record.exact = True
    if not await peer.open():
        return
    scenario = peer.world.scenario
    pause = min(30.0, scenario.strictest("idle_timeout"), scenario.strictest("read_timeout")) * 0.4
    while peer.sim.time < peer.world.ends_at() and await peer.ask(padding=10):
        await peer.pause(pause / 2, pause)


async def half_closing(peer: Peer) -> None:
    """Asks several things, sends EOF, and reads all answers."""
    peer.record.innocent = peer.record.exact = True
    if not await peer.open():
        return
    size, padding = peer.chance.choice([(10, 10), (3000, 3000)])
    kind = ECHO if peer.world.scenario.http else WORK  # with HTTP, who sends EOF while a handler works has left
    if await peer.send([peer.request(kind, size, padding) for _ in range(peer.chance.randint(1, 4))]):
        await peer.half_close()
        await peer.read_to_end()


async def pipelining(peer: Peer) -> None:
    """Asks many things at once, and reads."""
    peer.record.innocent = True
    if not await peer.open():
        return
    for _ in range(3):
        if not await peer.send([peer.request(size=500) for _ in range(peer.chance.randint(2, 30))]):
            return
        if not await peer.answered():
            return
    peer.close()


async def quitting(peer: Peer) -> None:
    """Asks for the end: gets the answer, then EOF."""
    peer.record.innocent = peer.record.sequential = peer.record.exact = True
    if await peer.open() and await peer.ask() and await peer.ask(QUIT):
        await must_end(peer, 5.0)


async def leaving_reading(peer: Peer) -> None:
    """The handler returns while a read is pending: the connection ends after that read."""
    peer.record.innocent = peer.record.sequential = peer.record.exact = True
    if await peer.open() and await peer.ask(LEAVE_READING) and await peer.send([b"!"]):
        await must_end(peer, 5.0)


async def uploading(peer: Peer) -> None:
    """Sends much behind its last request, which is answered nevertheless."""
    peer.record.innocent = peer.record.exact = True
    size = 1000 if peer.world.scenario.unix else 100_000  # a Unix socket has no receive buffer: it must not be full
    if await peer.open() and await peer.send([peer.request(QUIT, size), bytes(400_000)]):
        await must_end(peer, 60.0)


async def downloading(peer: Peer) -> None:
    """Takes its answer slowly, and takes all of it, although the handler has returned."""
    peer.record.innocent = peer.record.exact = True
    if await peer.open(bandwidth=2000) and await peer.send([peer.request(QUIT, 100_000, 0)]):
        await must_end(peer, 120.0)


async def watching(peer: Peer) -> None:
    """Sends what is not read, then EOF: the handler is told by its close callback."""
    peer.record.innocent = True
    peer.may_end(CloseReason.IDLE_TIMEOUT)  # if it comes before the end is noticed
    if await peer.open() and await peer.ask(WATCH) and await peer.send([b"not read"]):
        await peer.half_close()
        writing = "broadcasting" in peer.world.scenario.characters  # then the server waits: it may still be answering
        await must_end(peer, 18.0 if writing else 8.0)


async def must_end(peer: Peer, within: float) -> None:
    """The server must end the connection."""
    if not await peer.read_to_end(within) and peer.record.answers:
        peer.record.problem("ends", f"is still connected after {within:g} s")


async def writing_only(peer: Peer) -> None:
    """Never reads: requests whose answers are small. It closes in an orderly way."""
    peer.record.innocent = True
    if not await peer.open():
        return
    peer.may_end(CloseReason.RESET)  # it closes with unread answers
    if await peer.send([peer.request(size=0) for _ in range(3)]):
        await peer.pause(0.5, 1)
        peer.close()


async def broadcasting(peer: Peer) -> None:
    """Asks for broadcasts, and stays for those of others."""
    peer.record.innocent = True
    if not await peer.open():
        return
    for _ in range(ROUNDS):
        if not await peer.ask(BROADCAST, padding=10):
            return
        await peer.pause(0, 0.3)
    peer.close()


async def never_pausing(peer: Peer) -> None:
    """Has always requests on their way, until the server ends."""
    peer.record.innocent = True
    if not await peer.open():
        return
    ahead = peer.chance.choice([1, 3])
    until = peer.world.ends_at()
    if not await peer.send([peer.request(WORK, 10, 10) for _ in range(ahead)]):
        return
    while peer.sim.time < until and len(peer.record.sent) < 600:
        if not await peer.send([peer.request(WORK, 10, 10)]) or not await peer.answered(left=ahead):
            return
        if not peer.world.scenario.knows(WORK):
            await peer.pause(0.1, 0.3)
    if await peer.answered():
        peer.close()


async def reading_late(peer: Peer) -> None:
    """Asks for much, one thing after the other, before it reads."""
    peer.record.innocent = True
    peer.may_end(CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE)  # it asks nothing while it reads
    if "blocking" in peer.world.scenario.characters:
        peer.may_end(CloseReason.WRITE_TIMEOUT)  # the pauses in which it asks become long
    if peer.world.scenario.style == "queue" or "broadcasting" in peer.world.scenario.characters:
        peer.may_end(FULL)  # what others make the server write finds no room behind its own answers
    if not await peer.open():
        return
    for _ in range(12):
        if not await peer.send([peer.request(size=30_000, padding=10)]):
            return
        await peer.sim.sleep(0.1)
    if await peer.answered(30.0):
        peer.close()


# ---- culprits


async def dripping(peer: Peer) -> None:
    """Sends byte by byte; it is done in time, or it takes too long."""
    slow = peer.chance.random() < 0.5
    peer.record.sequential = True
    if slow:
        peer.may_end(CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE, CloseReason.IDLE_TIMEOUT)
    else:
        peer.record.innocent = True
        peer.may_end(CloseReason.MIN_RATE)
    if not await peer.open():
        return
    for _ in range(2):
        pause = 0.5 if slow else 0.02
        if not await peer.drip(peer.request(size=10, padding=30), pause) or not await peer.answered():
            return
    peer.close()


async def sending_slowly(peer: Peer) -> None:
    """Has little bandwidth for long requests: under TLS, a record takes seconds to arrive."""
    peer.record.sequential = True
    peer.may_end(CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE, CloseReason.IDLE_TIMEOUT)
    if not await peer.open(bandwidth=500, handshake=False):
        return
    if peer.world.scenario.tls and not await peer.shake_hands("TLSv1.3"):  # its records are as long as requests
        return
    for _ in range(20):
        if not await peer.send([peer.request(size=10, padding=6000)]) or not await peer.answered(60.0):
            return
    peer.close()


async def silent(peer: Peer) -> None:
    """Says nothing more after a request."""
    peer.may_end(CloseReason.IDLE_TIMEOUT, CloseReason.READ_TIMEOUT)
    if await peer.open() and await peer.ask():
        await peer.read_to_end()


async def silent_before_its_handler(peer: Peer) -> None:
    """Sends no PROXY header, or does not begin its handshake."""
    peer.may_end(CloseReason.IDLE_TIMEOUT, CloseReason.READ_TIMEOUT)
    if await peer.open(header=peer.chance.random() < 0.5, handshake=False):
        await peer.read_to_end()


async def resetting(peer: Peer) -> None:
    """Sends a reset at some moment."""
    peer.may_end(CloseReason.RESET)
    if not await peer.open():
        return
    if await peer.ask() and await peer.send([peer.request(WORK, 5000)]):
        await peer.pause(0, 1)
        peer.abort()


async def not_reading(peer: Peer) -> None:
    """Asks for much and reads nothing."""
    peer.may_end(*SLOW, FULL, CloseReason.RESET, CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE)
    if not await peer.open(handshake=True):
        return
    for _ in range(15):
        if not await peer.send([peer.request(size=50_000, padding=10)]):
            return
    await peer.pause(10, 60)
    peer.abort()


async def flooding(peer: Peer) -> None:
    """Connects again and again, and makes the handler fail."""
    for number in range(30):
        each = peer if not number else Peer(peer.world, "flooding")
        each.may_end(CloseReason.HANDLER_ERROR)
        if await each.open() and await each.ask(FAIL):
            each.close()


async def reconnecting(peer: Peer) -> None:
    """Comes and goes, sometimes before it is served."""
    for number in range(5):
        each = peer if not number else Peer(peer.world, "reconnecting")
        each.may_end(CloseReason.RESET)
        if await each.open(handshake=each.chance.random() < 0.7):
            if each.chance.random() < 0.5 and each.stream is not None and each.record.end == "":
                await each.pause(0, 0.3)
            (each.close if each.chance.random() < 0.5 else each.abort)()


async def failing(peer: Peer) -> None:
    """Makes the handler fail."""
    peer.may_end(CloseReason.HANDLER_ERROR)
    failed = await peer.open() and await peer.ask() and await peer.send([peer.request(FAIL)])
    if failed and not await peer.read_to_end(10.0):
        peer.record.problem("ends", "is still connected although its handler has failed")


async def blocking(peer: Peer) -> None:
    """Makes the handler block the loop, again and again."""
    peer.may_end(CloseReason.IDLE_TIMEOUT, CloseReason.READ_TIMEOUT)
    if not await peer.open():
        return
    for _ in range(peer.chance.choice([2, BLOCKS])):
        if not await peer.ask(BLOCK, size=0):
            return
    peer.close()


async def garbling(peer: Peer) -> None:
    """Sends no request, no TLS, no PROXY header."""
    peer.may_end(*UNLIMITED)
    early = peer.chance.random() < 0.5
    if await peer.open(header=not early, handshake=not early) and await peer.send([b"GET / HTTP/3\r\n\r\n"]):
        await peer.read_to_end()


MOST_EMPTY = 32
"""TLS records in a row that may bring nothing."""

PIECES = 40

EMPTY: list[tuple[str, Callable[[Records], bytes]]] = [
    ("TLSv1.3", Records.key_update),
    ("TLSv1.3", lambda records: records.key_update(requested=False)),
    ("TLSv1.3", lambda records: records.record(b"")),
    ("TLSv1.2", Records.hello),
    ("TLSv1.2", lambda records: records.record(b"")),
]
"""What makes a record that brings nothing, and the version of TLS: key updates, renegotiations, empty records."""


async def flooding_with_records(peer: Peer) -> None:
    """Sends TLS records that bring nothing: more than it may, or as many and then a byte, or without ever reading."""
    version, empty = peer.chance.choice(EMPTY)
    flood = peer.chance.choice([_too_many_records, _records_and_bytes, _records_unread])
    if version == "TLSv1.2":
        flood = _records_unread  # what comes back is not decrypted
    if await peer.open(handshake=False) and await peer.shake_hands(version):
        assert peer.records is not None
        await flood(peer, peer.records, empty)


async def _too_many_records(peer: Peer, records: Records, empty: Callable[[Records], bytes]) -> None:
    peer.may_end(CloseReason.TLS_ERROR, CloseReason.IDLE_TIMEOUT, CloseReason.READ_TIMEOUT)
    flooded = await peer.ask() and await peer.send_records(b"".join(empty(records) for _ in range(MOST_EMPTY + 1)))
    if flooded and not await peer.read_to_end(5.0):
        peer.record.problem("ends", f"is still connected after {MOST_EMPTY + 1} records that bring nothing")


async def _records_and_bytes(peer: Peer, records: Records, empty: Callable[[Records], bytes]) -> None:
    """It does no more than it may, so it is answered."""
    peer.record.innocent = peer.record.sequential = True
    # It reads nothing meanwhile: what TLS answers to many records may fill small buffers.
    peer.may_end(CloseReason.MIN_RATE, CloseReason.WRITE_TIMEOUT)
    for byte in peer.request(size=10, padding=0):
        piece = b"".join(empty(records) for _ in range(MOST_EMPTY - 1)) + records.record(bytes([byte]))
        if not await peer.send_records(piece):
            return
        await peer.pause(0, 0.05)
    if await peer.answered():
        peer.close()


async def _records_unread(peer: Peer, records: Records, empty: Callable[[Records], bytes]) -> None:
    """Neither does it read what the server's TLS has to say, so it is disconnected if that is much."""
    peer.may_end(*SLOW, FULL, CloseReason.RESET, CloseReason.READ_TIMEOUT, CloseReason.MIN_RATE)
    if peer.stream.closed():  # a fault has reset the connection just after the handshake
        return
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(PIECES):
        piece = b"".join(empty(records) for _ in range(MOST_EMPTY - 1)) + records.record(b"x")
        if not await peer.send_records(piece):
            break
    await peer.pause(10, 60)
    peer.abort()


CHARACTERS: dict[str, Callable[[Peer], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        honest,
        thinking,
        pipelining,
        half_closing,
        dripping,
        sending_slowly,
        silent,
        silent_before_its_handler,
        resetting,
        not_reading,
        reading_late,
        flooding,
        reconnecting,
        never_pausing,
        broadcasting,
        failing,
        blocking,
        quitting,
        uploading,
        downloading,
        leaving_reading,
        watching,
        writing_only,
        garbling,
        flooding_with_records,
    )
}
"""All characters, by name."""


async def act(world: Surroundings, character: str) -> None:
    """Be a client of this character, from some moment on."""
    peer = Peer(world, character)
    await peer.pause(0, min(3.0, world.scenario.shutdown_at * 0.8))
    await CHARACTERS[character](peer)
