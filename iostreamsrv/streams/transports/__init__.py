"""What a stream moves bytes over: a socket, TLS on a socket, a pipe, memory, or methods that a user overrides.

A transport never waits and knows no loop. If nothing can be received or sent now, it raises `BlockingIOError`, and the
stream waits for the hub. A stream has one transport at a time: ``start_tls`` and the TLS handshake replace it.
"""
