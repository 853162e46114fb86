"""Atomic writes, and JSON files."""
import contextlib
import json
import os


def write_whole(path, content):
    """Write a file so that its name only ever stands for a complete one; what had the name before stays until then.

    Parameters
    ----------
    path : str
    content : bytes or callable
        The content, or a function that writes it to the path it is given.

    Raises
    ------
    OSError
        Nothing is left behind. A killed process leaves `path`.tmp, which the next write replaces.
    """
    temporary = f'{path}.tmp'
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)  # a link, say, that would be written through
        if callable(content):
            content(temporary)
        else:
            with open(temporary, 'xb') as file:
                file.write(content)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None  # the name that the caller knows
        raise


def write_json(path, content):
    """Write a JSON file, whole or not at all. Raises OSError."""
    write_whole(path, f'{json.dumps(content, indent=1)}\n'.encode())


def read_json(path, limit=2 ** 20):
    """The content of a JSON file of at most `limit` bytes. Raises OSError, and ValueError for anything else."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise ValueError('not a file')
    if os.path.getsize(path) > limit:
        raise ValueError(f'larger than {limit:,} bytes')
    with open(path, encoding='utf-8') as file:
        return json.load(file)
