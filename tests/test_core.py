"""Tests of core.py against the equations (oracle.py), closed forms and MXNet's own execution modes."""
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

import oracle
from core import (
    DRAW,
    DRAWLoss,
    NoAttentionRead,
    NoAttentionWrite,
    SelectiveAttentionRead,
    SelectiveAttentionWrite,
    filterbank,
    kl_per_step,
)

SHAPE = (5, 7)  # height, width
PIXELS = SHAPE[0] * SHAPE[1]
BATCH, T, UNITS, LATENT = 3, 3, 6, 4

ATTENTION = {'read_size': 2, 'write_size': 3}
NO_ATTENTION = {'read_size': None, 'write_size': None}
MODELS = [pytest.param(ATTENTION, id='attention'), pytest.param(NO_ATTENTION, id='no attention')]
MIXED = [pytest.param({'read_size': 2, 'write_size': None}, id='attention read only'),
         pytest.param({'read_size': None, 'write_size': 3}, id='attention write only')]
STATIC = {'static_alloc': True, 'static_shape': True}
MODES = [pytest.param(None, id='imperative'), pytest.param({}, id='hybrid'),
         pytest.param(STATIC, id='static')]


def build(sizes, image_shape=SHAPE, num_steps=T, units=UNITS, latent_dim=LATENT):
    """A network with None for 'without attention', as in the oracle."""
    read_size, write_size = sizes['read_size'], sizes['write_size']
    read = NoAttentionRead() if read_size is None else SelectiveAttentionRead(read_size, image_shape)
    write = (NoAttentionWrite(image_shape) if write_size is None
             else SelectiveAttentionWrite(write_size, image_shape))
    net = DRAW(read, write, image_shape, num_steps, units, latent_dim)
    net.initialize()
    return net


def parameter_shapes(sizes, image_shape=SHAPE, units=UNITS, latent_dim=LATENT):
    """Name and shape of every parameter the network must have, and no other."""
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
    """Non-zero values for every parameter, float32 numbers held in float64."""
    rng = np.random.RandomState(seed)
    return {name: rng.normal(scale=0.4, size=shape).astype(np.float32).astype(np.float64)
            for name, shape in parameter_shapes(sizes, **dimensions).items()}


def set_parameters(net, params):
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(params[name]))


def build_random(sizes, seed=0, hybridize=None):
    """A network and the parameters it was given. `hybridize`: None to stay imperative, else the options."""
    net, params = build(sizes), random_parameters(sizes, seed)
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
    """Outputs and losses as NumPy, with the gradient of the summed bound left in the parameters."""
    x, eps = to_nd(x, eps)
    with autograd.record():
        outputs = net(x, eps)
        reconstruction, kl = loss(*outputs, x)
        bound = reconstruction + kl
    bound.backward()
    return [value.asnumpy() for value in (*outputs, reconstruction, kl)]


def gradients(net):
    return {name: p.grad().asnumpy() for name, p in net._collect_params_with_prefix().items()}


# The network and the loss against the equations


@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_forward_equals_the_equations(sizes):
    net, params = build_random(sizes)
    x, eps = random_inputs()
    expected = oracle.forward(params, x, eps, SHAPE, **sizes)
    expected_loss = oracle.loss(expected['canvas'], expected['mu'], expected['log_sigma'], x)

    x_nd, eps_nd = to_nd(x, eps)
    outputs = net(x_nd, eps_nd)
    for name, actual in zip(('canvas', 'mu', 'log_sigma'), outputs):
        assert_same(actual, expected[name], message=name)
    for name, actual, value in zip(('reconstruction', 'kl'), DRAWLoss()(*outputs, x_nd), expected_loss):
        assert_same(actual, value, rtol=1e-5, atol=1e-4, message=name)


