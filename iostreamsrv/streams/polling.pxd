cpdef double read_clock(object clock) except? -1
cpdef bint poll(object epoll, dict streams, list due) except -1
