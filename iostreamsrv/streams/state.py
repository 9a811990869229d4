"""The state of a stream: a phase, and what has become of each direction.

A connection has two directions, and each ends separately: the peer's EOF ends the input, ``send_eof()`` ends the
output. Above both is the stream, which is open, is being closed, or is closed. A single list of states would have to
name every combination, and say what reads and writes do in each. So there are three small state machines, and they
meet in a few places only.

**The phase** (``_phase``) only ever goes up::

    OPEN ──aclose()──> CLOSING ──close() of a server that closes in order──> FINISHING ──> CLOSED
      └──────────────────── close(), abort(), an error, the peer's EOF ─────────────────────┘

=========  ================  ======  ========  =====================================================
phase      reads             writes  closed()  what goes on
=========  ================  ======  ========  =====================================================
OPEN       yes               yes     False
CLOSING    what is buffered  raise   False     output is sent, then EOF; then the stream lingers
FINISHING  what is buffered  raise   True      as in CLOSING, but for the user the stream is closed
CLOSED     what is buffered  raise   True      committed output is sent; then the descriptor is closed
=========  ================  ======  ========  =====================================================

**Before it is connected** (``_connect_future`` is set; under TLS until the handshake is done) a stream queues, in any
phase: reads wait, writes go into ``_output``, and a dispatch continues the connect instead.

**The input** has ended when ``_eof`` is set; it holds the reason. Buffered bytes stay readable. The stream is then
closed with that reason, once its output is sent; with ``allow_half_open`` only after the output has ended as well.

**The output** has ended when ``_sending_eof`` is set: writes raise. EOF itself is sent after what is queued.
``_corked`` and ``_output`` are None or hold output: the first waits for the end of the hub's run, the second for
room in the kernel. They never hold output at the same time, or later writes would overtake earlier ones.

The phase is an int because every message compares it.
"""

from typing import Final

OPEN: Final[int] = 0
CLOSING: Final[int] = 1
FINISHING: Final[int] = 2
CLOSED: Final[int] = 3
