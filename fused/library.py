"""Compile draw.c for this processor, once per user, and load it."""
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile

from system import cli

SOURCES = [os.path.join(os.path.dirname(os.path.abspath(__file__)), name) for name in ('draw.c', 'panels.h')]
COMPILERS = 'cc', 'gcc', 'clang'
# No -ffast-math: NaN and infinity must reach the bound. Multiply-adds are fused, alike for AVX2 and AVX-512.
FLAGS = ('-std=gnu11', '-O3', '-march=native', '-ffp-contract=fast', '-fno-math-errno', '-fno-trapping-math',
         '-fopenmp', '-Wno-psabi', '-shared', '-fPIC')


class Unavailable(Exception):
    """The operator cannot be compiled here; the message is one line."""


@functools.cache
def load():
    """The library as a ctypes.CDLL. Raises Unavailable."""
    failure = 'there is no C compiler (cc, gcc or clang)'
    compilers = {}  # each once, by its name in PATH: ccache is one program that goes by the name it is called by
    for path in filter(None, map(shutil.which, COMPILERS)):
        compilers.setdefault(os.path.realpath(path), path)
    for compiler in compilers.values():
        try:
            return _load(compiler)
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            output = (getattr(error, 'stderr', None) or str(error)).strip().splitlines() or ['no message']
            reason = next((line for line in output if 'error' in line), output[-1])
            failure = f'{compiler} cannot compile it ({reason})'
    raise Unavailable(failure)


def cache_folder():
    """Where compiled libraries are kept, each by the name of its `_key`."""
    return os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'draw-mxnet')


def compile_to(path, compiler, *flags):
    """Compile draw.c. Raises OSError, subprocess.SubprocessError."""
    command = [compiler, *FLAGS, *flags, SOURCES[0], '-o', path]
    _run(command, timeout=300)


def _run(command, timeout):
    """What a command prints. In a session of its own, since Ctrl-C is for the training, which stops after its step."""
    return subprocess.run(command, check=True, capture_output=True, text=True, errors='replace', timeout=timeout,
                          start_new_session=True).stdout


def _load(compiler):
    folder = _private_cache()
    path = folder and os.path.join(folder, f'{_key(compiler)}.so')
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not there, damaged, or no cache (None)
        return _open(path)
    cli.say(f'Compiling the fused operator with {compiler}: once per user and machine, a few seconds.')
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        new = os.path.join(workplace, 'draw.so')
        compile_to(new, compiler)
        found = _functions(new)
        if path:
            os.chmod(new, 0o700)
            with open(new, 'rb') as file:
                os.fsync(file.fileno())  # a power cut must not leave a part of it, which would crash
            os.replace(new, path)  # whole or not at all, also where two processes compile at once
    return found


def _functions(path):
    """The library with what fused/network.py calls. Raises OSError, AttributeError."""
    found = ctypes.CDLL(path)
    found.draw_floats.restype = ctypes.c_long
    return found


def _private_cache():
    """The cache folder, which only this user can write; None where that cannot be had."""
    with contextlib.suppress(OSError):
        os.makedirs(cache_folder(), mode=0o700, exist_ok=True)
        if _is_private(os.lstat(cache_folder())) and os.access(cache_folder(), os.W_OK):
            return cache_folder()
    return None


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


def _is_private(status):
    """Whether nobody but this user could have written a file."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _open(path):
    """Load a library that only this user can have written. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not _is_private(os.fstat(file)):
            raise PermissionError(f'{path} could be written by others')
        return _functions(f'/proc/self/fd/{file}')  # the very file that was checked
    finally:
        os.close(file)