@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_parameter_names_and_shapes(sizes):
    net = build(sizes)
    net(*to_nd(*random_inputs()))
    actual = {name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    assert actual == parameter_shapes(sizes)


@pytest.mark.parametrize('sizes', MODELS)
def test_gradient_equals_finite_differences_of_the_equations(sizes):
    net, params = build_random(sizes)
    x, eps = random_inputs()
    train_forward_backward(net, DRAWLoss(), x, eps)
    rng = np.random.RandomState(7)

    def bound():
        outputs = oracle.forward(params, x, eps, SHAPE, **sizes)
        reconstruction, kl = oracle.loss(outputs['canvas'], outputs['mu'], outputs['log_sigma'], x)
        return reconstruction.sum() + kl.sum()

    step = 1e-4
    for name, gradient in gradients(net).items():
        for entry in rng.choice(gradient.size, size=min(5, gradient.size), replace=False):
            values, start = params[name].reshape(-1), params[name].reshape(-1)[entry]
            values[entry] = start + step
            above = bound()
            values[entry] = start - step
            below = bound()
            values[entry] = start
            np.testing.assert_allclose(
                gradient.reshape(-1)[entry], (above - below) / (2 * step), rtol=1e-3,
                atol=1e-4 * np.abs(gradient).max(), err_msg=f'{name}, entry {entry}')


def test_full_resolution_windows_are_the_network_without_attention():
    """With N = A = B, sharp centred filters and gamma = 1, reading and writing copy every pixel."""
    image_shape, N = (5, 5), 5
    plain_sizes, sharp_sizes = NO_ATTENTION, {'read_size': N, 'write_size': N}
    params = random_parameters(plain_sizes, image_shape=image_shape)
    window = {'weight': np.zeros((5, UNITS)), 'bias': np.array([0, 0, -12, 0, 0])}
    sharp_params = {
        **params,
        **{f'{side}.window.{kind}': value for side in ('read', 'write') for kind, value in window.items()},
        'write.patch.weight': params['write.image.weight'], 'write.patch.bias': params['write.image.bias'],
        'r_to_enc.weight': np.concatenate([params['x_to_enc.weight'], params['r_to_enc.weight']], axis=1),
    }
    inputs = to_nd(*random_inputs(pixels=25))
    plain, sharp = build(plain_sizes, image_shape), build(sharp_sizes, image_shape)
    set_parameters(plain, params)
    set_parameters(sharp, sharp_params)
    for actual, expected in zip(sharp(*inputs), plain(*inputs)):
        assert_same(actual, expected.asnumpy(), rtol=1e-5, atol=1e-5)


# The filterbank


def windows(count, seed, centre, log_variance, log_stride):
    """Random windows with |g~| <= centre, |log sigma^2| <= log_variance, |log delta~| <= log_stride."""
    limits = np.array([centre, centre, log_variance, log_stride, 2])
    rows = np.random.RandomState(seed).uniform(-1, 1, size=(count, 5)) * limits
    return rows.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize('N', [1, 2, 5])
@pytest.mark.parametrize('image_shape', [(5, 7), (9, 6)])
def test_filterbank_equals_the_equations(N, image_shape):
    params = windows(40, seed=N, centre=1.5, log_variance=3, log_stride=2)
    F_x, F_y, gamma = filterbank(mx.nd, mx.nd.array(params), N, image_shape)
    assert F_x.shape == (40, N, image_shape[1])
    assert F_y.shape == (40, N, image_shape[0])
    assert gamma.shape == (40, 1)
    for n, window in enumerate(params):
        expected_x, expected_y, expected_gamma = oracle.filterbank(window, N, image_shape)
        assert_same(F_x[n], expected_x, rtol=1e-3, atol=1e-5)
        assert_same(F_y[n], expected_y, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(gamma[n].asscalar(), expected_gamma, rtol=1e-5)


def gaussian_row(*squared_distances, variance):
    """A normalised filter from the squared distances of the pixels to its mean."""
    values = [math.exp(-d / (2 * variance)) for d in squared_distances]
    return [value / sum(values) for value in values]


def check_tiny_filterbank(filterbank_of):
    """Means worked out by hand for a 2 x 3 image and N = 2, where (max(A, B) - 1) / (N - 1) = 2.

    First window: g_X = 2, g_Y = 1.5, delta = 2: mu_X = 1, 3 and mu_Y = 0.5, 2.5; sigma^2 = 1.
    Second: g_X = 2 * 1.5, g_Y = 1.5 * 0.5, delta = 1: mu_X = 2.5, 3.5 and mu_Y = 0.25, 1.25; sigma^2 = 4.
    """
    params = np.array([[0, 0, 0, 0, 0], [0.5, -0.5, math.log(4), math.log(0.5), math.log(3)]])
    F_x, F_y, gamma = filterbank_of(params, 2, (2, 3))
    np.testing.assert_allclose(F_x[0], [[0.574097, 0.348207, 0.077696],
                                        [0.077696, 0.348207, 0.574097]], atol=2e-6)
    np.testing.assert_allclose(F_y[0], [[0.731059, 0.268941], [0.268941, 0.731059]], atol=2e-6)
    np.testing.assert_allclose(F_x[1], [gaussian_row(2.25, 0.25, 0.25, variance=4),
                                        gaussian_row(6.25, 2.25, 0.25, variance=4)], atol=2e-6)
    np.testing.assert_allclose(F_y[1], [gaussian_row(0.5625, 3.0625, variance=4),
                                        gaussian_row(0.0625, 0.5625, variance=4)], atol=2e-6)
    np.testing.assert_allclose(gamma, [[1], [3]], rtol=1e-6)


def test_filterbank_by_hand():
    check_tiny_filterbank(lambda params, N, image_shape: [
        array.asnumpy() for array in filterbank(mx.nd, mx.nd.array(params), N, image_shape)])


def test_filterbank_of_a_symbol_by_hand():
    def evaluate(params, N, image_shape):
        outputs = mx.sym.Group(filterbank(mx.sym, mx.sym.var('params'), N, image_shape))
        return [a.asnumpy() for a in outputs.bind(mx.cpu(), {'params': mx.nd.array(params)}).forward()]

    check_tiny_filterbank(evaluate)


def test_oracle_filterbank_by_hand():
    def evaluate(params, N, image_shape):
        F_x, F_y, gamma = zip(*(oracle.filterbank(window, N, image_shape) for window in params))
        return F_x, F_y, np.reshape(gamma, (-1, 1))

    check_tiny_filterbank(evaluate)


@pytest.mark.parametrize('N', [1, 2, 5])
def test_filters_stay_normalised_and_differentiable_at_the_extremes(N):
    grid = np.array(np.meshgrid([-1e3, -30, 0.1, 30, 1e3], [-1e3, -1, 2, 1e3], [-30, -20, 0, 20, 30],
                                [-30, -20, 0, 20, 30], [0])).reshape(5, -1).T
    params = mx.nd.array(grid)
    params.attach_grad()
    with autograd.record():
        F_x, F_y, gamma = filterbank(mx.nd, params, N, SHAPE)
        weighted = [F * mx.nd.array(np.random.uniform(size=F.shape[1:])).expand_dims(0) for F in (F_x, F_y)]
        total = weighted[0].sum() + weighted[1].sum() + gamma.sum()
    total.backward()
    for rows in (F_x.asnumpy(), F_y.asnumpy()):
        assert np.isfinite(rows).all() and (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(axis=2), 1, rtol=0, atol=1e-5)
    assert np.isfinite(params.grad.asnumpy()).all()


@pytest.mark.parametrize('N', [1, 2, 5])
def test_far_windows_read_the_nearest_edge(N):
    """A window far to the right of and above the image sees its last column and first row."""
    window = np.array([[30, -30, 0, -3, 0]])
    F_x, F_y, _ = filterbank(mx.nd, mx.nd.array(window), N, SHAPE)
    np.testing.assert_allclose(F_x.asnumpy()[0], np.eye(SHAPE[1])[[-1] * N], atol=1e-6)
    np.testing.assert_allclose(F_y.asnumpy()[0], np.eye(SHAPE[0])[[0] * N], atol=1e-6)


@pytest.mark.parametrize('window', [
    [0.1, -0.2, -30, 0.3, 0], [0.1, -0.2, 30, 0.3, 0], [0.1, -0.2, 0.5, -30, 0], [0.1, -0.2, 0.5, 30, 0],
    [0.1, -0.2, -30, -30, 0]])
def test_numerical_guard_changes_no_filter(window):
    """The equations without any clipping, where log sigma^2 or log delta~ is beyond the guard."""
    F_x, F_y, _ = filterbank(mx.nd, mx.nd.array([window]), 5, SHAPE)
    expected_x, expected_y, _ = oracle.filterbank(window, 5, SHAPE)
    assert_same(F_x[0], expected_x, atol=1e-5)
    assert_same(F_y[0], expected_y, atol=1e-5)


@pytest.mark.parametrize('image_shape, rows, columns', [
    ((5, 5), slice(0, 5), slice(0, 5)),
    ((5, 7), slice(0, 5), slice(1, 6)),
    ((9, 5), slice(2, 7), slice(0, 5)),
])
def test_sharp_window_of_the_image_stride_copies_pixels(image_shape, rows, columns):
    N = 5
    log_stride = math.log((N - 1) / (max(image_shape) - 1))  # delta = 1 pixel
    F_x, F_y, _ = (array.asnumpy()[0] for array in filterbank(
        mx.nd, mx.nd.array([[0, 0, -10, log_stride, 0]]), N, image_shape))
    image = np.random.uniform(size=image_shape).astype(np.float32)
    np.testing.assert_array_equal(F_y @ image @ F_x.T, image[rows, columns])


# The loss


def test_loss_of_zero_logits_and_the_prior():
    x = mx.nd.random.uniform(shape=(BATCH, PIXELS))
    zeros = mx.nd.zeros((T, BATCH, LATENT))
    reconstruction, kl = DRAWLoss()(mx.nd.zeros((BATCH, PIXELS)), zeros, zeros, x)
    assert_same(reconstruction, np.full(BATCH, PIXELS * math.log(2)), rtol=1e-6, atol=0)
    assert_same(kl, np.zeros(BATCH), rtol=0, atol=1e-6)
    assert_same(kl_per_step(mx.nd, zeros, zeros), np.zeros((T, BATCH)), rtol=0, atol=1e-6)


def test_reconstruction_by_hand():
    """p = 3/4, 1/4, 1/2 for x = 1, 0, 1/4: log 4/3 twice, log 2."""
    canvas = mx.nd.array([[math.log(3), -math.log(3), 0]])
    zeros = mx.nd.zeros((1, 1, 1))
    reconstruction, _ = DRAWLoss()(canvas, zeros, zeros, mx.nd.array([[1, 0, 0.25]]))
    assert_same(reconstruction, np.array([2 * math.log(4 / 3) + math.log(2)]), rtol=1e-6, atol=0)


def test_kl_counts_its_constant_for_every_latent_dimension():
    """mu = 1, sigma = 1 is 1/2 nat for a dimension and a step; mu = 0, sigma = 2 is 3/2 - log 2."""
    mu = mx.nd.zeros((2, 1, 3))
    log_sigma = mx.nd.zeros((2, 1, 3))
    mu[0] = 1
    log_sigma[1] = math.log(2)
    steps = np.array([[3 * 0.5], [3 * (1.5 - math.log(2))]])
    assert_same(kl_per_step(mx.nd, mu, log_sigma), steps, rtol=1e-5, atol=0)
    _, kl = DRAWLoss()(mx.nd.zeros((1, 2)), mu, log_sigma, mx.nd.zeros((1, 2)))
    assert_same(kl, steps.sum(axis=0), rtol=1e-5, atol=0)


def test_kl_per_step_separates_steps_and_images():
    mu, log_sigma = np.random.normal(size=(2, T, BATCH, LATENT)).astype(np.float32)
    nothing = np.zeros((BATCH, 1))
    expected = np.stack([oracle.loss(nothing, mu[t:t + 1], log_sigma[t:t + 1], nothing)[1] for t in range(T)])
    assert_same(kl_per_step(mx.nd, *to_nd(mu, log_sigma)), expected, rtol=1e-4, atol=1e-5)


def test_loss_of_large_logits():
    """A wrong pixel costs the logit itself, a right one nothing, and the gradient is sigma(c) - x."""
    canvas = mx.nd.array([[1e4, -1e4, 1e4, -1e4, 1e4]])
    x = mx.nd.array([[0, 1, 1, 0, 0.25]])
    zeros = mx.nd.zeros((1, 1, 1))
    canvas.attach_grad()
    with autograd.record():
        reconstruction, _ = DRAWLoss()(canvas, zeros, zeros, x)
    reconstruction.backward()
    assert_same(reconstruction, np.array([2.75e4]), rtol=1e-6, atol=0)
    assert_same(canvas.grad, np.array([[1, -1, 0, 0, 0.75]]), rtol=0, atol=1e-6)


# Execution modes


SCHEDULE = [(True, 6), (True, 6), (False, 10), (True, 6), (True, 2), (True, 6)]  # train?, batch


def run_schedule(sizes, hybridize):
    """Outputs of every phase and gradients of every training step, in the order a run uses the network."""
    net, _ = build_random(sizes, hybridize=hybridize)
    loss = DRAWLoss()
    if hybridize is not None:
        loss.hybridize(**hybridize)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 1e-3})
    record = []
    for phase, (train, batch) in enumerate(SCHEDULE):
        x, eps = random_inputs(batch, seed=phase)
        if train:
            record.append(train_forward_backward(net, loss, x, eps))
            record.append(gradients(net))
            trainer.step(batch)
        else:
            x, eps = to_nd(x, eps)
            outputs = net(x, eps)
            record.append([value.asnumpy() for value in (*outputs, *loss(*outputs, x))])
    return record


