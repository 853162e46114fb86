"""Start a launcher, and look at the processes that it has started."""
import contextlib
import os
import subprocess
import sys
from pathlib import Path

from commands import TIME_OUT, wait_for


def launcher(num_workers, path, *argv, options=()):
    """The command that starts so many workers of a script."""
    return [sys.executable, '-m', 'distributed.launch', '-n', str(num_workers), *options, str(path), *map(str, argv)]


def launched(num_workers, path, *argv, options=(), **kwargs):
    """Run a launcher to its end, after which no process is left."""
    done = subprocess.run(launcher(num_workers, path, *argv, options=options), capture_output=True, text=True,
                          timeout=TIME_OUT, **kwargs)
    assert_no_process_is_left()
    return done


@contextlib.contextmanager
def running(line, is_ready):
    """A running command, once `is_ready()`; it prints to output.txt, and leaves no process behind."""
    with open('output.txt', 'w') as output:
        process = subprocess.Popen(line, stdout=output, stderr=output)
        try:
            wait_for(lambda: is_ready() or process.poll() is not None)
            assert process.poll() is None, Path('output.txt').read_text()
            yield process
        finally:
            process.kill()
            process.wait()
    assert_no_process_is_left()


def processes():
    """{process: words of its command line} of all that work in this folder."""
    found = {}
    for entry in Path('/proc').iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.readlink(entry / 'cwd') == os.getcwd():
                    found[int(entry.name)] = (entry / 'cmdline').read_bytes().decode().split('\0')
    return found


def assert_no_process_is_left():
    wait_for(lambda: not processes())


def find(*words, guard=False):
    """The process, or its guard, that has these words in its command line or environment; None if there is none."""
    for process, line in processes().items():
        with contextlib.suppress(OSError):
            text = ' '.join(line) + Path(f'/proc/{process}/environ').read_bytes().decode()
            if ('distributed.guard' in line) == guard and all(word in text for word in words):
                return process
    return None


SCHEDULER, SERVER = ('"scheduler"',), ('"server"',)  # for `find`


def worker(rank):
    return 'DMLC_ROLE=worker', f'DMLC_TASK_ID={rank}\0'
