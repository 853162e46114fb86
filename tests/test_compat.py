"""system/compat.py and system/devices.py: what a machine must have, and what MXNet finds in its environment."""
import ast
import io
import os
import re
import signal

from system import devices

import pytest

from commands import python
from conftest import ROOT

SCRIPTS = 'train_mnist.py', 'sample.py', 'evaluate.py'


# What a script says on another machine

MISSING = '''
import importlib.util
usual = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == '{}' else usual(name, *rest)
'''
ELSEWHERE = {  # code that pretends, and what the line says
    'an older Python': ('import sys; sys.version_info = (3, 8, 18)', r'this is Python .*; use Python 3\.9 to 3\.13'),
    'a newer Python': ('import sys; sys.version_info = (3, 14, 0)', r'this is Python .*; use Python 3\.9 to 3\.13'),
    'a Mac': ('import platform; platform.system = lambda: "Darwin"', 'needs Linux on x86_64'),
    'an ARM': ('import platform; platform.machine = lambda: "aarch64"', 'needs Linux on x86_64'),
    'no mxnet': (MISSING.format('mxnet'), 'has no mxnet: activate its environment, or install as README.md says'),
    'no distutils': (MISSING.format('distutils'), 'has no distutils: .* install as README.md says'),
    'a server': ('import os; os.environ["DMLC_ROLE"] = "server"', 'unset the environment variable DMLC_ROLE'),
    'no such threads': ('import os; os.environ["OMP_NUM_THREADS"] = "many"', "a number of threads, not 'many'")}


@pytest.mark.parametrize('where', ELSEWHERE)
def test_scripts_end_with_one_line(tmp_path, where):
    pretend, line = ELSEWHERE[where]
    script = SCRIPTS[[*ELSEWHERE].index(where) % len(SCRIPTS)]
    code = f'{pretend}\nimport runpy, sys\nsys.argv[:1] = []\nrunpy.run_path(sys.argv[0], None, "__main__")'
    done = python('-c', code, ROOT / script, '--help', folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, '')
    assert re.fullmatch(rf'{re.escape(script)}: error: .*{line}.*\n', done.stderr), done.stderr


def test_an_environment_that_is_not_activated():
    done = python('-S', ROOT / 'sample.py')
    assert re.fullmatch(r'sample\.py: error: Python .* has no numpy: .*\n', done.stderr) and done.returncode == 2


FAKE = {  # a package, what its import does, how a script then ends, and what that says
    'no driver': ('mxnet', "raise OSError('libcuda.so.1: cannot open shared object file: No such file')", 2,
                  r'train_mnist\.py: error: MXNet cannot be loaded \(libcuda\.so\.1: .*\): README\.md .*\n'),
    'Ctrl-C': ('mxnet', 'import os, time; os.kill(os.getpid(), 2); time.sleep(9)', -signal.SIGINT, ''),
    'a bug': ('mxnet', 'raise KeyError(1)', 1, r'Traceback.*KeyError: 1\n'),
    'a newer protobuf': ('mxboard', "raise TypeError('Descriptors cannot be created directly.')", 2,
                         r"train_mnist\.py: error: mxboard needs protobuf .*pip install 'protobuf<3\.21'.*\n")}


@pytest.mark.parametrize('name', FAKE)
def test_an_import_fails(tmp_path, name):
    package, code, exit_code, line = FAKE[name]
    (tmp_path / f'{package}.py').write_text(code)
    done = python(ROOT / 'train_mnist.py', PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert (done.returncode, done.stdout) == (exit_code, '') and re.fullmatch(line, done.stderr, re.DOTALL), done.stderr


def test_a_library_raises_import_error():
    """A notebook, say, can catch it."""
    code = f'{MISSING.format("mxnet")}\ntry:\n    import core\nexcept ImportError as error:\n    print(error)'
    done = python('-c', code, folder=ROOT)
    assert done.returncode == 0 and 'has no mxnet' in done.stdout and not done.stderr


def test_import_says_nothing_reads_no_command_line_and_sets_no_hook(tmp_path):
    code = ('import core, mxnet, runs.log, sys; print(mxnet.nd.ones(3).sum().asscalar()); '
            'assert sys.excepthook is sys.__excepthook__')
    done = python('-c', code, '--resume', 'nowhere', folder=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, '3.0\n', '')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # where NumPy still has them
def test_names_that_numpy_removed_mean_what_they_meant():
    import numpy as np
    a = np.array([[3., 1.], [2., 4.]])
    assert np.PZERO == np.NZERO == 0 and np.signbit(np.NZERO) and not np.signbit(np.PZERO)
    assert np.Inf == np.PINF == -np.NINF == float('inf') and np.NaN != np.NaN and np.NAN != np.NAN
    assert np.in1d(a, [1., 2.]).tolist() == [False, True, True, False]
    assert np.in1d(a, [1., 2.], invert=True).tolist() == [True, False, False, True]
    assert np.msort(a).tolist() == [[2., 1.], [3., 4.]]
    assert not np.alltrue(a > 1) and np.sometrue(a > 3)
    assert np.product(a) == 24 and np.round_(1.26, 1) == 1.3 and np.trapz([1., 3.]) == 2


# The environment

@pytest.mark.parametrize('own, workers, threads', [
    ('', 1, '4'), ('7', 2, '7'), (' 2,1', 1, '2'), ('', 2, '2'), ('', 9, '1')])
def test_threads(monkeypatch, own, workers, threads):
    monkeypatch.setenv('OMP_NUM_THREADS', own)
    monkeypatch.setenv('DISTRIBUTED_SHARE', str(workers))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(4))
    monkeypatch.setattr(devices, 'open', lambda path: io.StringIO('max 100000'), raising=False)
    devices.set_environment()
    assert os.environ['OMP_NUM_THREADS'] == threads and devices.threads() == int(threads)


@pytest.mark.parametrize('text, expected', [('max 100000', 8), ('250000 100000', 3), ('1000 100000', 1),
                                            ('9000000 100000', 8), ('', 8)])
def test_processors_of_a_container(monkeypatch, text, expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8))
    monkeypatch.setattr(devices, 'open', lambda path: io.StringIO(text), raising=False)
    assert devices.processors() == expected


# Who imports whom

FLOORS = (['system'], ['core', 'dataset', 'distributed'], ['fused'], ['pictures'], ['runs'],
          ['train_mnist', 'sample', 'evaluate'])
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@pytest.mark.parametrize('room', FLOOR)
def test_imports_point_downwards_and_mxnet_comes_after_system(room):
    for path in sorted(ROOT.glob(f'{room}/*.py')) or [ROOT / f'{room}.py']:
        names = [getattr(node, 'module', None) or node.names[0].name for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, (ast.Import, ast.ImportFrom))]
        rooms = [name.partition('.')[0] for name in names]
        below = {other for other, floor in FLOOR.items() if floor < FLOOR[room]}
        assert {name for name in rooms if name in FLOOR or (ROOT / name).is_dir()} <= below | {room}, path
        if 'mxnet' in rooms and room != 'system':
            assert 'system' in rooms[:rooms.index('mxnet')], path
