"""core.py: the equations (oracle.py) and closed forms, execution modes, memory, and what the network refuses."""
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

import core
import oracle
from networks import (
    ATTENTION,
    BATCH,
    LATENT,
    MIXED,
    MODELS,
    NO_ATTENTION,
    PIXELS,
    SHAPE,
    UNITS,
    T,
    assert_close,
    assert_gradients_of_the_equations,
    assert_near,
    build,
    build_random,
    gradients,
    random_inputs,
    random_parameters,
    resident_mebibytes,
    step,
    to_nd,
)
from runs.params import set_arrays

MODES = [pytest.param(None, id='imperative'), pytest.param({}, id='hybrid'), pytest.param(core.STATIC, id='static')]


# The network and the loss

@pytest.mark.parametrize('num_steps, batch', [(T, BATCH), (1, 1)])
@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_outputs_and_losses_are_those_of_the_equations(sizes, num_steps, batch):
    net, params = build_random(sizes, num_steps=num_steps)
    x, eps = random_inputs(batch, num_steps=num_steps)
    expected = oracle.forward(params, x, eps, SHAPE, **sizes)
    expected_loss = oracle.loss(expected['canvas'], expected['mu'], expected['log_sigma'], x)
    x_nd, eps_nd = to_nd(x, eps)
    outputs = net(x_nd, eps_nd)
    for name, actual in zip(('canvas', 'mu', 'log_sigma'), outputs):
        assert_near(actual, expected[name], message=name)
    for name, actual, value in zip(('reconstruction', 'kl'), core.DRAWLoss()(*outputs, x_nd), expected_loss):
        assert_near(actual, value, rtol=1e-5, atol=1e-4, message=name)


@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_gradients_are_those_of_the_equations(sizes):
    net, params = build_random(sizes)
    assert_gradients_of_the_equations(net, net, params, *random_inputs(), sizes)


def test_full_resolution_windows_are_the_network_without_attention():
    """With N = A = B, sharp centred filters and gamma = 1, reading and writing copy every pixel."""
    plain = build(NO_ATTENTION, image_shape=(5, 5))
    sharp = build({'read_size': 5, 'write_size': 5}, image_shape=(5, 5))
    params = random_parameters(plain)
    window = {'weight': np.zeros((5, UNITS)), 'bias': np.array([0, 0, -12, 0, 0])}
    sharp_params = {
        **params,
        **{f'{side}.window.{kind}': value for side in ('read', 'write') for kind, value in window.items()},
        'write.patch.weight': params['write.image.weight'], 'write.patch.bias': params['write.image.bias'],
        'r_to_enc.weight': np.concatenate([params['x_to_enc.weight'], params['r_to_enc.weight']], axis=1),
    }
    set_arrays(plain, params)
    set_arrays(sharp, sharp_params)
    inputs = to_nd(*random_inputs(pixels=25))
    for actual, expected in zip(sharp(*inputs), plain(*inputs)):
        assert_near(actual, expected.asnumpy(), rtol=1e-5, atol=1e-5)


# The filterbank

def of_arrays(params, N, image_shape):
    return [array.asnumpy() for array in core.filterbank(mx.nd, mx.nd.array(params), N, image_shape)]


def of_oracle(params, N, image_shape):
    F_x, F_y, gamma = map(np.array, zip(*(oracle.filterbank(window, N, image_shape) for window in params)))
    return F_x, F_y, gamma[:, None]


@pytest.mark.parametrize('N', [1, 2, 5])
@pytest.mark.parametrize('image_shape', [(5, 7), (9, 6)])
def test_filterbank_equals_the_equations(N, image_shape):
    windows = np.random.RandomState(N).uniform(-1, 1, size=(40, 5)) * [1.5, 1.5, 3, 2, 2]
    windows = windows.astype(np.float32).astype(np.float64)
    for actual, expected in zip(of_arrays(windows, N, image_shape), of_oracle(windows, N, image_shape)):
        assert_near(actual, expected, rtol=1e-3, atol=1e-5)


def gaussian_row(*squared_distances, variance):
    """A normalised filter from the squared distances of the pixels to its mean."""
    values = [math.exp(-d / (2 * variance)) for d in squared_distances]
    return [value / sum(values) for value in values]