@pytest.mark.parametrize('sizes', MODELS)
def test_every_execution_mode_gives_the_same_outputs_and_gradients(sizes):
    expected = run_schedule(sizes, None)
    for hybridize in ({}, STATIC):
        for phase, (actual_part, part) in enumerate(zip(run_schedule(sizes, hybridize), expected)):
            for key in (part if isinstance(part, dict) else range(len(part))):
                scale = np.abs(part[key]).max()
                assert_same(actual_part[key], part[key], rtol=1e-4, atol=1e-5 * scale,
                            message=f'{hybridize}, record {phase}, {key}')


@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_no_parameter_is_dead(sizes):
    net, _ = build_random(sizes, hybridize=STATIC)
    train_forward_backward(net, DRAWLoss(), *random_inputs())
    for name, gradient in gradients(net).items():
        assert np.isfinite(gradient).all(), name
        assert (gradient != 0).all(), name


# Noise, batches


def test_noise_of_a_step_reaches_only_later_outputs():
    net, _ = build_random(ATTENTION)
    x, eps = random_inputs()
    changed = eps.copy()
    changed[1] += 1
    before, after = net(*to_nd(x, eps)), net(*to_nd(x, changed))
    for first, second in zip(before[1:], after[1:]):  # q(z_t) depends on z_1 .. z_{t-1}
        first, second = first.asnumpy(), second.asnumpy()
        np.testing.assert_array_equal(first[:2], second[:2])
        assert (np.abs(first[2] - second[2]) > 1e-6).all()
    canvases, changed_canvases = (net.reconstruct(*to_nd(x, e))[0].asnumpy() for e in (eps, changed))
    np.testing.assert_array_equal(canvases[:2], changed_canvases[:2])
    assert np.abs(canvases[2:] - changed_canvases[2:]).max(axis=2).min() > 1e-4


