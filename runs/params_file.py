"""Parameter files: safetensors, with what else belongs to the numbers and a checksum of the whole file.

The `__metadata__` of such a file has one entry, 'draw', which is a JSON object. In it, `sha256` is the SHA-256 of every
byte of the file, with 64 zeros in the place of the checksum itself: names, types, shapes and numbers of the arrays, and
all of the metadata. One entry, because safetensors writes several in random order, and the same run writes the same
bytes.
"""
import errno
import hashlib
import json
import math
import os
import reprlib

from system import files

import numpy as np
import safetensors.numpy

_MAX_HEADER = 2 ** 20  # bytes, of the names, types and shapes and the metadata together
_NO_CHECKSUM = '0' * 64


class ParamsError(Exception):
    """A file that is not what was expected; the message is one line for the user."""


def write(path, arrays, metadata):
    """Write a parameter file, whole or not at all.

    Parameters
    ----------
    path : str
    arrays : dict of str to numpy.ndarray
        float32 or float16.
    metadata : dict
        What JSON can hold: no NaN, no infinity.

    Raises
    ------
    OSError
        Also where the metadata would make a header above 1 MiB, which `read` would refuse.
    """
    text = json.dumps({'sha256': _NO_CHECKSUM, **metadata}, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors reads raw memory
    content = bytearray(safetensors.numpy.save(arrays, {'draw': text}))
    if int.from_bytes(content[:8], 'little') > _MAX_HEADER:
        raise OSError(errno.EFBIG, 'its metadata would be larger than 1 MiB', path)
    at = content.index(_NO_CHECKSUM.encode())
    content[at:at + len(_NO_CHECKSUM)] = hashlib.sha256(content).hexdigest().encode()
    files.write_whole(path, content)


def read(path, shapes):
    """Read a parameter file.

    Parameters
    ----------
    path : str
    shapes : dict of str to tuple of int
        The arrays that the file must hold, no more and no less.

    Returns
    -------
    arrays : dict of str to numpy.ndarray, float32 (also from float16), finite
    metadata : dict

    Raises
    ------
    ParamsError
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ParamsError(f'{path} is not a file')
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            if size > 8 + _MAX_HEADER + 4 * sum(map(math.prod, shapes.values())):
                raise ParamsError(f'{path} is damaged: {size:,} bytes are more than its network can have')
            content = file.read(size)
    except OSError as error:
        raise ParamsError(f'{path}: {error.strerror}') from None
    try:
        arrays, metadata = _parse(content)
    except (safetensors.SafetensorError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError,
            MemoryError) as error:  # safetensors does not say which
        reason = ''.join(filter(str.isprintable, str(error)))[:200]
        raise ParamsError(f'{path} is damaged or not a parameter file of this program: {reason}') from None
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes:
        wrong = min(name for name in {**found, **shapes} if found.get(name) != shapes.get(name))
        raise ParamsError(f'{path} does not fit the config.json beside it: {reprlib.repr(wrong)} is '
                          f'{found.get(wrong)}, expected {shapes.get(wrong)}')
    for name, array in arrays.items():
        if array.dtype not in ('float32', 'float16') or not np.isfinite(array).all():
            raise ParamsError(f'{path} is damaged: {name} holds numbers that are not finite, or neither float32 nor '
                              f'float16')
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}, metadata


def _parse(content):
    """Arrays and metadata of a file whose checksum is right."""
    size = int.from_bytes(content[:8], 'little')
    if size > _MAX_HEADER:
        raise ValueError('its header is too large')
    header = json.loads(content[8:8 + size])
    try:
        metadata = json.loads(header['__metadata__']['draw'], parse_constant=_refuse)
        checksum = metadata.pop('sha256')
    except (KeyError, TypeError, AttributeError):
        raise ValueError('it has no checksum') from None
    unsigned = content.replace(str(checksum).encode(), _NO_CHECKSUM.encode(), 1)
    if hashlib.sha256(unsigned).hexdigest() != checksum:
        raise ValueError('its checksum is wrong')
    return safetensors.numpy.load(content), metadata


def _refuse(constant):
    raise ValueError(f'its metadata holds {constant}, which is no JSON')
