"""Compile draw.c for this processor, once per user, and load it."""
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile

from system import cli, files

SOURCES = [os.path.join(os.path.dirname(os.path.abspath(__file__)), name) for name in ('draw.c', 'panels.h')]
COMPILERS = 'cc', 'gcc', 'clang'
# No -ffast-math: NaN and infinity must reach the bound. One -mtune everywhere, so that multiply-adds are fused alike
# with AVX2 and AVX-512: tuned for AMD's processors, GCC fuses fewer.
FLAGS = ('-std=gnu11', '-O3', '-march=native', '-mtune=haswell', '-ffp-contract=fast', '-fno-math-errno',
         '-fno-trapping-math', '-fopenmp', '-Wno-psabi', '-shared', '-fPIC')


class Unavailable(Exception):
    """The operator cannot be compiled here; the message is one line."""


@functools.cache
def load():
    """The library as a ctypes.CDLL. Raises Unavailable."""
    failure = 'there is no C compiler (Debian, Ubuntu: apt install gcc)'
    for compiler in filter(None, map(shutil.which, COMPILERS)):
        try:
            return _load(compiler)
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ''  # bytes after a time-out
            output = (said or str(error)).strip().splitlines() or ['no message']
            reason = next((line for line in output if 'error' in line), output[-1])
            failure = f'{compiler} cannot compile it ({reason})'
    raise Unavailable(failure)


def compile_to(path, compiler, *flags, source=SOURCES[0]):
    """Compile a C file, by default draw.c. Raises OSError, subprocess.SubprocessError."""
    _run([compiler, *FLAGS, *flags, source, '-o', path], timeout=300)


def _run(command, timeout):
    """Run a command; returns its output. Its own session shields it from Ctrl-C, which stops only the training."""
    return subprocess.run(command, check=True, capture_output=True, text=True, errors='replace', timeout=timeout,
                          start_new_session=True).stdout


def _load(compiler):
    """The library from the cache, or else compiled; without a writable cache, compiled each time."""
    folder = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'draw-mxnet')
    kept = os.path.join(folder, f'{_key(compiler)}.so')
    with contextlib.suppress(OSError, AttributeError):  # missing or damaged
        return _open(kept)
    cli.say(f'Compiling the fused operator with {compiler}: once per user and machine, a few seconds.')
    with tempfile.TemporaryDirectory() as workplace:
        path = os.path.join(workplace, 'draw.so')
        compile_to(path, compiler)
        with contextlib.suppress(OSError), open(path, 'rb') as file:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            files.write_whole(kept, file.read())
            path = kept
        return _open(path)


def _open(path):
    """The library with what fused/network.py calls. Raises OSError, AttributeError."""
    library = ctypes.CDLL(path)
    library.draw_floats.restype = ctypes.c_long
    return library


def _key(compiler):
    """Everything that the compiled code depends on, as a name."""
    version = _run([compiler, '--version'], timeout=60)
    with open('/proc/cpuinfo') as file:
        processor = sorted({line for line in file if line.startswith(('model name', 'flags'))})
    parts = [compiler, version, *processor, *FLAGS]
    for source in SOURCES:
        with open(source, encoding='utf-8') as file:
            parts.append(file.read())
    return hashlib.sha256('\0'.join(parts).encode(errors='surrogateescape')).hexdigest()[:32]