@pytest.mark.parametrize('sizes', MODELS)
def test_outputs_are_a_function_of_x_and_eps(sizes):
    net, _ = build_random(sizes)
    inputs = to_nd(*random_inputs())
    mx.random.seed(1)
    first = [value.asnumpy() for value in net(*inputs)]
    mx.random.seed(2)
    with autograd.train_mode():
        second = [value.asnumpy() for value in net(*inputs)]
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('sizes', MODELS)
def test_images_of_a_batch_do_not_mix(sizes):
    net, _ = build_random(sizes)
    x, eps = random_inputs()
    canvas, mu, log_sigma = (value.asnumpy() for value in net(*to_nd(x, eps)))
    for order in ([2, 0, 1], [1]):
        permuted = net(*to_nd(x[order], eps[:, order]))
        for actual, expected in zip(permuted, (canvas[order], mu[:, order], log_sigma[:, order])):
            assert_same(actual, expected, rtol=1e-5, atol=1e-6)


# Samples and reconstructions


@pytest.mark.parametrize('hybridize', MODES)
@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_generate_equals_the_equations(sizes, hybridize):
    net, params = build_random(sizes, hybridize=hybridize)
    _, eps = random_inputs()
    expected_canvases, expected_windows = oracle.generate(params, eps, SHAPE, sizes['write_size'])
    canvases, write_windows = net.generate(mx.nd.array(eps))
    assert_same(canvases, expected_canvases)
    assert_same(write_windows, expected_windows)
    assert (canvases[0].asnumpy() == 0).all()


