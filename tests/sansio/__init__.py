"""No sockets, no loop, no clock: these tests alone cover every line and branch of `iostreamsrv.sansio`."""
