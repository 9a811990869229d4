"""The state of a stream: a phase, and what has become of each direction.

A connection has two directions, and each ends by itself: the peer ends what we read (its EOF), ``send_eof()`` ends what
we write. Above both there is the stream, which is open, is being closed, or is closed. One list of states for all of it
would have to name every combination, and say in each what reads and writes do. So there are three small machines, and
they meet in a few places only.

**The phase** (``_phase``) only ever goes up::

    OPEN ──aclose()──> CLOSING ──close() of a server that closes in order──> FINISHING ──> CLOSED
      └──────────────────── close(), abort(), an error, the peer's EOF ─────────────────────┘

=========  ================  ======  ========  =====================================================
phase      reads             writes  closed()  what goes on
=========  ================  ======  ========  =====================================================
OPEN       yes               yes     False
CLOSING    what is buffered  raise   False     output is sent, then EOF; then the stream lingers
FINISHING  what is buffered  raise   True      the same, but its user is done with it
CLOSED     what is buffered  raise   True      committed output is sent; then the descriptor is closed
=========  ================  ======  ========  =====================================================

**Before it is connected** (``_connect_future`` is there, under TLS until the handshake is done) a stream in any phase
queues: reads wait, writes go into ``_write_buffer``, and a dispatch goes on with the connection instead.

**The input** has ended when ``_eof`` holds the reason. Buffered bytes stay readable. The stream is then closed with
that reason, once its output has left; with ``allow_half_open`` only after the output has ended as well.

**The output** has ended when ``_sending_eof`` is set: writes raise. EOF itself leaves after what is queued. ``_corked``
and ``_write_buffer`` are None or hold output: the first waits for the end of the hub's run, the second for room in the
kernel. Both at once do not occur, or what was written later would overtake.

The phase is an int, as it is compared with every message.
"""

from typing import Final

OPEN: Final[int] = 0
CLOSING: Final[int] = 1
FINISHING: Final[int] = 2
CLOSED: Final[int] = 3
