"""Run a command until it ends or the standard input does; a byte on the standard input asks it to stop.

    python -m distributed.guard SHARE COUNT NAME=VALUE ... COMMAND ...

A guard stands between the launcher and every process, on the process's own host. It ends when the launcher does,
however that ends, since its standard input ends then; through SSH too. It imports nothing but Python's own, to be there
at once.
"""
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 5  # seconds between SIGTERM and SIGKILL


def guard(share, environment, command):
    """Run a command until it ends or the standard input does; a byte on the standard input asks it to stop.

    Parameters
    ----------
    share : int
        Processes, or contexts of the CPU, among which this host's processors are divided, or 0 for one thread.
    environment : list of str
        NAME=VALUE.
    command : list of str

    Returns
    -------
    The command's exit code, or 128 + the signal that ended it.
    """
    variables = {**os.environ, **dict(pair.split('=', 1) for pair in environment)}
    if not {'OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS'} & variables.keys():
        threads = max(1, len(os.sched_getaffinity(0)) // share) if share else 1
        variables['OMP_NUM_THREADS'] = str(threads)
    libc, own = ctypes.CDLL(None), os.getpid()

    def die_with_guard():
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != own:  # it was faster
            os._exit(1)

    child = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True,
                             preexec_fn=die_with_guard)
    threading.Thread(target=_obey, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _obey(child):
    while os.read(0, 1):
        child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    time.sleep(GRACE)
    child.kill()


if __name__ == '__main__':
    _, own_share, count, *rest = sys.argv
    sys.exit(guard(int(own_share), rest[:int(count)], rest[int(count):]))
