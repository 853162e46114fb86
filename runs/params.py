"""Parameter files, and the network of a run.

best.safetensors holds the parameters with the best validation bound. checkpoint.safetensors holds the latest ones, the
moments of Adam and the state of the run. The `__metadata__` of such a file is one JSON object, `draw`, with the state
and `sha256`: the SHA-256 of the file with zeros in place of the checksum.
"""
import hashlib
import json
import os

from system import cli, files

import mxnet as mx
import numpy as np
import safetensors.numpy
from mxnet import nd

import core
from runs import config as configs

BEST, CHECKPOINT = 'best.safetensors', 'checkpoint.safetensors'
PREFIXES = '', 'mean/', 'variance/'  # of the names in a checkpoint: parameters, and the moments of Adam
_NO_CHECKSUM = '0' * 64


def build_net(args):
    """The `core.DRAW` of the flags of train_mnist.py, not initialized."""
    image_shape = args.input_height, args.input_width
    sizes = args.num_steps, args.num_recurrent_units, args.latent_dim
    if args.attention:
        blocks = (core.SelectiveAttentionRead(args.read_size, image_shape),
                  core.SelectiveAttentionWrite(args.write_size, image_shape))
    else:
        blocks = core.NoAttentionRead(), core.NoAttentionWrite(image_shape)
    return core.DRAW(*blocks, image_shape, *sizes)


def of(net):
    """The parameters of a network by name, {name: Parameter}."""
    return net._collect_params_with_prefix()


def arrays_of(net, dtype='float32'):
    """The values of the parameters of a network, {name: numpy.ndarray}."""
    return {name: parameter.list_data()[0].asnumpy().astype(dtype) for name, parameter in of(net).items()}


def set_arrays(net, arrays):
    for name, parameter in of(net).items():
        parameter.set_data(nd.array(arrays[name]))


def save(path, arrays, state=None):
    """Write a parameter file, whole or not at all: arrays of float32 or float16 by name, and a dict for JSON. Raises
    OSError."""
    text = json.dumps({'sha256': _NO_CHECKSUM, **(state or {})}, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors reads raw memory
    content = bytearray(safetensors.numpy.save(arrays, {'draw': text}))
    begin = content.index(_NO_CHECKSUM.encode())
    content[begin:begin + 64] = hashlib.sha256(content).hexdigest().encode()
    files.write_whole(path, content)


def load(path, net, prefixes=('',)):
    """The arrays of a parameter file, float32 by name, and its state. Nothing in it is executed.

    The file must hold each parameter of the network with each of the `prefixes`, and nothing else. Raises
    cli.UserError if it is damaged, not one of ours, or belongs to another network; OSError if it cannot be read.
    """
    with open(path, 'rb') as file:
        content = file.read()
    try:
        header = content[8:8 + int.from_bytes(content[:8], 'little')]
        state = json.loads(json.loads(header)['__metadata__']['draw'])
        unsigned = content.replace(state['sha256'].encode(), _NO_CHECKSUM.encode(), 1)
        if hashlib.sha256(unsigned).hexdigest() != state.pop('sha256'):
            raise ValueError('its checksum is wrong')
        arrays = safetensors.numpy.load(content)
    except Exception as error:  # of a foreign file, parsers raise nearly anything
        raise cli.UserError(f'{path} is damaged or not a parameter file of this program: {cli.reason(error)}') from None
    found = {name: array.shape for name, array in arrays.items()}
    shapes = {prefix + name: parameter.shape for prefix in prefixes for name, parameter in of(net).items()}
    if found != shapes:
        wrong = min(name for name in {**found, **shapes} if found.get(name) != shapes.get(name))
        raise cli.UserError(f'{path} does not fit the config.json beside it: {wrong} is {found.get(wrong)}, '
                            f'expected {shapes.get(wrong)}')
    return {name: arrays[name].astype(np.float32, copy=False) for name in shapes}, state  # safetensors' order is random


def load_run(folder, contexts=None):
    """The network of a run with its best parameters or, before the first validation, with those of the checkpoint; what
    `runs.config.read` returns; and the path of the parameter file. Raises cli.UserError, OSError."""
    config = configs.read(folder)
    net = build_net(config['arguments'])
    best, checkpoint = (os.path.join(folder, name) for name in (BEST, CHECKPOINT))
    has_best = os.path.lexists(best)
    if not has_best and not os.path.lexists(checkpoint):
        raise cli.UserError(f'{cli.shown(folder)} has neither {BEST} nor {CHECKPOINT}: it has saved no parameters yet')
    path, prefixes = (best, PREFIXES[:1]) if has_best else (checkpoint, PREFIXES)
    arrays, _ = load(path, net, prefixes)
    net.initialize(ctx=contexts or mx.cpu())
    set_arrays(net, arrays)
    return net, config, path


def load_net(folder):
    """The trained `core.DRAW` of a run's folder, on the CPU. Raises cli.UserError, OSError."""
    return load_run(folder)[0]


def load_init(args):
    """The parameters of the model that args.init names, as a checkpoint without a state; None if it names none, or if
    the run to resume has a checkpoint of its own. Raises cli.UserError."""
    begun = args.resume and os.path.lexists(os.path.join(args.resume, CHECKPOINT))
    return (arrays_of(load_net(args.init)), {}) if args.init and not begun else None
