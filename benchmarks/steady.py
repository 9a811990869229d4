"""The servers of `peers`, with the same arguments, without iostreamsrv's watchdog: how often that looks after the loop
depends on the time, and a server under callgrind takes a lot more of it for the same work.
"""

import sys

from . import peers

NEVER = 1e6  # seconds

if __name__ == "__main__":
    if sys.argv[1].startswith("iostreamsrv"):
        import iostreamsrv.server.watchdog

        iostreamsrv.server.watchdog.TICK = NEVER
    peers.main(*sys.argv[1:])  # type: ignore[arg-type]
