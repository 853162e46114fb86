"""system/compat.py: which machines are turned away and how, and which names NumPy gets back."""
import ast
import os
import re
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import system
from system import compat

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = 'train_mnist.py', 'sample.py', 'evaluate.py'
SOURCES = [path for path in sorted(ROOT.rglob('*.py'))
           if not any(part.startswith('.') for part in path.relative_to(ROOT).parts)]


def python(code, *argv, environment=None):
    return subprocess.run([sys.executable, '-c', code, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **(environment or {})})


# What a script sees on another machine: the code that pretends, and what the line says.
MISSING = '''
import importlib.util, sys
usual = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == '{0}' else usual(name, *rest)
'''
ELSEWHERE = {
    'an older Python': ('import sys; sys.version_info = (3, 8, 18)', r'Python .*; make .* from 3\.9 to 3\.13'),
    'a newer Python': ('import sys; sys.version_info = (3, 14, 0)', r'Python .*; make .* from 3\.9 to 3\.13'),
    'a Mac': ('import platform; platform.system = lambda: "Darwin"', r'this is Darwin on x86_64; .* Linux on x86_64'),
    'an ARM': ('import platform; platform.machine = lambda: "aarch64"', r'this is Linux on aarch64; .* on x86_64'),
    'no numpy': (MISSING.format('numpy'), r'has no numpy: source \.venv/bin/activate, or install .* README\.md'),
    'no mxnet': (MISSING.format('mxnet'), r'has no mxnet: source \.venv/bin/activate, or install .* README\.md'),
    'no tqdm': (MISSING.format('tqdm'), r'has no tqdm: source \.venv/bin/activate, or install .* README\.md'),
    'no distutils': (MISSING.format('distutils'), 'has no distutils.*: pip install setuptools'),
    'a newer NumPy': ('import numpy; numpy.__version__ = "2.6.0rc1"', r"NumPy 2\.6\.0rc1, .*: pip install 'numpy=="),
    'NumPy 3': ('import numpy; numpy.__version__ = "3.0.0"', r"NumPy 3\.0\.0, .*: pip install 'numpy=="),
}
for library in 'libgomp.so.1', 'libquadmath.so.0':
    ELSEWHERE[f'no {library}'] = (f'''
import ctypes
usual = ctypes.CDLL
def dll(name, *rest, **how):
    return usual('{library}-which-is-not-there' if name == '{library}' else name, *rest, **how)
ctypes.CDLL = dll
''', f'{re.escape(library)}.*; install it .*apt install {library.split(".")[0]}')


@pytest.mark.parametrize('where', ELSEWHERE)
def test_scripts_end_with_one_line(where):
    pretend, line = ELSEWHERE[where]
    script = SCRIPTS[sorted(ELSEWHERE).index(where) % len(SCRIPTS)]
    result = python(f'{pretend}\nimport runpy, sys\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], None, "__main__")',
                    script, '--help')
    assert (result.returncode, result.stdout) == (2, '')
    assert re.fullmatch(rf'{re.escape(script)}: error: .*{line}.*\n', result.stderr), result.stderr


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_is_turned_away_without_packages(script):
    """A Python without site-packages is one whose environment is not activated."""
    result = subprocess.run([sys.executable, '-S', ROOT / script, '--help'], capture_output=True, text=True,
                            timeout=60)
    assert (result.returncode, result.stdout) == (2, '')
    version = '.'.join(map(str, sys.version_info[:3]))
    assert re.fullmatch(rf'{script}: error: Python {re.escape(version)}.* \(.+\) has no numpy: .*\n', result.stderr)


def test_python_without_docstrings_is_turned_away():
    result = subprocess.run([sys.executable, '-OO', ROOT / 'sample.py', '--help'], capture_output=True, text=True,
                            timeout=60)
    assert (result.returncode, result.stdout) == (2, '')
    assert re.fullmatch(r'sample\.py: error: python -OO .*: run it without\n', result.stderr)


def test_library_raises_import_error():
    """In a notebook, say: it can be caught, and says the same line."""
    pretend, line = ELSEWHERE['no mxnet']
    result = python(f'{pretend}\ntry:\n    import core\nexcept ImportError as error:\n    print(error)')
    assert result.returncode == 0 and re.search(line, result.stdout) and not result.stderr


def test_core_alone_brings_mxnet():
    result = python('import core, mxnet; print(mxnet.nd.ones(3).sum().asscalar())')
    assert (result.stdout, result.stderr) == ('3.0\n', '')


