"""A deterministic simulation: the package's real code, under a clock, a network and an order of events that are drawn
from a seed. `Simulation` and `Faults` are public, in :mod:`iostreamsrv.testing`.

**What is real and what is not.** The server, its streams, the hub, deadlines, limits, shutdown, TLS: all of it is the
code that serves real clients, and none of it is patched. Below it there is a loop with its own clock and its own
kernel. ``runtime.clock`` and ``runtime.kernel`` ask the running loop for these two, and so nothing else has to change:

::

    Simulation          what users hold: serve, connect, sleep, partition, the trace
      SimulationLoop    an asyncio loop. Its time stands still while anything is ready, then jumps to what is next
        Selector        what of the loop's readers is ready; its select() is where the time jumps
        Network         the loop's kernel: descriptors, addresses, partitions, and the agenda of what arrives when
          Epoll         what the hub has in place of select.epoll
          SimulatedSocket   one end of a connection, or a listener, with the methods of socket.socket
            Flow        one direction of a connection: send buffer, wire, receive buffer
      Injector          decides whether a fault strikes here, from the seed
      Disturbances      kicks, cancels, shuts down and so on, at instants that are drawn
      Trace             (time, who, what) of all that happened, and a digest of it
        timeline        the trace as a picture
    shrinking           a failing test run again with fewer faults; used by the pytest fixture

**A turn.** The loop runs all that is ready. When nothing is, ``select()`` takes the next instant at which a timer is
due or a segment arrives, moves the clock there, and lets the arrivals happen: bytes enter receive buffers, sockets wake
the epolls and selectors that watch them. That is all the network does; nothing runs in between.

**What is drawn.** The order of descriptors that are ready in one turn; the order of timers that are due at the same
instant; the delay of each segment, whether it is cut in two and where; each fault. Callbacks of ``call_soon`` stay in
their order, as asyncio promises. Three generators are used, for order, network and faults, each only when there is a
choice, so that a change in one of the three does not change the other two.

**The same seed gives the same trace**, as long as the code itself is deterministic. These are not: iteration over a
set of objects (it goes by address), the garbage collector (which is therefore switched off during a run, and called at
fixed turns), threads, real sockets and files, `random` without a seed, and the length of ECDSA signatures. The trace
has lengths and events, and no bytes, as TLS encrypts differently each time.

**What is not simulated.** Computing takes no time, unless a test says so (`Simulation.stop`). There is one process: a
stop stops servers and clients. The wire neither loses nor reorders segments that the receiver could see: TCP repairs
that, and what is seen of it is a delay. There is no congestion control, no Nagle, no delayed acknowledgement, no urgent
data, no datagram. Names are resolved by the system, so use addresses. A function that is given to ``run_in_executor``
runs in the loop's own thread, in a later turn.
"""

from .faults import Faults
from .loop import SimulationLoop, SimulationStuck
from .simulation import Simulation

__all__ = ["Faults", "Simulation", "SimulationLoop", "SimulationStuck"]
