"""A run's folder: config.json, last.params and best.params. The one place that writes and reads them.

Parameter files are MXNet's own (`net.load_parameters` reads them). They are read here by a strict parser, since
MXNet's crashes the interpreter, or asks for any amount of memory, on a damaged file.
"""
import json
import os
import platform
import struct
import tempfile
import time
from importlib import metadata

import numpy as np
from mxnet import nd
from mxnet.base import MXNetError

import core
import data
import files

_LIST_MAGIC, _ARRAY_MAGIC, _DENSE, _FLOAT32 = 0x112, 0xF993FAC9, 0, 0
SIZES = ('input_height', 'input_width', 'num_steps', 'num_recurrent_units', 'latent_dim')
MAX_SIZE = 2 ** 16  # of each of SIZES


class RunError(Exception):
    """A run folder that cannot be used; the message is one line for the user."""


def versions():
    """Versions of Python and of the packages that a result depends on."""
    packages = ('mxnet', 'numpy', 'mxboard', 'pillow')
    return {'python': platform.python_version(), **{name: metadata.version(name) for name in packages}}


def check_writable(folder):
    """Make `folder` and try to write in it. Raises RunError."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f'cannot write in {folder}: {error.strerror}') from None


def create(logdir, name):
    """Make and return the new folder `logdir/<date>-<time>-<name>`; no two runs ever share one."""
    stem = os.path.join(logdir, f'{time.strftime("%Y%m%d-%H%M%S")}-{name}')
    for attempt in range(1, 1000):
        folder = stem if attempt == 1 else f'{stem}-{attempt}'
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            continue
    raise RunError(f'no free folder name beside {stem}')


def write_config(folder, config):
    """Write config.json."""
    files.write_whole(os.path.join(folder, 'config.json'), f'{json.dumps(config, indent=2)}\n'.encode())


def read_config(folder):
    """The content of config.json, what the scripts use of it checked. Raises RunError."""
    path = os.path.join(folder, 'config.json')
    try:
        if os.path.getsize(path) > 2 ** 20:
            raise RunError(f'{path} is not the config.json of a run: it is larger than 1 MiB')
        with open(path) as file:
            config = json.load(file)
        arguments = config['arguments']
        sizes = [arguments[key] for key in SIZES]
        if arguments['attention']:
            sizes += [arguments['read_size'], arguments['write_size']]
        if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f'sizes out of range: {sizes}')
        if not (arguments['dataset'] in data.DATASETS and arguments['binarization'] in data.BINARIZATIONS
                and isinstance(arguments['data_dir'], str)):
            raise ValueError('no such data set')
    except OSError as error:
        raise RunError(f'{folder} is not a run folder of train_mnist.py: {path}: {error.strerror}') from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f'{path} is not the config.json of a run: {type(error).__name__}: {error}') from None
    return config


def build_net(arguments):
    """The DRAW network of these arguments (a dict with train_mnist.py's names), not initialized."""
    height, width, num_steps, units, latent_dim = (arguments[key] for key in SIZES)
    image_shape = (height, width)
    if arguments['attention']:
        read = core.SelectiveAttentionRead(arguments['read_size'], image_shape)
        write = core.SelectiveAttentionWrite(arguments['write_size'], image_shape)
    else:
        read, write = core.NoAttentionRead(), core.NoAttentionWrite(image_shape)
    return core.DRAW(read, write, image_shape, num_steps=num_steps, num_recurrent_units=units,
                     latent_dim=latent_dim)


def save_params(folder, name, net):
    """Write <name>.params. Raises RunError."""
    path = os.path.join(folder, f'{name}.params')

    def write(temporary):
        net.save_parameters(temporary)
        _read_params(temporary, _shapes(net))  # MXNet does not notice that the end does not fit on the disk

    try:
        files.write_whole(path, write)
    except (MXNetError, RunError):
        raise RunError(f'{path} cannot be written whole; is the disk full?') from None


def _shapes(net):
    return {name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}


def load_net(folder, ctx):
    """The network of a run with its best parameters, or its last ones where none are the best yet.

    Returns
    -------
    net : DRAW
    config : dict, the content of config.json
    path : str, the file that the parameters came from

    Raises
    ------
    RunError
        A folder without a model, or a damaged one.
    """
    config = read_config(folder)
    try:
        net = build_net(config['arguments'])
    except ValueError as error:
        raise RunError(f'{os.path.join(folder, "config.json")}: {error}') from None
    name = 'best' if os.path.exists(os.path.join(folder, 'best.params')) else 'last'
    return net, config, load_params(folder, name, net, ctx)


def load_params(folder, name, net, ctx=None):
    """Put <name>.params into `net`, which is initialized first if `ctx` is given; returns the file's path.

    Raises RunError.
    """
    path = os.path.join(folder, f'{name}.params')
    arrays = _read_params(path, _shapes(net))
    if ctx is not None:
        net.initialize(ctx=ctx)  # takes memory, so not for a config.json whose sizes the file does not have
    for key, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(nd.array(arrays[key]))
    return path


def _read_params(path, expected):
    """The float32 arrays in MXNet's parameter file `path`, which must be exactly {name: shape} `expected`.

    Layout (little endian): list header, the number of arrays, the arrays (header, shape, context, type, payload),
    the number of names, the names. For a known architecture every byte outside the payloads is known.
    """
    payload = sum(4 * int(np.prod(shape)) for shape in expected.values())
    limit = payload + sum(100 + 8 * len(shape) + len(name) for name, shape in expected.items()) + 100
    try:
        with open(path, 'rb') as file:
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise RunError(f'no model in this folder: {path}: {error.strerror}') from None
    try:
        arrays = _parse_params(content)
    except (struct.error, ValueError) as error:
        raise RunError(f'{path} is damaged or not a parameter file: {error}') from None
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != expected:
        wrong = sorted(name for name in {**shapes, **expected} if shapes.get(name) != expected.get(name))
        raise RunError(f'{path} does not fit the config.json beside it: {wrong[0]!r} is {shapes.get(wrong[0])}, '
                       f'expected {expected.get(wrong[0])}')
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise RunError(f'{path} is damaged: {bad[0]} holds numbers that are not finite')
    return arrays


def _parse_params(content):
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
        if dtype != _FLOAT32 or position + 4 * size > len(content):
            raise ValueError(f'array {len(arrays)} is cut short or not float32')
        arrays.append(np.frombuffer(content, '<f4', size, position).reshape(shape))
        position += 4 * size
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