@pytest.mark.parametrize('filterbank_of', [of_arrays, of_oracle])
def test_filterbank_by_hand(filterbank_of):
    """A 2 x 3 image and N = 2, where (max(A, B) - 1) / (N - 1) = 2.

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


@pytest.mark.parametrize('N', [1, 2, 5])
def test_filters_stay_normalised_and_differentiable_at_the_extremes(N):
    grid = np.array(np.meshgrid([-1e3, -30, 0.1, 30, 1e3], [-1e3, -1, 2, 1e3], [-30, -20, 0, 20, 30],
                                [-30, -20, 0, 20, 30], [0])).reshape(5, -1).T
    params = mx.nd.array(grid)
    params.attach_grad()
    with autograd.record():
        F_x, F_y, gamma = core.filterbank(mx.nd, params, N, SHAPE)
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
    F_x, F_y, _ = of_arrays([[30, -30, 0, -3, 0]], N, SHAPE)
    np.testing.assert_allclose(F_x[0], np.eye(SHAPE[1])[[-1] * N], atol=1e-6)
    np.testing.assert_allclose(F_y[0], np.eye(SHAPE[0])[[0] * N], atol=1e-6)


@pytest.mark.parametrize('window', [
    [0.1, -0.2, -30, 0.3, 0], [0.1, -0.2, 30, 0.3, 0], [0.1, -0.2, 0.5, -30, 0], [0.1, -0.2, 0.5, 30, 0],
    [0.1, -0.2, -30, -30, 0]])
def test_clipping_changes_no_filter(window):
    """The oracle clips nothing; log sigma^2 or log delta~ is beyond the limits of core.py."""
    for actual, expected in zip(of_arrays([window], 5, SHAPE), of_oracle([window], 5, SHAPE)):
        assert_near(actual, expected, atol=1e-5)


@pytest.mark.parametrize('image_shape, rows, columns', [
    ((5, 5), slice(0, 5), slice(0, 5)), ((5, 7), slice(0, 5), slice(1, 6)), ((9, 5), slice(2, 7), slice(0, 5))])
def test_sharp_window_of_the_image_stride_copies_pixels(image_shape, rows, columns):
    N = 5
    log_stride = math.log((N - 1) / (max(image_shape) - 1))  # delta = 1 pixel
    F_x, F_y, _ = of_arrays([[0, 0, -10, log_stride, 0]], N, image_shape)
    image = np.random.uniform(size=image_shape).astype(np.float32)
    np.testing.assert_array_equal(F_y[0] @ image @ F_x[0].T, image[rows, columns])


# The loss

def test_reconstruction_by_hand():
    """p = 3/4, 1/4, 1/2 for x = 1, 0, 1/4: log 4/3 twice, log 2."""
    canvas = mx.nd.array([[math.log(3), -math.log(3), 0]])
    zeros = mx.nd.zeros((1, 1, 1))
    reconstruction, _ = core.DRAWLoss()(canvas, zeros, zeros, mx.nd.array([[1, 0, 0.25]]))
    assert_near(reconstruction, np.array([2 * math.log(4 / 3) + math.log(2)]), rtol=1e-6, atol=0)


def test_kl_counts_its_constant_for_every_latent_dimension():
    """mu = 1, sigma = 1 is 1/2 nat for a dimension and a step; mu = 0, sigma = 2 is 3/2 - log 2."""
    mu = mx.nd.zeros((2, 1, 3))
    log_sigma = mx.nd.zeros((2, 1, 3))
    mu[0] = 1
    log_sigma[1] = math.log(2)
    steps = np.array([[3 * 0.5], [3 * (1.5 - math.log(2))]])
    assert_near(core.kl_per_step(mx.nd, mu, log_sigma), steps, rtol=1e-5, atol=0)
    _, kl = core.DRAWLoss()(mx.nd.zeros((1, 2)), mu, log_sigma, mx.nd.zeros((1, 2)))
    assert_near(kl, steps.sum(axis=0), rtol=1e-5, atol=0)


def test_loss_of_large_logits():
    """A wrong pixel costs the logit itself, a right one nothing, and the gradient is sigma(c) - x."""
    canvas = mx.nd.array([[1e4, -1e4, 1e4, -1e4, 1e4]])
    x = mx.nd.array([[0, 1, 1, 0, 0.25]])
    zeros = mx.nd.zeros((1, 1, 1))
    canvas.attach_grad()
    with autograd.record():
        reconstruction, _ = core.DRAWLoss()(canvas, zeros, zeros, x)
    reconstruction.backward()
    assert_near(reconstruction, np.array([2.75e4]), rtol=1e-6, atol=0)
    assert_near(canvas.grad, np.array([[1, -1, 0, 0, 0.75]]), rtol=0, atol=1e-6)


# Samples and reconstructions

@pytest.mark.parametrize('hybridize', MODES)
@pytest.mark.parametrize('sizes', MODELS + MIXED)
def test_samples_and_reconstructions_are_those_of_the_equations(sizes, hybridize):
    net, params = build_random(sizes, hybridize=hybridize)
    x, eps = random_inputs()
    x_nd, eps_nd = to_nd(x, eps)
    net(x_nd, eps_nd)  # a compiled network paints, too
    expected = oracle.forward(params, x, eps, SHAPE, **sizes)
    names = 'canvases', 'write_windows', 'read_windows'
    for name, actual in zip(names, net.reconstruct(x_nd, eps_nd)):
        assert_near(actual, expected[name], message=name)
    expected = oracle.forward(params, None, eps, SHAPE, **sizes)
    for name, actual in zip(names, net.generate(eps_nd)):
        assert_near(actual, expected[name], message=name)


# Execution modes

SCHEDULE = [(True, 6), (True, 6), (False, 10), (True, 6), (True, 2), (True, 6)]  # train?, batch


def run_schedule(sizes, hybridize):
    """{(phase, name): array}: outputs, losses and gradients, in the order in which a run uses the network."""
    net, _ = build_random(sizes, hybridize=hybridize)
    loss, found = core.DRAWLoss(), {}
    if hybridize is not None:
        loss.hybridize(**hybridize)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 1e-3})
    for phase, (train, batch) in enumerate(SCHEDULE):
        x, eps = random_inputs(batch, seed=phase)
        if train:
            found.update({(phase, name): array for name, array in step(net, x, eps, loss=loss).items()})
            trainer.step(batch)
        else:
            x, eps = to_nd(x, eps)
            outputs = net(x, eps)
            found.update({(phase, k): output.asnumpy() for k, output in enumerate((*outputs, *loss(*outputs, x)))})
    return found


@pytest.mark.parametrize('sizes', MODELS)
def test_every_execution_mode_gives_the_same_outputs_and_gradients(sizes):
    expected = run_schedule(sizes, None)
    for hybridize in ({}, core.STATIC):
        assert_close(run_schedule(sizes, hybridize), expected)


@pytest.mark.parametrize('sizes', MODELS)
def test_first_recorded_step_may_have_two_forward_passes(sizes):
    """With static_shape, MXNet 1.9.1 gets the gradients of all later steps wrong."""
    def gradients_of(net, seeds):
        with autograd.record():
            bounds = [mx.nd.add_n(*core.DRAWLoss()(*net(x, eps), x)) for x, eps in
                      (to_nd(*random_inputs(seed=seed)) for seed in seeds)]
        autograd.backward(bounds)
        return gradients(net)

    compiled, imperative = (build_random(sizes, hybridize=mode)[0] for mode in (core.STATIC, None))
    for seeds in ((0, 1), (2,), (3, 4)):
        assert_close(gradients_of(compiled, seeds), gradients_of(imperative, seeds))


def test_optimize_for_calls_hybridize_as_gluon_does():
    net, _ = build_random(ATTENTION)
    inputs = to_nd(*random_inputs())
    expected = net(*inputs)
    net.optimize_for(*inputs, backend='MKLDNN', static_alloc=True)
    assert net._active
    for actual, value in zip(net(*inputs), expected):
        assert_near(actual, value.asnumpy(), rtol=1e-5, atol=1e-6)


# Memory

@pytest.mark.parametrize('updates, limit', [(80, 1), pytest.param(400, 3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize('sizes', MODELS)
def test_training_does_not_leak_memory(sizes, updates, limit):
    """A 2-D concat under autograd leaks about 3 KB a call: one in a step is 1.9 MB over 80 updates, 9 over 400."""
    net, _ = build_random(sizes, hybridize=core.STATIC, num_steps=8)
    loss = core.DRAWLoss()
    trainer = gluon.Trainer(net.collect_params(), 'adam')
    x, eps = random_inputs(num_steps=8)
    for update in range(20 + updates):
        if update == 20:
            before = resident_mebibytes()
        step(net, x, eps, loss=loss)
        trainer.step(BATCH)
    mx.nd.waitall()
    assert resident_mebibytes() - before < limit


# What the network refuses

@pytest.mark.parametrize('block', [core.SelectiveAttentionRead, core.SelectiveAttentionWrite])
@pytest.mark.parametrize('image_shape', [(5, 7), (7, 5)])
def test_filters_are_at_most_as_many_as_pixels_of_the_shorter_side(block, image_shape):
    for filter_size in (1, 5):
        block(filter_size, image_shape)
    for filter_size in (-1, 0, 6):
        with pytest.raises(ValueError, match=f'from 1 to 5, not {filter_size}'):
            block(filter_size, image_shape)


@pytest.mark.parametrize('height, width, num_steps, units, latent_dim', [
    (0, 7, 3, 6, 4), (5, -1, 3, 6, 4), (5, 7, 0, 6, 4), (5, 7, 3, 0, 4), (5, 7, 3, 6, 0), (5, 7, -3, 6, 4),
    (2 ** 16, 2 ** 16, 3, 6, 4)])
def test_sizes_out_of_range_are_refused(height, width, num_steps, units, latent_dim):
    with pytest.raises(ValueError, match=f'num_steps={num_steps}, num_recurrent_units={units}'):
        core.DRAW(core.NoAttentionRead(), core.NoAttentionWrite((height, width)), (height, width), num_steps, units,
                  latent_dim)


@pytest.mark.parametrize('read, write', [
    (lambda: core.SelectiveAttentionRead(2, (7, 5)), lambda: core.NoAttentionWrite((5, 7))),
    (core.NoAttentionRead, lambda: core.SelectiveAttentionWrite(2, (7, 5))),
    (core.NoAttentionRead, lambda: core.NoAttentionWrite((7, 5)))])
def test_blocks_for_another_image_shape_are_refused(read, write):
    with pytest.raises(ValueError, match=r'\(7, 5\).*\(5, 7\)'):
        core.DRAW(read(), write(), (5, 7), num_steps=2, num_recurrent_units=3, latent_dim=2)


@pytest.mark.parametrize('x_shape, eps_shape', [
    ((BATCH, PIXELS + 1), (T, BATCH, LATENT)), ((BATCH, *SHAPE), (T, BATCH, LATENT)),
    ((BATCH + 1, PIXELS), (T, BATCH, LATENT)), ((BATCH, PIXELS), (T + 1, BATCH, LATENT)),
    ((BATCH, PIXELS), (T, BATCH, LATENT + 1)), ((BATCH, PIXELS), (BATCH, LATENT))])
@pytest.mark.parametrize('hybridize', MODES)
def test_inputs_of_the_wrong_shape_are_refused(x_shape, eps_shape, hybridize):
    net, _ = build_random(ATTENTION, hybridize=hybridize)
    x, eps = mx.nd.zeros(x_shape), mx.nd.zeros(eps_shape)
    for call in (net, net.reconstruct):
        with pytest.raises(ValueError, match='must be'):
            call(x, eps)
    if eps_shape != (T, BATCH, LATENT):
        with pytest.raises(ValueError, match='eps must be'):
            net.generate(eps)


@pytest.mark.parametrize('change, message', [
    (lambda x: (255 * x).astype('uint8'), r"not uint8: use mx.nd.array\(x, dtype='float32'\)"),
    (lambda x: (x > 0.5).astype('bool'), 'not bool'),
    (lambda x: x.asnumpy(), 'not ndarray'),
    (lambda x: 255 * x, 'divide grey levels by 255'),
    (lambda x: -x, r'\[0, 1\]'),
    (lambda x: x / 0, r'\[0, 1\]')])
@pytest.mark.parametrize('hybridize', MODES)
def test_images_of_the_wrong_type_or_range_are_refused(change, message, hybridize):
    net, _ = build_random(ATTENTION, hybridize=hybridize)
    x, eps = to_nd(*random_inputs())
    for call in (net, net.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(change(x), eps)
    with pytest.raises(ValueError, match='eps must be a float32 NDArray, not float64'):
        net(x, eps.astype('float64'))
