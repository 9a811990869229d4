"""Sockets that listen, and what the kernel is told of them."""
