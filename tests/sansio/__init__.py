"""Bytes in, bytes out: no sockets, no loop, no clock. These alone cover every line and branch of `iostreamsrv.sansio`."""
