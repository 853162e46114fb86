"""Shared test set-up: repository root importable, one thread, fixed seeds."""
import os
import sys

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


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, with small MNIST files in data/."""
    (tmp_path / 'data').mkdir()
    write_mnist(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path
