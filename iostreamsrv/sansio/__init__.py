"""Bytes in, bytes out: buffers and reads without a socket, a loop or a clock, so that they can be tested alone."""
