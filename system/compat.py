"""What must be so before `import mxnet`: a machine and an environment that can run it, and the names it looks up.

MXNet 1.9.1 is the last release. It looks up names that NumPy 1.24, 2.0 and 2.4 took away: `set_back` gives them back
where they are missing. Where MXNet cannot run, the checks raise `Unsupported`, an ImportError of one line; a script
then ends with that line and exit code 2.

The Pythons that it turns away must be able to read this file: nothing here may need more than Python 3.6.
"""
import ctypes
import importlib.util
import os
import platform
import sys
import warnings

PYTHONS = '3.9', '3.13'  # the oldest and the newest that it was run with
NEWEST_NUMPY = '2.5'  # a newer one may have dropped more of what MXNet looks up
# Those of requirements.txt, by the names of the imports.
_PACKAGES = 'numpy', 'requests', 'mxnet', 'mxboard', 'safetensors', 'PIL', 'matplotlib', 'tqdm'


class Unsupported(ImportError):
    """MXNet cannot run here; the message is one line: what was found, and what to do."""


def say_little_at_the_end():
    """Let a script that Unsupported ends say its line, with exit code 2, and one that Ctrl-C ends say nothing."""
    usual = sys.excepthook

    def hook(kind, error, traceback):
        if hasattr(sys, 'ps1') or kind not in (Unsupported, KeyboardInterrupt):  # ps1: a person at a prompt
            return usual(kind, error, traceback)
        if kind is Unsupported:
            sys.stderr.write(f'{os.path.basename(sys.argv[0])}: error: {error}\n')
            raise SystemExit(2)

    sys.excepthook = hook


def _numbers(version):
    """(major, minor), which compare as numbers do."""
    return tuple(map(int, version.split('.')[:2]))


def check():
    """Raise Unsupported unless Python, the machine and the installed packages are some that MXNet runs with."""
    python = f'Python {platform.python_version()} ({sys.executable})'
    if not _numbers(PYTHONS[0]) <= sys.version_info[:2] <= _numbers(PYTHONS[1]):
        raise Unsupported(f'this is {python}; make the environment with a Python from {PYTHONS[0]} to {PYTHONS[1]}')
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise Unsupported(f'this is {platform.system()} on {platform.machine()}; MXNet 1.9.1 needs Linux on x86_64: '
                          'such a machine, WSL, or a container for linux/amd64')
    if sys.flags.optimize > 1:
        raise Unsupported('python -OO (PYTHONOPTIMIZE=2) takes away the docstrings, which MXNet 1.9.1 needs: run it '
                          'without')
    for name in _PACKAGES:
        if not importlib.util.find_spec(name):
            raise Unsupported(f'{python} has no {name}: source .venv/bin/activate, or install as README.md says')
    if not importlib.util.find_spec('distutils'):
        raise Unsupported(f'{python} has no distutils, which MXNet imports: pip install setuptools')


def check_libraries():
    """Raise Unsupported unless the system has the libraries that MXNet's wheel does not bring.

    To be called when OMP_NUM_THREADS is set: libgomp reads it once, when it is loaded.
    """
    for library, package in ('libgomp.so.1', 'libgomp1'), ('libquadmath.so.0', 'libquadmath0'):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise Unsupported(f'{error}; install it (Debian, Ubuntu: apt install {package})') from None


def _gone(*_, **__):
    raise RuntimeError('NumPy has no financial functions any more')


def set_back():
    """Give NumPy the names that MXNet looks up when it is imported, where they are missing."""
    import numpy

    if _numbers(numpy.__version__) > _numbers(NEWEST_NUMPY):
        raise Unsupported(f"this is NumPy {numpy.__version__}, newer than any that MXNet 1.9.1 was run with: "
                          f"pip install 'numpy=={NEWEST_NUMPY}.*'")
    names = {
        # Left in 1.24, and came back in 2.0 as NumPy's own type, which stands.
        'bool': bool,
        # Left in 2.0: mxnet.numpy.utils and gluon's estimator spell zeros, infinities and nan so.
        'PZERO': 0.0, 'NZERO': -0.0, 'Inf': numpy.inf, 'PINF': numpy.inf, 'NINF': -numpy.inf,
        'NaN': numpy.nan, 'NAN': numpy.nan,
        # Left in 2.0: mxnet.numpy hands these functions on under their old names.
        'alltrue': numpy.all, 'sometrue': numpy.any, 'product': numpy.prod, 'round_': numpy.round,
        'msort': lambda a: numpy.sort(a, axis=0),
        # Left in 2.4, also handed on; the successor of the first came in 2.0.
        'trapz': getattr(numpy, 'trapezoid', None), 'in1d': lambda a, b, **how: numpy.isin(a, b, **how).ravel(),
        # Left in 2.0, after years in which all they did was raise: MXNet wants the names only.
        'mirr': _gone, 'npv': _gone, 'pmt': _gone, 'ppmt': _gone, 'pv': _gone, 'rate': _gone,
    }
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # NumPy 1.20 to 1.23 warn when they are asked for `bool`
        for name, value in names.items():
            if not hasattr(numpy, name):
                setattr(numpy, name, value)