@pytest.mark.parametrize('hybridize', MODES)
@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_reconstruct_equals_the_equations_and_the_forward_pass(sizes, hybridize):
    net, params = build_random(sizes, hybridize=hybridize)
    x, eps = random_inputs()
    expected = oracle.forward(params, x, eps, SHAPE, **sizes)
    x, eps = to_nd(x, eps)
    train_canvas = net(x, eps)[0].asnumpy()
    canvases, write_windows, read_windows = net.reconstruct(x, eps)
    assert_same(canvases, expected['canvases'])
    assert_same(write_windows, expected['write_windows'])
    assert_same(read_windows, expected['read_windows'])
    assert_same(canvases[-1], train_canvas, rtol=1e-5, atol=1e-6)
    assert (canvases[0].asnumpy() == 0).all()


# Training


@pytest.mark.parametrize('sizes', MODELS)
def test_overfits_one_batch(sizes):
    net = build(sizes, units=16)
    net.initialize(mx.init.Xavier(), force_reinit=True)
    net.hybridize(**STATIC)
    loss = DRAWLoss()
    trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': 0.02})
    x = np.zeros((BATCH, *SHAPE))
    x[0, :3, :3] = x[1, 2:, 3:] = x[2, 1:4, 2:6] = 1
    x = x.reshape(BATCH, PIXELS)
    bounds = []
    for _ in range(60):
        eps = np.random.normal(size=(T, BATCH, LATENT))
        _, _, _, reconstruction, kl = train_forward_backward(net, loss, x, eps)
        bounds.append((reconstruction + kl).mean())
        trainer.step(BATCH)
    assert np.isfinite(bounds).all()
    assert np.median(bounds[-10:]) < 0.65 * PIXELS * math.log(2)  # log 2 a pixel is where it starts


