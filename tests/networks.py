"""Small networks with random parameters, and their inputs, for the tests of core.py."""
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from core import DRAW, STATIC, NoAttentionRead, NoAttentionWrite, SelectiveAttentionRead, SelectiveAttentionWrite

SHAPE = (5, 7)  # height, width
PIXELS = SHAPE[0] * SHAPE[1]
BATCH, T, UNITS, LATENT = 3, 3, 6, 4

ATTENTION = {'read_size': 2, 'write_size': 3}
NO_ATTENTION = {'read_size': None, 'write_size': None}
MODELS = [pytest.param(ATTENTION, id='attention'), pytest.param(NO_ATTENTION, id='no attention')]
MIXED = [pytest.param({'read_size': 2, 'write_size': None}, id='attention read only'),
         pytest.param({'read_size': None, 'write_size': 3}, id='attention write only')]
MODES = [pytest.param(None, id='imperative'), pytest.param({}, id='hybrid'), pytest.param(STATIC, id='static')]


def define(sizes, image_shape=SHAPE, num_steps=T, units=UNITS, latent_dim=LATENT):
    """A network that is not initialized. A size of None means 'without attention', as in the oracle."""
    read_size, write_size = sizes['read_size'], sizes['write_size']
    read = NoAttentionRead() if read_size is None else SelectiveAttentionRead(read_size, image_shape)
    write = (NoAttentionWrite(image_shape) if write_size is None
             else SelectiveAttentionWrite(write_size, image_shape))
    return DRAW(read, write, image_shape, num_steps, units, latent_dim)


def build(*args, **kwargs):
    """What `define` returns, with initial parameters."""
    net = define(*args, **kwargs)
    net.initialize()
    return net


def parameter_shapes(sizes, image_shape=SHAPE, units=UNITS, latent_dim=LATENT):
    """{name: shape} of all parameters that the network must have."""
    pixels = image_shape[0] * image_shape[1]
    read_size, write_size = sizes['read_size'], sizes['write_size']
    r = pixels if read_size is None else 2 * read_size ** 2
    shapes = {
        'r_to_enc.weight': (4 * units, r), 'r_to_enc.bias': (4 * units,),
        'h_dec_to_enc.weight': (4 * units, units),
        'h_enc_to_enc.weight': (4 * units, units),
        'h_enc_to_q.weight': (2 * latent_dim, units), 'h_enc_to_q.bias': (2 * latent_dim,),
        'z_to_dec.weight': (4 * units, latent_dim), 'z_to_dec.bias': (4 * units,),
        'h_dec_to_dec.weight': (4 * units, units),
        'h_enc_0': (1, units), 'c_enc_0': (1, units), 'h_dec_0': (1, units), 'c_dec_0': (1, units),
    }
    if read_size is None:
        shapes['x_to_enc.weight'] = 4 * units, pixels
    else:
        shapes.update({'read.window.weight': (5, units), 'read.window.bias': (5,)})
    if write_size is None:
        shapes.update({'write.image.weight': (pixels, units), 'write.image.bias': (pixels,)})
    else:
        shapes.update({'write.window.weight': (5, units), 'write.window.bias': (5,),
                       'write.patch.weight': (write_size ** 2, units),
                       'write.patch.bias': (write_size ** 2,)})
    return shapes


def random_parameters(sizes, seed=0, **dimensions):
    """Random values for every parameter, float32 numbers held in float64."""
    rng = np.random.RandomState(seed)
    return {name: rng.normal(scale=0.4, size=shape).astype(np.float32).astype(np.float64)
            for name, shape in parameter_shapes(sizes, **dimensions).items()}


def set_parameters(net, params):
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(params[name]))


def build_random(sizes, seed=0, hybridize=None, num_steps=T):
    """A network and its random parameters. `hybridize`: the options, or None for an imperative network."""
    net, params = build(sizes, num_steps=num_steps), random_parameters(sizes, seed)
    set_parameters(net, params)
    if hybridize is not None:
        net.hybridize(**hybridize)
    return net, params


def random_inputs(batch=BATCH, pixels=PIXELS, num_steps=T, latent_dim=LATENT, seed=0):
    """x and eps, float32 numbers held in float64."""
    rng = np.random.RandomState(100 + seed)
    x = rng.uniform(size=(batch, pixels)).astype(np.float32).astype(np.float64)
    eps = rng.normal(size=(num_steps, batch, latent_dim)).astype(np.float32).astype(np.float64)
    return x, eps


def to_nd(*arrays):
    return tuple(mx.nd.array(array) for array in arrays)


def assert_same(actual, expected, rtol=1e-4, atol=1e-5, message=''):
    """Equal shapes and close values. None equals None only."""
    if expected is None or actual is None:
        assert actual is None and expected is None, message
        return
    actual = actual.asnumpy() if isinstance(actual, mx.nd.NDArray) else actual
    assert actual.shape == expected.shape, message
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=message)


def train_forward_backward(net, loss, x, eps):
    """Outputs and losses as NumPy arrays; leaves the gradient of the summed bound in the parameters."""
    x, eps = to_nd(x, eps)
    with autograd.record():
        outputs = net(x, eps)
        reconstruction, kl = loss(*outputs, x)
        bound = reconstruction + kl
    bound.backward()
    return [value.asnumpy() for value in (*outputs, reconstruction, kl)]


def gradients(net):
    return {name: p.grad().asnumpy() for name, p in net._collect_params_with_prefix().items()}
