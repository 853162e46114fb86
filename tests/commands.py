"""The commands as processes, and what their pictures show."""
import subprocess
import sys

import numpy as np
from PIL import Image, ImageSequence

from small_runs import ROOT, TIME_OUT

RED, GREEN = (255, 0, 0), (0, 255, 0)


def command(name, *argv):
    return [sys.executable, str(ROOT / name), *map(str, argv)]


def script(name, *argv, **kwargs):
    """Run a script to its end, as a process of its own."""
    return subprocess.run(command(name, *argv), capture_output=True, text=True, timeout=TIME_OUT, **kwargs)


def frames(path):
    """The frames of a GIF as RGB arrays."""
    with Image.open(path) as image:
        return [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]


def colours_per_frame(path):
    """For each frame: is there red, is there green."""
    return [tuple(bool((frame == colour).all(axis=-1).any()) for colour in (RED, GREEN)) for frame in frames(path)]
