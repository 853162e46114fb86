"""Parameter files: MXNet's own format, followed by what else belongs to the numbers, and a checksum.

    MXNet's list of named arrays | metadata, JSON | length of the metadata, 8 bytes | SHA-256 of all before, 32 bytes

MXNet reads such a file as any other (`net.load_parameters`): it stops after its list. Here files are read by a strict
parser, since MXNet's crashes the interpreter, or asks for any amount of memory, on a damaged file, and notices neither
changed numbers nor a missing end.
"""
import hashlib
import json
import os
import struct

from system import files

import numpy as np
from mxnet import nd
from mxnet.base import MXNetError

_LIST_MAGIC, _ARRAY_MAGIC, _DENSE = 0x112, 0xF993FAC9, 0
_TYPES = {0: '<f4', 2: '<f2'}  # MXNet's numbers for float32 and float16
_LENGTH, _DIGEST = 8, 32
_MAX_METADATA = 2 ** 18


class ParamsError(Exception):
    """A file that is not what was expected; the message is one line for the user."""


def write(path, arrays, metadata):
    """Write a parameter file, whole or not at all.

    Parameters
    ----------
    path : str
    arrays : dict of str to NDArray
        All float32 or all float16.
    metadata : dict
        What JSON can hold, at most 256 KiB.

    Raises
    ------
    OSError
    """
    def write_to(temporary):
        try:
            nd.save(temporary, arrays)
        except MXNetError:
            raise _full(path) from None
        with open(temporary, 'r+b') as file:
            content = file.read()
            itemsize = np.dtype(next(iter(arrays.values())).dtype).itemsize
            if len(content) != _list_size({name: array.shape for name, array in arrays.items()}, itemsize):
                raise _full(path)  # MXNet does not notice that the end did not fit on the disk
            text = json.dumps(metadata).encode()
            tail = text + struct.pack('<Q', len(text))
            file.write(tail + hashlib.sha256(content + tail).digest())

    files.write_whole(path, write_to)


def _full(path):
    return OSError(None, f'{path} cannot be written whole (is the disk full?)')


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
    limit = _list_size(shapes, itemsize=4) + _MAX_METADATA + _LENGTH + _DIGEST
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ParamsError(f'{path} is not a file')
        with open(path, 'rb') as file:
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise ParamsError(f'{path}: {error.strerror}') from None
    try:
        list_end, metadata = _parse_tail(content)
        arrays = _parse_list(content[:list_end])
    except (struct.error, ValueError, RecursionError) as error:
        raise ParamsError(f'{path} is damaged or not a parameter file of this program: {error}') from None
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes:
        wrong = min(name for name in {**found, **shapes} if found.get(name) != shapes.get(name))
        raise ParamsError(f'{path} does not fit the config.json beside it: {wrong!r} is {found.get(wrong)}, '
                          f'expected {shapes.get(wrong)}')
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise ParamsError(f'{path} is damaged: {bad[0]} holds numbers that are not finite')
    return arrays, metadata


def _list_size(shapes, itemsize):
    """Bytes of MXNet's list: a header of 24, per array 12, 8 per axis, 12, and the numbers, a count, the names."""
    return 32 + sum(32 + 8 * len(shape) + itemsize * int(np.prod(shape, dtype=object)) + len(name)
                    for name, shape in shapes.items())


def _parse_tail(content):
    """Where MXNet's list ends, and the metadata."""
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError('its checksum is wrong')
    length, = struct.unpack('<Q', body[-_LENGTH:])
    list_end = len(body) - _LENGTH - length
    if list_end < 0:
        raise ValueError('its metadata is damaged')
    metadata = json.loads(body[list_end:-_LENGTH].decode())
    if not isinstance(metadata, dict):
        raise ValueError('its metadata is damaged')
    return list_end, metadata


def _parse_list(content):
    """MXNet's list (little endian): list header, the number of arrays, the arrays (header, shape, context, type,
    payload), the number of names, the names."""
    position = 0

    def take(layout):
        nonlocal position
        values = struct.unpack_from('<' + layout, content, position)
        position += struct.calcsize('<' + layout)
        return values if len(values) > 1 else values[0]

    magic, _, number = take('QQQ')
    if magic != _LIST_MAGIC or number > len(content):
        raise ValueError('no header of an MXNet parameter file')
    arrays = []
    for _ in range(number):
        array_magic, storage, num_axes = take('Iii')
        if array_magic != _ARRAY_MAGIC or storage != _DENSE or not 1 <= num_axes <= 8:
            raise ValueError(f'array {len(arrays)} has no valid header')
        shape = struct.unpack_from(f'<{num_axes}q', content, position)
        position += 8 * num_axes
        _, _, dtype = take('iii')
        size = 1
        for length in shape:
            size *= length
            if not 0 < length <= len(content) or size > len(content):
                raise ValueError(f'array {len(arrays)} claims the shape {shape}')
        itemsize = np.dtype(_TYPES.get(dtype, 'V0')).itemsize
        if not itemsize or position + itemsize * size > len(content):
            raise ValueError(f'array {len(arrays)} is cut short, or neither float32 nor float16')
        arrays.append(np.frombuffer(content, _TYPES[dtype], size, position).reshape(shape).astype(np.float32))
        position += itemsize * size
    if take('Q') != number:
        raise ValueError('as many names as arrays are expected')
    names = []
    for _ in range(number):
        length = take('Q')
        if length > len(content):
            raise ValueError('the list of names is damaged')
        names.append(content[position:position + length].decode('ascii'))
        position += length
    if position != len(content) or len(set(names)) != number:
        raise ValueError('the list of names is damaged')
    return dict(zip(names, arrays))
