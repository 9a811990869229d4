from iostreamsrv.streams.transports.carrier cimport SocketCarrier

cdef class SocketTransport(SocketCarrier):
    pass