def test_other_errors_keep_their_traceback():
    pretend, _ = ELSEWHERE['no mxnet']
    result = python(f'{pretend}\ntry:\n    import core\nexcept ImportError:\n    raise KeyError(1) from None')
    assert result.returncode == 1 and result.stderr.startswith('Traceback') and 'KeyError: 1' in result.stderr


SUCCESSORS = 'inf', 'nan', 'all', 'any', 'prod', 'round'


def stand_in(monkeypatch, version):
    """A NumPy without any of the old names, in the place of the real one."""
    numpy = types.ModuleType('numpy')
    vars(numpy).update(dict.fromkeys(SUCCESSORS, 1.0), __version__=version)
    monkeypatch.setitem(sys.modules, 'numpy', numpy)
    return numpy


def test_names_that_are_there_stand(monkeypatch):
    numpy = stand_in(monkeypatch, '2.5.0')
    compat.set_back()
    given = {name: object() for name in vars(numpy) if not name.startswith('__') and name not in SUCCESSORS}
    vars(numpy).update(given)
    compat.set_back()
    assert {name: vars(numpy)[name] for name in given} == given
    assert {'bool', 'PZERO', 'alltrue', 'trapz', 'rate'} <= given.keys()


def test_one_missing_name_is_set_back_alone(monkeypatch):
    numpy = stand_in(monkeypatch, '1.24.0')
    compat.set_back()
    before = dict(vars(numpy))
    del numpy.bool
    compat.set_back()
    assert vars(numpy) == before and numpy.bool is bool


def test_deprecated_names_are_asked_for_without_a_warning(monkeypatch):
    numpy = stand_in(monkeypatch, '1.23.5')

    def old(name):
        if name != 'bool':
            raise AttributeError(name)
        warnings.warn(f'{name} is old', DeprecationWarning, stacklevel=2)  # pytest makes it an error
        return bool

    numpy.__getattr__ = old
    compat.set_back()
    assert 'bool' not in vars(numpy)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # where NumPy still has them
def test_names_mean_what_they_meant():
    import numpy as np
    a = np.array([[3., 1.], [2., 4.]])
    assert np.PZERO == np.NZERO == 0 and np.signbit(np.NZERO) and not np.signbit(np.PZERO)
    assert np.Inf == np.PINF == -np.NINF == float('inf') and np.NaN != np.NaN and np.NAN != np.NAN
    assert np.dtype(np.bool) == np.bool_
    assert np.in1d(a, [1., 2.]).tolist() == [False, True, True, False]
    assert np.in1d(a, [1., 2.], invert=True).tolist() == [True, False, False, True]
    assert np.msort(a).tolist() == [[2., 1.], [3., 4.]]
    assert not np.alltrue(a > 1) and np.sometrue(a > 3)
    assert np.product(a) == 24 and np.round_(1.26, 1) == 1.3 and np.trapz([1., 3.]) == 2
    with pytest.raises(RuntimeError):
        np.npv(0.1, [1., 2.])


@pytest.mark.parametrize('path', [path for path in SOURCES if ROOT / 'tests' not in path.parents],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_whoever_imports_mxnet_imports_system_before(path):
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    rooms = [name.partition('.')[0] for name in names]
    if 'mxnet' in rooms or 'mxboard' in rooms:
        assert 'system' in rooms[:min(rooms.index(name) for name in ('mxnet', 'mxboard') if name in rooms)]


@pytest.mark.parametrize('name', [*SCRIPTS, 'distributed/launch.py', 'distributed/__init__.py', 'system/__init__.py',
                                  'system/compat.py', 'system/devices.py'])
def test_old_pythons_can_read_as_far_as_the_line(name):
    """What is read before `compat.check`, and the scripts themselves, which are compiled whole."""
    path = ROOT / name
    if path.exists():  # packages need no __init__.py
        ast.parse(path.read_text(), feature_version=(3, 7))


def test_import_says_nothing():
    assert system.compat is compat
    result = python('import system, mxnet, mxboard; import runs.log')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_ctrl_c_while_mxnet_is_imported_says_nothing(tmp_path):
    (tmp_path / 'mxnet').mkdir()
    (tmp_path / 'mxnet' / '__init__.py').write_text('import os, signal, time; os.kill(os.getpid(), signal.SIGINT)\n'
                                                    'time.sleep(5)\n')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run([sys.executable, ROOT / 'sample.py'], env={**os.environ, 'PYTHONPATH': path}, timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and not done.stdout and not done.stderr
