"""How much memory there is."""
import contextlib
import resource
from pathlib import Path

_CONTAINER = '/sys/fs/cgroup/memory.'  # start of the names of cgroup v2's files


def available():
    """Bytes that this process can still take: of the machine's memory, and below the limits on it that are set."""
    limits = [_field('/proc/meminfo', 'MemAvailable:')]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - _field('/proc/self/status', 'VmSize:'))
    with contextlib.suppress(OSError, ValueError):  # of a container; 'max' where it has none
        most, now = (int(Path(f'{_CONTAINER}{name}').read_text()) for name in ('max', 'current'))
        # What was read or written long ago counts as taken, and is given back when memory is short.
        limits.append(most - now + _field(f'{_CONTAINER}stat', 'inactive_file', unit=1))
    return max(0, min(limits))


def _field(path, name, unit=1024):
    """A number in a file of the kernel's, in bytes, 0 where it has none; `unit` is that of the file, kB as a rule."""
    with open(path) as file:
        return next((unit * int(line.split()[1]) for line in file if line.startswith(name)), 0)