@pytest.mark.parametrize('sizes', MODELS)
def test_parameters_survive_a_file(sizes, tmp_path):
    net, _ = build_random(sizes)
    inputs = to_nd(*random_inputs())
    expected = [value.asnumpy() for value in net(*inputs)]
    path = str(tmp_path / 'draw.params')
    net.save_parameters(path)
    loaded = build(sizes)
    loaded.load_parameters(path)
    for actual, value in zip(loaded(*inputs), expected):
        np.testing.assert_array_equal(actual.asnumpy(), value)


def resident_megabytes():
    with open('/proc/self/status') as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith('VmRSS'))
    return int(kilobytes) / 1024


@pytest.mark.parametrize('sizes', MODELS)
def test_training_does_not_leak_memory(sizes):
    """A 2-D concat under autograd leaks about 3 KB a call: one in a step is 9 MB over these updates."""
    num_steps, updates = 8, 400
    net = build(sizes, num_steps=num_steps)
    net.hybridize(**STATIC)
    loss = DRAWLoss()
    trainer = gluon.Trainer(net.collect_params(), 'adam')
    x, eps = random_inputs(num_steps=num_steps)
    for update in range(100 + updates):
        if update == 100:
            start = resident_megabytes()
        train_forward_backward(net, loss, x, eps)
        trainer.step(BATCH)
    mx.nd.waitall()
    assert resident_megabytes() - start < 3


