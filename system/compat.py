"""What must hold before `import mxnet`: a machine and packages that MXNet 1.9.1, the last release, can run with.

Checks raise `Unsupported`, an ImportError of one line; a script then ends with that line and exit code 2. Old Pythons
must be able to read this file: nothing here may need more than Python 3.6.
"""
import ctypes
import importlib.util
import os
import platform
import sys
import warnings

PYTHONS = '3.9', '3.13'  # tested, oldest and newest
NEWEST_NUMPY = '2.5'  # a newer one may lack more names that MXNet looks up
_PACKAGES = 'numpy', 'requests', 'mxnet', 'mxboard', 'safetensors', 'PIL', 'matplotlib', 'tqdm'


class Unsupported(ImportError):
    """MXNet cannot run here; the message is one line: what was found, and the remedy."""


def install_excepthook():
    """End a script with one line and exit code 2 at Unsupported, and silently at Ctrl-C."""
    usual = sys.excepthook

    def hook(kind, error, traceback):
        if kind is OSError and 'cannot open shared object file' in str(error):  # an MXNet for CUDA without its libraries
            kind, error = Unsupported, '{}; see "GPU" in README.md: driver, libraries, LD_LIBRARY_PATH'.format(error)
        if hasattr(sys, 'ps1') or kind not in (Unsupported, KeyboardInterrupt):  # ps1: an interactive prompt
            return usual(kind, error, traceback)
        if kind is Unsupported:
            sys.stderr.write('{}: error: {}\n'.format(os.path.basename(sys.argv[0]), error))
            raise SystemExit(2)

    sys.excepthook = hook


def _version(text):
    return tuple(map(int, text.split('.')[:2]))


def check():
    """Raise Unsupported unless MXNet can run with this Python, machine, environment and set of packages."""
    python = 'Python {} ({})'.format(platform.python_version(), sys.executable)
    if not _version(PYTHONS[0]) <= sys.version_info[:2] <= _version(PYTHONS[1]):
        raise Unsupported('this is {}; create the environment with Python {} to {}'.format(python, *PYTHONS))
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise Unsupported('MXNet 1.9.1 needs Linux on x86_64 (a container for linux/amd64, or WSL), not {} on {}'.format(
            platform.system(), platform.machine()))
    if sys.flags.optimize > 1:
        raise Unsupported('MXNet 1.9.1 needs docstrings: run without python -OO (PYTHONOPTIMIZE=2)')
    if os.environ.get('DMLC_ROLE', 'worker') != 'worker':
        raise Unsupported('DMLC_ROLE={} in the environment makes `import mxnet` wait for ever: unset it'.format(
            os.environ['DMLC_ROLE']))
    try:
        os.getcwd()
    except OSError:
        raise Unsupported('the working folder does not exist any more')
    for name in _PACKAGES:
        if not importlib.util.find_spec(name):
            raise Unsupported('{} has no {}: source .venv/bin/activate, or install as README.md says'.format(python, name))
    if not importlib.util.find_spec('distutils'):
        raise Unsupported('{} has no distutils, which MXNet imports: pip install "setuptools<80.9"'.format(python))


def check_libraries():
    """Raise Unsupported unless the system has the libraries that MXNet's wheel does not bring."""
    for library, package in ('libgomp.so.1', 'libgomp1'), ('libquadmath.so.0', 'libquadmath0'):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise Unsupported('{}; install it (Debian, Ubuntu: apt install {})'.format(error, package))


def _gone(*_, **__):
    raise RuntimeError('NumPy has no financial functions any more')


def restore_numpy_names():
    """Set the names that MXNet looks up at import and NumPy 1.24, 2.0 and 2.4 removed."""
    import numpy
    if _version(numpy.__version__) > _version(NEWEST_NUMPY):
        raise Unsupported("MXNet 1.9.1 was not tested with NumPy {}: pip install 'numpy=={}.*'".format(
            numpy.__version__, NEWEST_NUMPY))
    names = {
        'bool': bool, 'PZERO': 0.0, 'NZERO': -0.0, 'Inf': numpy.inf, 'PINF': numpy.inf, 'NINF': -numpy.inf,
        'NaN': numpy.nan, 'NAN': numpy.nan, 'alltrue': numpy.all, 'sometrue': numpy.any, 'product': numpy.prod,
        'round_': numpy.round, 'msort': lambda a: numpy.sort(a, axis=0), 'trapz': getattr(numpy, 'trapezoid', None),
        'in1d': lambda a, b, **options: numpy.isin(a, b, **options).ravel(),
        # Only raised for years before they were removed.
        'mirr': _gone, 'npv': _gone, 'pmt': _gone, 'ppmt': _gone, 'pv': _gone, 'rate': _gone}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # NumPy 1.20 to 1.23 warn at a look-up of `bool`
        for name, value in names.items():
            if not hasattr(numpy, name):
                setattr(numpy, name, value)

