"""Small networks with random parameters, their inputs and steps, and how arrays are compared."""
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

import core
import oracle
from runs import params

SHAPE = (5, 7)  # height, width
PIXELS = SHAPE[0] * SHAPE[1]
BATCH, T, UNITS, LATENT = 3, 3, 6, 4

ATTENTION = {'read_size': 2, 'write_size': 3}
NO_ATTENTION = {'read_size': None, 'write_size': None}
MODELS = [pytest.param(ATTENTION, id='attention'), pytest.param(NO_ATTENTION, id='no attention')]
MIXED = [pytest.param({'read_size': 2, 'write_size': None}, id='attention read only'),
         pytest.param({'read_size': None, 'write_size': 3}, id='attention write only')]


def build(sizes, image_shape=SHAPE, num_steps=T, units=UNITS, latent_dim=LATENT):
    """A network with initial parameters. A size of None means 'without attention', as in the oracle."""
    read_size, write_size = sizes['read_size'], sizes['write_size']
    read = core.NoAttentionRead() if read_size is None else core.SelectiveAttentionRead(read_size, image_shape)
    write = (core.NoAttentionWrite(image_shape) if write_size is None
             else core.SelectiveAttentionWrite(write_size, image_shape))
    net = core.DRAW(read, write, image_shape, num_steps, units, latent_dim)
    net.initialize()
    return net


def random_parameters(net, seed=0, scale=0.4):
    """Random values for every parameter, float32 numbers held in float64."""
    rng = np.random.RandomState(seed)
    return {name: rng.normal(scale=scale, size=parameter.shape).astype(np.float32).astype(np.float64)
            for name, parameter in params.of(net).items()}


def build_random(sizes, hybridize=None, num_steps=T):
    """A network and its random parameters. `hybridize`: the options, or None for an imperative network."""
    net = build(sizes, num_steps=num_steps)
    values = random_parameters(net)
    params.set_arrays(net, values)
    if hybridize is not None:
        net.hybridize(**hybridize)
    return net, values


def random_inputs(batch=BATCH, pixels=PIXELS, num_steps=T, latent_dim=LATENT, seed=0):
    """x and eps, float32 numbers held in float64."""
    rng = np.random.RandomState(100 + seed)
    x = rng.uniform(size=(batch, pixels)).astype(np.float32).astype(np.float64)
    eps = rng.normal(size=(num_steps, batch, latent_dim)).astype(np.float32).astype(np.float64)
    return x, eps


def to_nd(*arrays):
    return tuple(mx.nd.array(array) for array in arrays)


def assert_near(actual, expected, rtol=1e-4, atol=1e-5, message=''):
    """Equal shapes and close values. None equals None only."""
    if expected is None or actual is None:
        assert actual is None and expected is None, message
        return
    actual = actual.asnumpy() if isinstance(actual, mx.nd.NDArray) else actual
    assert actual.shape == expected.shape, message
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=message)


def assert_close(found, expected, tolerance=2e-5):
    """{name: array}: close up to a part of the largest number of each array."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * np.abs(array).max(), err_msg=str(name))


def assert_equal(found, expected):
    """{name: array}: equal bit for bit."""
    assert_close(found, expected, tolerance=0)


def step(net, x, eps, forward=None, loss=None):
    """{name: array} of outputs, losses, and gradients of the summed bound. `forward` computes the network."""
    x, eps = to_nd(x, eps)
    with autograd.record():
        outputs = (forward or net)(x, eps)
        reconstruction, kl = (loss or core.DRAWLoss())(*outputs, x)
        bound = reconstruction + kl
    bound.backward()
    names = 'canvas', 'mu', 'log_sigma', 'reconstruction', 'kl'
    found = {name: array.asnumpy() for name, array in zip(names, (*outputs, reconstruction, kl))}
    return {**found, **gradients(net)}


def gradients(net):
    return {name: p.grad().asnumpy() for name, p in params.of(net).items() if p.grad_req != 'null'}


def assert_gradients_of_the_equations(net, forward, values, x, eps, sizes):
    """`forward`, which computes `net`, has the gradients of the float64 oracle, along a random direction of each
    parameter."""
    step(net, x, eps, forward)
    rng = np.random.RandomState(7)

    def bound(name, change):
        outputs = oracle.forward({**values, name: values[name] + change}, x, eps, net.image_shape, **sizes)
        return np.sum(oracle.loss(outputs['canvas'], outputs['mu'], outputs['log_sigma'], x))

    for name, gradient in gradients(net).items():
        direction = 1e-5 * rng.normal(size=gradient.shape)
        slope = (bound(name, direction) - bound(name, -direction)) / 2
        assert (gradient * direction).sum() == pytest.approx(slope, rel=5e-4, abs=1e-8), name


def resident_mebibytes():
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2 ** 20
