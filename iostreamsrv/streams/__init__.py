"""The engine of a stream.

A stream is one object, because each message passes through most of it. Its class is written in layers, one module
each, and a layer may use those before it: ``core`` (the fields), ``sending``, ``writing``, ``receiving``, ``pending``
(the pending read), ``completion``, ``reading``, ``closing``, ``lifecycle`` (``BaseIOStream``), ``sockets``, and
``handshake`` for TLS. The layers are base classes and not separate objects: a call from one object to another would
cost more than the work of most layers. The bases form one line, because ``__slots__`` and a compiler allow only that.

The transport is a separate object (``transports``): it moves the bytes. ``state`` explains the states of a stream,
``served`` is the interface between a server and its streams.

*Reading.* A stream receives only while a read wants bytes. A read first takes from the buffer, then from the kernel;
otherwise it waits for the hub's dispatch, which completes its future and steps the waiting task at once.

*Writing.* A write that the kernel takes at once is done at once; the rest is queued. While the hub is dispatching and
more requests wait, on this stream or on others, writes are **corked**: reported done, and sent together at the end of
the hub's run. So one system call answers a batch of pipelined requests, and a peer on another core wakes up once for
the batch, not once for each reply. What was reported done is committed: ``close()`` delivers it.
"""
