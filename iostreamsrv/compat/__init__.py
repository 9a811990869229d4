"""Private names of Tornado's that other projects use. Each is here for them only, and nothing of ours uses it.

| name | who uses it |
|---|---|
| ``stream._write_buffer``, ``_total_write_index`` | distributed: queues a message's frames, then calls ``write(b"")`` |
| ``stream._read_buffer_size``, ``_consume`` | pynsq: takes what was received before compression begins |
| ``server._sockets`` | distributed, bokeh, pytest-jupyter, pytest-tornasync: the port that a server listens on |

Other private names of Tornado's streams and servers raise an `AttributeError` that says what they are.
"""
