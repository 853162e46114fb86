"""core.py as MXNet runs it: execution modes, batches, training, memory, files, and what the network refuses."""
import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from core import (
    DRAW,
    STATIC,
    DRAWLoss,
    NoAttentionRead,
    NoAttentionWrite,
    SelectiveAttentionRead,
    SelectiveAttentionWrite,
)
from networks import (
    ATTENTION,
    BATCH,
    LATENT,
    MIXED,
    MODELS,
    MODES,
    PIXELS,
    SHAPE,
    T,
    assert_same,
    build,
    build_random,
    gradients,
    random_inputs,
    to_nd,
    train_forward_backward,
)

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


@pytest.mark.parametrize('sizes', MODELS)
def test_first_recorded_step_may_have_two_forward_passes(sizes):
    """With static_shape, MXNet 1.9.1 gets the gradients of all later steps wrong."""
    def gradients_of(net, seeds):
        with autograd.record():
            bounds = [mx.nd.add_n(*DRAWLoss()(*net(x, eps), x)) for x, eps in
                      (to_nd(*random_inputs(seed=seed)) for seed in seeds)]
        autograd.backward(bounds)
        return gradients(net)

    compiled, imperative = (build_random(sizes, hybridize=mode)[0] for mode in (STATIC, None))
    for seeds in ((0, 1), (2,), (3, 4)):
        expected = gradients_of(imperative, seeds)
        for name, actual in gradients_of(compiled, seeds).items():
            assert_same(actual, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max(),
                        message=f'{name}, inputs {seeds}')


def test_optimize_for_calls_hybridize_as_gluon_does():
    net, _ = build_random(ATTENTION)
    inputs = to_nd(*random_inputs())
    expected = net(*inputs)
    net.optimize_for(*inputs, backend='MKLDNN', static_alloc=True)
    assert net._active
    for actual, value in zip(net(*inputs), expected):
        assert_same(actual, value.asnumpy(), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize('updates, limit', [(80, 1), pytest.param(400, 3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize('sizes', MODELS)
def test_training_does_not_leak_memory(sizes, updates, limit):
    """A 2-D concat under autograd leaks about 3 KB a call: one in a step is 1.9 MB over 80 updates, 9 over 400."""
    num_steps = 8
    net = build(sizes, num_steps=num_steps)
    net.hybridize(**STATIC)
    loss = DRAWLoss()
    trainer = gluon.Trainer(net.collect_params(), 'adam')
    x, eps = random_inputs(num_steps=num_steps)
    for update in range(20 + updates):
        if update == 20:
            start = resident_megabytes()
        train_forward_backward(net, loss, x, eps)
        trainer.step(BATCH)
    mx.nd.waitall()
    assert resident_megabytes() - start < limit


# What the network refuses


@pytest.mark.parametrize('block', [SelectiveAttentionRead, SelectiveAttentionWrite])
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
        DRAW(NoAttentionRead(), NoAttentionWrite((height, width)), (height, width), num_steps, units, latent_dim)


@pytest.mark.parametrize('read, write', [
    (lambda: SelectiveAttentionRead(2, (7, 5)), lambda: NoAttentionWrite((5, 7))),
    (NoAttentionRead, lambda: SelectiveAttentionWrite(2, (7, 5))),
    (NoAttentionRead, lambda: NoAttentionWrite((7, 5))),
])
def test_blocks_for_another_image_shape_are_refused(read, write):
    with pytest.raises(ValueError, match=r'\(7, 5\).*\(5, 7\)'):
        DRAW(read(), write(), (5, 7), num_steps=2, num_recurrent_units=3, latent_dim=2)


@pytest.mark.parametrize('x_shape, eps_shape', [
    ((BATCH, PIXELS + 1), (T, BATCH, LATENT)),
    ((BATCH, *SHAPE), (T, BATCH, LATENT)),
    ((BATCH + 1, PIXELS), (T, BATCH, LATENT)),
    ((BATCH, PIXELS), (T + 1, BATCH, LATENT)),
    ((BATCH, PIXELS), (T, BATCH, LATENT + 1)),
    ((BATCH, PIXELS), (BATCH, LATENT)),
])
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
    (lambda x: x / 0, r'\[0, 1\]'),
])
@pytest.mark.parametrize('hybridize', MODES)
def test_images_of_the_wrong_type_or_range_are_refused(change, message, hybridize):
    net, _ = build_random(ATTENTION, hybridize=hybridize)
    x, eps = to_nd(*random_inputs())
    for call in (net, net.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(change(x), eps)
    with pytest.raises(ValueError, match='eps must be a float32 NDArray, not float64'):
        net(x, eps.astype('float64'))
