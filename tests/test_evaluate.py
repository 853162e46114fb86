"""evaluate.py: the bounds against exact integrals, the oracle's equations, and as a user runs it."""
import json
import shutil
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

import evaluate
import train_mnist
from dataset import stream
from dataset.noise import noise
from idx import write_mnist
from oracle import forward_one, sigmoid
from runs import storage
from runs.bounds import Evaluator

CPU = mx.cpu()
ARGUMENTS = {'input_height': 3, 'input_width': 4, 'num_steps': 2, 'num_recurrent_units': 4, 'latent_dim': 1,
             'attention': True, 'read_size': 2, 'write_size': 2, 'dataset': 'mnist', 'data_dir': 'data',
             'binarization': 'dynamic'}
IMAGES = np.random.RandomState(0).randint(2, size=(5, 12)).astype(np.float32)


def make_net(arguments, scale=1., seed=0):
    rng = np.random.RandomState(seed)
    net = storage.build_net(arguments)
    net.initialize()
    for parameter in net.collect_params().values():
        parameter.set_data(nd.array(rng.normal(scale=scale, size=parameter.shape)))
    return net


def bounds(net, images, seed, num_draws=1, batch_size=100):
    return Evaluator(net, [CPU], batch_size).per_image(images, seed, num_draws)


def log_likelihood(canvas, x):
    """log p(x | canvas), the last axis summed, in float64."""
    canvas = canvas.astype(np.float64)
    return (x * canvas - np.logaddexp(0, canvas)).sum(axis=-1)


def exact_log_px(net, num_steps, limit=8., points=161):
    """log p(x) of IMAGES: the integral over z, 1 dimension per step, by the trapezoidal rule, which converges fast."""
    axis = np.linspace(-limit, limit, points)
    grid = np.stack(np.meshgrid(*[axis] * num_steps, indexing='ij')).reshape(num_steps, -1, 1)
    canvases, _ = net.generate(nd.array(grid))
    log_prior = (-0.5 * grid ** 2 - 0.5 * np.log(2 * np.pi)).sum(axis=(0, 2)) + num_steps * np.log(axis[1] - axis[0])
    likelihood = np.stack([log_likelihood(canvases[-1].asnumpy(), x) for x in IMAGES])
    return np.logaddexp.reduce(likelihood + log_prior, axis=1)


@pytest.mark.parametrize('num_steps', [1, 2])
@pytest.mark.parametrize('attention', [True, False])
def test_bounds_of_a_model_that_can_be_integrated(num_steps, attention):
    arguments = {**ARGUMENTS, 'num_steps': num_steps, 'attention': attention}
    net = make_net(arguments, scale=0.7)
    exact = -exact_log_px(net, num_steps)
    per_image = bounds(net, IMAGES, 0, num_draws=3000)
    np.testing.assert_allclose(per_image['importance_weighted'], exact, atol=0.05)
    assert (per_image['reconstruction'] + per_image['kl'] > exact).all()


def test_bound_tightens_with_k():
    net = make_net(ARGUMENTS)
    exact = -exact_log_px(net, 2).mean()
    means = [np.mean([bounds(net, IMAGES, seed, num_draws=k)['importance_weighted'].mean()
                      for seed in range(40)]) for k in (1, 4, 16, 64)]
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 0.1 and means[-1] > exact - 0.05


def test_one_draw_is_the_bound_within_its_error():
    """The KL is exact in one and sampled in the other."""
    net = make_net(ARGUMENTS, scale=0.5)
    images = np.tile(IMAGES, (400, 1))
    per_image = bounds(net, images, 0)
    difference = per_image['reconstruction'] + per_image['kl'] - per_image['importance_weighted']
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(images))
    assert difference.std() > 0.01


def test_log_weight_is_that_of_the_equations():
    arguments = {**ARGUMENTS, 'num_steps': 3, 'latent_dim': 2}
    net = make_net(arguments, scale=0.5)
    params = {name: parameter.data().asnumpy().astype(np.float64)
              for name, parameter in storage.parameters(net).items()}
    per_image = bounds(net, IMAGES, 7)
    eps = noise(7, 'evaluation 0', 0, len(IMAGES), 3, 2).astype(np.float64)
    for i, x in enumerate(IMAGES.astype(np.float64)):
        steps = forward_one(params, x, eps[:, i], (3, 4), 2, 2)
        mu, log_sigma = np.stack(steps['mu']), np.stack(steps['log_sigma'])
        sigma, probability = np.exp(log_sigma), sigmoid(steps['canvases'][-1])
        z = mu + sigma * eps[:, i]
        log_prior = (-0.5 * z ** 2 - 0.5 * np.log(2 * np.pi)).sum()
        log_q = (-0.5 * ((z - mu) / sigma) ** 2 - 0.5 * np.log(2 * np.pi) - log_sigma).sum()
        log_px = np.log(np.where(x == 1, probability, 1 - probability)).sum()
        np.testing.assert_allclose(-per_image['importance_weighted'][i], log_px + log_prior - log_q, rtol=1e-4)
        np.testing.assert_allclose(per_image['reconstruction'][i], -log_px, rtol=1e-4)
        np.testing.assert_allclose(per_image['kl'][i], 0.5 * (mu ** 2 + sigma ** 2 - 2 * log_sigma - 1).sum(),
                                   rtol=1e-4)


