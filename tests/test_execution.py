"""core.py as MXNet runs it: execution modes, memory, and what the network refuses."""
import mxnet as mx
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
    MODELS,
    MODES,
    PIXELS,
    SHAPE,
    T,
    assert_close,
    assert_same,
    build_random,
    gradients,
    random_inputs,
    resident_mebibytes,
    step,
    to_nd,
)

# Execution modes

SCHEDULE = [(True, 6), (True, 6), (False, 10), (True, 6), (True, 2), (True, 6)]  # train?, batch


def run_schedule(sizes, hybridize):
    """{(phase, name): array}: outputs, losses and gradients, in the order in which a run uses the network."""
    net, _ = build_random(sizes, hybridize=hybridize)
    loss, found = DRAWLoss(), {}
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
    for hybridize in ({}, STATIC):
        assert_close(run_schedule(sizes, hybridize), expected)


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
        assert_close(gradients_of(compiled, seeds), gradients_of(imperative, seeds))


def test_optimize_for_calls_hybridize_as_gluon_does():
    net, _ = build_random(ATTENTION)
    inputs = to_nd(*random_inputs())
    expected = net(*inputs)
    net.optimize_for(*inputs, backend='MKLDNN', static_alloc=True)
    assert net._active
    for actual, value in zip(net(*inputs), expected):
        assert_same(actual, value.asnumpy(), rtol=1e-5, atol=1e-6)


# Memory


@pytest.mark.parametrize('updates, limit', [(80, 1), pytest.param(400, 3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize('sizes', MODELS)
def test_training_does_not_leak_memory(sizes, updates, limit):
    """A 2-D concat under autograd leaks about 3 KB a call: one in a step is 1.9 MB over 80 updates, 9 over 400."""
    net, _ = build_random(sizes, hybridize=STATIC, num_steps=8)
    loss = DRAWLoss()
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
    (NoAttentionRead, lambda: NoAttentionWrite((7, 5)))])
def test_blocks_for_another_image_shape_are_refused(read, write):
    with pytest.raises(ValueError, match=r'\(7, 5\).*\(5, 7\)'):
        DRAW(read(), write(), (5, 7), num_steps=2, num_recurrent_units=3, latent_dim=2)


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
