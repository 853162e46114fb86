"""Writing files that are either whole or not there, and JSON files."""
import json
import os
import re
import uuid

_TEMPORARY = re.compile(r'.+\.[0-9a-f]{32}\.tmp')


def write_whole(path, content):
    """Give a file its final name only when it is complete on the disk; a file of that name stays until then.

    Parameters
    ----------
    path : str or path
    content : bytes or callable
        The content, or a function that writes it to the path it is given.

    Raises
    ------
    OSError
        Nothing is left behind.
    """
    temporary = f'{path}.{uuid.uuid4().hex}.tmp'
    try:
        if callable(content):
            content(temporary)
        else:
            with open(temporary, 'wb') as file:
                file.write(content)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None  # the name that the caller knows
        raise
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def remove_unfinished(folder):
    """Remove what `write_whole` left in `folder` when its process was killed."""
    for name in os.listdir(folder):
        if _TEMPORARY.fullmatch(name):
            os.remove(os.path.join(folder, name))


def write_json(path, content):
    """Write a JSON file, whole or not at all. Raises OSError."""
    write_whole(path, f'{json.dumps(content, indent=2)}\n'.encode())


def read_json(path, most=2 ** 20):
    """The content of a JSON file of at most so many bytes. Raises OSError, and ValueError where it is none."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError('it is not a file')
    if os.path.getsize(path) > most:
        raise ValueError(f'it is larger than {most:,} bytes')
    with open(path) as file:
        return json.load(file)
