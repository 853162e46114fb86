"""Shared test set-up: repository root importable, one thread, fixed seeds."""
import os
import shutil
import signal
import sys
from pathlib import Path

# Under nohup, or in the background of a script, these are ignored, here and in all subprocesses.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ['MXNET_CPU_TEMP_COPY'] = '4'  # or memory grows for a while, as the thousands of pieces come into use
os.environ['OMP_NUM_THREADS'] = '1'  # read once, when mxnet is imported; subprocesses inherit it
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ['PYTHONPATH'] = ROOT  # for `python -m` in subprocesses
sys.path.insert(0, ROOT)

import system  # noqa: E402, F401

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from idx import write_mnist  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start every test from the same NumPy and MXNet random streams."""
    import mxnet as mx
    np.random.seed(1)
    mx.random.seed(1)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    """The only mirror is a port of this machine where nobody listens, and no proxy stands before it."""
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture
def no_figures(monkeypatch):
    """Spare the trainings of this test the figure of their curves, which takes as long as all else of a small one."""
    from runs.log import Log
    monkeypatch.setattr(Log, 'save_curves', lambda log: None)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, with small MNIST files in data/."""
    (tmp_path / 'data').mkdir()
    write_mnist(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """The folder of a small finished run, which no test changes."""
    from commands import new_folder, train
    folder = new_folder(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / train('-t', '64')


@pytest.fixture
def run(workplace, finished):
    """A copy of a small finished run for a test to change, beside its images; a path from the current folder."""
    return Path(shutil.copytree(finished, Path('results') / finished.name))


@pytest.fixture
def saved(tmp_path):
    """A run's folder with config.json and last.safetensors, and the network that was saved."""
    from params import ARGUMENTS, make_net
    from runs import storage
    net = make_net()
    storage.write_config(tmp_path, {'arguments': ARGUMENTS})
    storage.save_params(tmp_path, 'last', net)
    return tmp_path, net
