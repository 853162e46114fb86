"""How much memory there is."""
import contextlib
import resource
from pathlib import Path


def available():
    """Bytes that this process can still take: of the machine's memory, and below the limits on it that are set."""
    limits = [_field('/proc/meminfo', 'MemAvailable:')]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - _field('/proc/self/status', 'VmSize:'))
    with contextlib.suppress(OSError, ValueError):  # of a container; 'max' where it has none
        most, now = (int(Path(f'/sys/fs/cgroup/memory.{name}').read_text()) for name in ('max', 'current'))
        limits.append(most - now)
    return max(0, min(limits))


def _field(path, name):
    """A number of kB in a file of the kernel's, in bytes."""
    with open(path) as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
