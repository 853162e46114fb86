"""The commands as processes."""
import os
import subprocess
import sys
import time

from conftest import ROOT

TIME_OUT = 120  # seconds, for one process


def python(*argv, folder=None, **environment):
    """Run Python to its end, as a process of its own, in a folder (the current one) and with more environment."""
    return subprocess.run([sys.executable, *map(str, argv)], cwd=folder, capture_output=True, text=True,
                          timeout=TIME_OUT, env={**os.environ, **environment})


def started(name, *argv):
    """A script that runs as a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / name), *map(str, argv)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def wait_for(function, alive=lambda: True):
    """What `function` returns once that is true."""
    deadline = time.monotonic() + TIME_OUT
    while not (value := function()):
        assert alive() and time.monotonic() < deadline, f'{function} is still {value!r}'
        time.sleep(0.05)
    return value
