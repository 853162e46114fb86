"""Shared test set-up: repository root importable, one thread, fixed seeds."""
import os
import shutil
import signal
import sys
from pathlib import Path

# Under nohup, or in the background of a script, these are ignored, here and in all subprocesses.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ['OMP_NUM_THREADS'] = '1'  # read once, when mxnet is imported; subprocesses inherit it
# The only mirror is a local port where nobody listens, and no proxy stands before it.
os.environ.update(DRAW_MNIST_MIRROR='http://127.0.0.1:9/', no_proxy='*')
ROOT = Path(__file__).resolve().parent.parent
os.environ['PYTHONPATH'] = str(ROOT)  # for `python -m` in subprocesses
sys.path.insert(0, str(ROOT))

import system  # noqa: E402, F401

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from pictures import plot  # noqa: E402
from small_runs import new_folder, train, write_images  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start every test from the same NumPy and MXNet random streams."""
    np.random.seed(1)
    mx.random.seed(1)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing a figure takes longer than training for it."""
    monkeypatch.setattr(plot, 'figure', lambda table: None)
    monkeypatch.setattr(plot, 'png', lambda figure: b'a figure')


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, with images.npy."""
    monkeypatch.chdir(tmp_path)
    write_images()
    return tmp_path


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """The folder of a small finished run, which no test changes."""
    folder = new_folder(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / train()


@pytest.fixture
def run(workplace, finished):
    """A copy of a small finished run for a test to change, beside its images; a path from the current folder."""
    return Path(shutil.copytree(finished, Path('results') / finished.name))
