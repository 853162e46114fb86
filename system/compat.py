"""Checks and repairs before `import mxnet`: its last release, 1.9.1, predates today's Python and NumPy.

A script ends with one line and exit code 2 where it cannot run. Python 3.6 must be able to read this file.
"""
import importlib.util
import os
import platform
import signal
import sys

PYTHONS = (3, 9), (3, 13)  # oldest and newest, tested
_PACKAGES = 'numpy', 'requests', 'distutils', 'mxnet', 'mxboard', 'safetensors', 'PIL', 'matplotlib', 'tqdm'


class Unsupported(ImportError):
    """MXNet cannot run here; the message is one line."""


def install_excepthook():
    """Install an exception hook for a program of this folder: one line where MXNet cannot run or load, silence at
    Ctrl-C."""
    program, usual = os.path.realpath(sys.argv[0]), sys.excepthook
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not (os.path.isfile(program) and program.startswith(root + os.sep)):
        return

    def hook(kind, error, traceback):
        if kind is OSError and 'shared object file' in str(error):  # no GPU driver, libgomp or libquadmath
            error = Unsupported(f'MXNet cannot be loaded ({error}): README.md says what it needs')
        if hasattr(sys, 'ps1') or not isinstance(error, (Unsupported, KeyboardInterrupt)):  # ps1: an interactive prompt
            usual(kind, error, traceback)
        elif isinstance(error, Unsupported):
            print(f'{os.path.basename(sys.argv[0])}: error: {error}', file=sys.stderr)
            raise SystemExit(2)
        else:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one finds no Python code to interrupt

    sys.excepthook = hook


def check():
    """Raise Unsupported unless MXNet can run with this Python, machine, environment and set of packages."""
    python = f'Python {platform.python_version()} ({sys.executable})'
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise Unsupported(f'this is {python}; use Python 3.{PYTHONS[0][1]} to 3.{PYTHONS[1][1]}')
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise Unsupported('MXNet 1.9.1 needs Linux on x86_64: use a container for linux/amd64, or WSL')
    if os.environ.get('DMLC_ROLE', 'worker') != 'worker':
        raise Unsupported('unset the environment variable DMLC_ROLE: `import mxnet` would wait forever')
    for name in _PACKAGES:
        if not importlib.util.find_spec(name):
            raise Unsupported(f'{python} has no {name}: activate its environment, or install as README.md says')


def restore_numpy_names():
    """Set the names that MXNet looks up at import and that NumPy 1.24, 2.0 and 2.4 removed."""
    import numpy
    names = {
        'bool': bool, 'PZERO': 0.0, 'NZERO': -0.0, 'Inf': numpy.inf, 'PINF': numpy.inf, 'NINF': -numpy.inf,
        'NaN': numpy.nan, 'NAN': numpy.nan, 'alltrue': numpy.all, 'sometrue': numpy.any, 'product': numpy.prod,
        'round_': numpy.round, 'msort': lambda a: numpy.sort(a, axis=0), 'trapz': getattr(numpy, 'trapezoid', None),
        'in1d': lambda a, b, **options: numpy.isin(a, b, **options).ravel(),
        **dict.fromkeys(['mirr', 'npv', 'pmt', 'ppmt', 'pv', 'rate'])}  # financial functions, which only need to exist
    for name, value in names.items():
        if not hasattr(numpy, name):
            setattr(numpy, name, value)
