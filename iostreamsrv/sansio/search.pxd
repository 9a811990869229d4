cpdef Py_ssize_t find(bytes data, bytes needle, Py_ssize_t begin=*) except -2
