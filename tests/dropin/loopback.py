"""Runs a command in a network namespace that has a loopback interface only: ``python loopback.py COMMAND ...``.

Some suites listen on all interfaces, or on a fixed port. Here nobody outside reaches them, and no other process has
that port. Where the kernel does not permit it, it says so on stderr, and the command runs without.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def enter_namespace() -> bool:
    """Move this process into a new network namespace; whether the kernel permits it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        print(f"unshare(CLONE_NEWNET) is refused: {os.strerror(ctypes.get_errno())}", file=sys.stderr, flush=True)
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xH", request)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    return True


if __name__ == "__main__":
    enter_namespace()
    os.execvp(sys.argv[1], sys.argv[1:])
