"""Clients in the middle of a conversation: a program, until its stdin is closed. Prints what became of them as JSON.

Each sends a numbered line in two pieces, waits for the answer, which has the number of lines that the server has had of
it, and goes on after a pause. So bytes of a line are often on their way when the worker changes.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

PAUSE = 0.25
"""Seconds between two lines of a client."""

PIECES = 0.1
"""Seconds between the two pieces of a line."""

PATIENCE = 10.0


@dataclass
class Found:
    """What became of all.

    :ivar closed: clients whose connection has ended.
    :ivar wrong: answers that do not fit: bytes were lost, doubled, or of somebody else.
    :ivar worst: the longest wait for an answer, in seconds.
    :ivar pids: who has answered last, by client.
    :ivar moves: how often an answer came from another process than the one before.
    """

    closed: int = 0
    wrong: int = 0
    worst: float = 0.0
    moves: int = 0
    pids: dict[int, int] = field(default_factory=dict)


async def talk(client: int, port: int, stop: asyncio.Event, found: Found) -> None:
    await asyncio.sleep(client * 0.002)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while not stop.is_set():
        count += 1
        try:
            writer.write(b"line %d" % count)
            await asyncio.sleep(PIECES)
            began = time.monotonic()
            writer.write(b" of %d\n" % client)
            answer = await asyncio.wait_for(reader.readline(), PATIENCE)
        except (OSError, TimeoutError):
            answer = b""
        if not answer:
            found.closed += 1
            break
        found.worst = max(found.worst, time.monotonic() - began)
        pid, lines, rest = answer.split(b" ", 2)
        found.wrong += int(lines) != count or rest != b"line %d of %d\n" % (count, client)
        found.moves += found.pids.get(client, int(pid)) != int(pid)
        found.pids[client] = int(pid)
        await asyncio.sleep(PAUSE)
    writer.close()


async def main(words: dict[str, Any]) -> Found:
    stop, found = asyncio.Event(), Found()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    await asyncio.gather(*(talk(client, words["port"], stop, found) for client in range(words["clients"])))
    return found


if __name__ == "__main__":
    result = asyncio.run(main(json.loads(sys.argv[1])))
    print(json.dumps({**vars(result), "pids": list(result.pids.values())}))
