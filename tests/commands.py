"""The commands as processes, and what their pictures show."""
import os
import subprocess
import sys
import time

import numpy as np
from PIL import Image, ImageSequence

from conftest import ROOT
from small_runs import TIME_OUT

RED, GREEN = (255, 0, 0), (0, 255, 0)


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


def frames(path):
    """The frames of a GIF as RGB arrays."""
    with Image.open(path) as image:
        return [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]


def colours_per_frame(path):
    """For each frame: is there red, is there green."""
    return [tuple(bool((frame == colour).all(axis=-1).any()) for colour in (RED, GREEN)) for frame in frames(path)]
