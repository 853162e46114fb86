"""Atomic writes, and JSON files."""
import contextlib
import json
import os


def write_whole(path, content):
    """Write bytes to a file, whole or not at all: until all are on the disk, the file keeps its old content, if any.

    A link is replaced, not followed. An exception leaves nothing behind; a killed process leaves PATH.PID.tmp.
    """
    temporary = f'{path}.{os.getpid()}.tmp'  # of this process: another one may write the same file
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # the name that the caller knows
        raise


def write_json(path, content):
    """Write a JSON file, whole or not at all. Raises OSError."""
    write_whole(path, f'{json.dumps(content, indent=1)}\n'.encode())


def read_json(path):
    """The content of a JSON file. Raises OSError, and ValueError for anything else."""
    with open(path, encoding='utf-8') as file:
        return json.load(file)