# Sizes


@pytest.mark.parametrize('block', [SelectiveAttentionRead, SelectiveAttentionWrite])
@pytest.mark.parametrize('filter_size, image_shape', [
    (0, (5, 7)), (-1, (5, 7)), (6, (5, 7)), (6, (7, 5)), (1, (0, 7))])
def test_bad_window_sizes_are_refused(block, filter_size, image_shape):
    with pytest.raises(ValueError):
        block(filter_size, image_shape)


@pytest.mark.parametrize('block', [SelectiveAttentionRead, SelectiveAttentionWrite])
@pytest.mark.parametrize('filter_size', [1, 5])
def test_smallest_and_largest_window_sizes_are_accepted(block, filter_size):
    block(filter_size, (5, 7))
    block(filter_size, (7, 5))


@pytest.mark.parametrize('image_shape', [(0, 5), (5, -1)])
def test_bad_image_shapes_are_refused(image_shape):
    with pytest.raises(ValueError):
        DRAW(NoAttentionRead(), NoAttentionWrite(image_shape), image_shape, T, UNITS, LATENT)


@pytest.mark.parametrize('num_steps, units, latent_dim', [(0, 6, 4), (3, 0, 4), (3, 6, 0), (-3, 6, 4)])
def test_bad_network_sizes_are_refused(num_steps, units, latent_dim):
    with pytest.raises(ValueError):
        DRAW(NoAttentionRead(), NoAttentionWrite(SHAPE), SHAPE, num_steps, units, latent_dim)


@pytest.mark.parametrize('x_shape, eps_shape', [
    ((BATCH, PIXELS + 1), (T, BATCH, LATENT)),
    ((BATCH + 1, PIXELS), (T, BATCH, LATENT)),
    ((BATCH, PIXELS), (T + 1, BATCH, LATENT)),
    ((BATCH, PIXELS), (T, BATCH, LATENT + 1)),
    ((BATCH, PIXELS), (BATCH, LATENT)),
])
@pytest.mark.parametrize('hybridize', MODES)
def test_inputs_of_the_wrong_shape_are_refused(x_shape, eps_shape, hybridize):
    net, _ = build_random(ATTENTION, hybridize=hybridize)
    x, eps = mx.nd.zeros(x_shape), mx.nd.zeros(eps_shape)
    with pytest.raises(ValueError):
        net(x, eps)
    with pytest.raises(ValueError):
        net.reconstruct(x, eps)
    if eps_shape != (T, BATCH, LATENT):
        with pytest.raises(ValueError):
            net.generate(eps)


@pytest.mark.parametrize('read, write', [
    (lambda: SelectiveAttentionRead(2, (7, 5)), lambda: NoAttentionWrite((5, 7))),
    (NoAttentionRead, lambda: SelectiveAttentionWrite(2, (7, 5))),
    (NoAttentionRead, lambda: NoAttentionWrite((7, 5))),
])
def test_blocks_for_another_image_shape_are_refused(read, write):
    with pytest.raises(ValueError, match=r'\(7, 5\).*\(5, 7\)'):
        DRAW(read(), write(), (5, 7), num_steps=2, num_recurrent_units=3, latent_dim=2)
