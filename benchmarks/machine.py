"""The machine: its properties, its cores, and their use by other processes."""

import importlib.metadata
import os
import platform
import resource
import socket
import time
from pathlib import Path
from typing import NamedTuple

BACKLOG = 4096  # so that no peer loses a connection that another would have taken
CHUNK = 64 << 10
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Cores(NamedTuple):
    """The core of the server, and the core for everything else."""

    server: int
    load: int

    @classmethod
    def pick(cls) -> "Cores":
        """Pick two cores that this process may use; the same one twice if there is only one."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[-1])


def allow_files() -> int:
    """Raise this process's limit of open files to the maximum, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def avoid_pacing(sock: socket.socket) -> None:
    """Have a socket, or what a listener accepts, send as fast as it can: BBR, the default on some machines, goes by
    timers instead, and a server that waits for them does not show how fast it is.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def busy_seconds(cores: Cores) -> float:
    """CPU seconds used on these cores since boot by all processes and by the hypervisor."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total / TICKS_PER_SECOND


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, all threads, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux's number for the CPU clock of another process


def resident_bytes(pid: int) -> int:
    """Resident memory of a process. Exact, which the figure in ``/proc/PID/status`` is not."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise OSError(f"no Rss in /proc/{pid}/smaps_rollup")


def describe() -> dict[str, str]:
    """The properties of the machine that figures depend on, for the report."""
    import iostreamsrv  # not for the servers of others, which import this module, too

    found = {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    found["iostreamsrv"] = f"{iostreamsrv.__version__}, {iostreamsrv.core} core"
    for package in ("tornado", "uvloop"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
