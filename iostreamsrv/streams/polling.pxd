cpdef double read_clock(object clock) except? -1
cpdef bint poll(object epoll, list streams, list due) except -1