@pytest.mark.parametrize('batch_size', [1, 2, 5, 8])
def test_batch_size_changes_no_result(batch_size):
    net = make_net(ARGUMENTS)
    expected = bounds(net, IMAGES, 0, num_draws=3)
    actual = bounds(net, IMAGES, 0, num_draws=3, batch_size=batch_size)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-5, err_msg=name)


def test_summary():
    per_image = {'reconstruction': np.array([1., 2., 6.]), 'kl': np.array([1., 1., 1.]),
                 'importance_weighted': np.array([1., 2., 3.])}
    result = evaluate.summary(per_image, None)
    assert result['bound'] == 4 and result['reconstruction'] == 3 and result['kl'] == 1
    np.testing.assert_allclose(result['standard_error'], np.sqrt(7 / 3))
    assert result['importance_weighted_bound'] is None and result['num_images'] == 3
    assert evaluate.summary(per_image, 5)['importance_weighted_bound'] == 2


# As a user runs it

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('evaluate')
    (folder / 'data').mkdir()
    write_mnist(folder / 'data')
    argv = ['-s', '3', '-u', '8', '-l', '2', '-b', '16', '-t', '64', '-v', '7', '-f', '32', '--attention',
            '--data_dir', str(folder / 'data'), '--logdir', str(folder / 'logs')]
    assert train_mnist.main(argv) == 0
    run, = (folder / 'logs').iterdir()
    return run


def evaluated(run, capsys, *argv):
    capsys.readouterr()
    evaluate.main([str(run), *argv])
    return json.loads((run / 'evaluation.json').read_text()), capsys.readouterr().out


def test_whole_test_set(trained, capsys):
    result, out = evaluated(trained, capsys, '-b', '8', '-k', '5')
    assert result['num_images'] == 30 and result['split'] == 'test' and result['binarization'] == 'dynamic'
    assert result['num_importance_samples'] == 5 and result['unit'] == 'nats'
    assert result['importance_weighted_bound'] < result['bound']
    assert result['bound'] == pytest.approx(result['reconstruction'] + result['kl'])
    for text in ('30 test images', f'{result["bound"]:.2f} +- {result["standard_error"]:.2f} nats', 'K = 5', 'dynamic',
                 f'{result["importance_weighted_bound"]:.2f}', 'best.safetensors'):
        assert text in out
    net, config, _ = storage.load_net(trained, [CPU])
    split = stream.load('mnist', config['arguments']['data_dir'], (28, 28))['test']
    per_image = bounds(net, stream.evaluation_images(split, 'dynamic'), 0, 5)
    np.testing.assert_allclose(per_image['importance_weighted'].mean(), result['importance_weighted_bound'], rtol=1e-6)


def test_validation_split_without_importance_samples(trained, capsys):
    result, out = evaluated(trained, capsys, '--split', 'validation')
    assert result['num_images'] == 20 and result['importance_weighted_bound'] is None
    assert 'importance' not in out
    again, _ = evaluated(trained, capsys, '--split', 'validation')
    other, _ = evaluated(trained, capsys, '--split', 'validation', '--seed', '1')
    assert again == result and other['bound'] != result['bound']
    assert evaluated(trained, capsys, '-n', '4')[0]['num_images'] == 4


def test_bad_input(trained, tmp_path, capsys):
    copy = Path(shutil.copytree(trained, tmp_path / 'copy'))
    (copy / 'best.safetensors').write_bytes(b'')
    (copy / 'evaluation.json').unlink(missing_ok=True)
    for argv in (['nowhere'], [str(copy)], [str(trained), '-k', '0'], [str(trained), '--batch_size', 'x']):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            evaluate.main(argv)
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (copy / 'evaluation.json').exists()


def test_help(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(cli.Parser(prog='evaluate.py'), ['--help'])
    assert '--num_importance_samples' in capsys.readouterr().out
