"""What the tests of several workers share: starting a launcher, and looking at the processes it has started."""
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from commands import ROOT, TIME_OUT

DIST = ['--kvstore', 'dist_sync', '--sync_timeout', '40']


def launcher(num_workers, path, *argv, options=()):
    """The command that starts so many workers of a script."""
    return [sys.executable, '-m', 'distributed.launch', '-n', str(num_workers), *options, str(path), *map(str, argv)]


def launched(num_workers, *argv, **kwargs):
    """A training with so many workers, to its end."""
    return subprocess.run(launcher(num_workers, ROOT / 'train_mnist.py', *argv, *DIST), capture_output=True, text=True,
                          timeout=TIME_OUT, **kwargs)


@contextlib.contextmanager
def running(line, is_ready):
    """The process of a command, once `is_ready()`; what it prints is in output.txt."""
    with open('output.txt', 'w') as output:
        process = subprocess.Popen(line, stdout=output, stderr=output)
        try:
            wait_for(lambda: is_ready() or process.poll() is not None)
            assert process.poll() is None, Path('output.txt').read_text()
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes():
    """{process: arguments} of everything that works in this folder."""
    found = {}
    for entry in Path('/proc').iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.readlink(entry / 'cwd') == os.getcwd() and int(entry.name) != os.getpid():
                    found[int(entry.name)] = (entry / 'cmdline').read_bytes().decode().split('\0')
    return found


def assert_no_process_is_left():
    wait_for(lambda: not processes(), seconds=15)


def role(name, rank=None):
    """The process that has this role, not its guard; None where there is none yet."""
    marks = [f'DMLC_ROLE={name}'] + ([] if rank is None else [f'DMLC_TASK_ID={rank}'])
    for process, argv in processes().items():
        with contextlib.suppress(OSError):
            environment = Path(f'/proc/{process}/environ').read_bytes().decode().split('\0')
            if 'distributed.guard' not in argv and all(mark in environment for mark in marks):
                return process
    return None
