"""The engine of a stream.

A stream is one object, as each message passes most of it. Its class is written in layers, each a module with one noun,
and each may use those before it: ``core`` (its fields), ``sending``, ``writing``, ``receiving``, ``pending`` (the
pending read), ``completion``, ``reading``, ``closing``, ``lifecycle`` (``BaseIOStream``), ``sockets``, and
``handshake`` for TLS. They are bases in a line and not objects of their own, because a call from one object to another
costs more than all else that most of them do; and a line of bases, as it is what ``__slots__`` and a compiler allow.

What moves the bytes is an object: the transport (``transports``). ``state`` says in which states a stream can be,
``served`` what a server and its streams use of each other.

*Reading.* Nothing is received unless somebody reads. A read takes from the buffer, else from the kernel, else it waits
for the hub's dispatch, which completes its future and steps the waiting task at once.

*Writing.* What the kernel takes at once is done at once; the rest is queued. While the hub is dispatching and more
requests wait, on this stream or on others, writes are **corked**: reported done, and sent together at the end of the
hub's run. Pipelined requests are so answered by one system call, and a peer on another core is woken once for a batch
of replies instead of once for each. What was reported done is committed: ``close()`` delivers it.
"""
