"""Atomic writes, and JSON files."""
import contextlib
import errno
import fcntl
import json
import os

_MAX_JSON = 2 ** 20  # bytes


def write_whole(path, content):
    """Write a file whose name only ever stands for complete content: until then, for that which it had before.

    A link is replaced, not followed. A killed process leaves `path`.tmp, which the next write replaces.

    Parameters
    ----------
    path : str
    content : bytes

    Raises
    ------
    OSError
        Nothing is left behind.
    """
    temporary = f'{path}.tmp'
    try:
        with _locked(temporary) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
                raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the name that the caller knows
        raise


def _locked(path):
    """Open a file for writing, empty and locked, so that two processes which write it do so one after the other."""
    while True:
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
            os.remove(path)
        file = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), 'wb')  # noqa: SIM115
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):  # not renamed while this one waited
                file.truncate(0)
                return file
        file.close()


def write_json(path, content):
    """Write a JSON file, whole or not at all. Raises OSError, for content that `read_json` would refuse too."""
    text = f'{json.dumps(content, indent=1)}\n'
    if len(text) > _MAX_JSON:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    write_whole(path, text.encode())


def make_folder(path):
    """Create a folder inside a run's folder if it is missing; returns the path. Raises OSError, for a link too: a
    stranger's run could have it point anywhere."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, 'is a symbolic link', path)
    os.makedirs(path, exist_ok=True)
    return path


def read_json(path):
    """The content of a JSON file of at most 1 MiB. Raises OSError, and ValueError for anything else."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise ValueError('not a file')
    if os.path.getsize(path) > _MAX_JSON:
        raise ValueError(f'larger than {_MAX_JSON:,} bytes')
    with open(path, encoding='utf-8') as file:
        return json.load(file)
