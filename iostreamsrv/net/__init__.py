"""Sockets that listen, and the kernel options of connections."""
