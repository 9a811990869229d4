"""The engine of a stream: what it knows (core), how it sends (writing), how it receives (reading).

*Reading.* Nothing is received unless somebody reads. A read takes from the buffer, else from the kernel, else it
waits for the hub's dispatch, which completes its future and steps the waiting task at once.

*Writing.* What the kernel takes at once is done at once; the rest is queued. While the hub is dispatching and more
requests wait, on this stream or on others, writes are **corked**: reported done, and sent together at the end of the
hub's run. Pipelined requests are so answered by one system call, and a peer on another core is woken once for a batch
of replies instead of once for each. What was reported done is owed: ``close()`` delivers it.
"""
