"""evaluate.py: the bounds against exact integrals, the oracle's equations, and as a user runs it."""
import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from safetensors.numpy import load_file

import evaluate
import sample
from commands import assert_help_is_complete, change_arguments, config_of, refusal, script
from dataset import stream
from dataset.noise import noise
from idx import write_mnist
from oracle import forward_one, sigmoid
from pictures import paint
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
    # 3,000 draws: 15 for each of 200 copies of an image, whose average of weights is that of all its draws.
    per_image = bounds(net, np.tile(IMAGES, (200, 1)), 0, num_draws=15, batch_size=1000)
    weighted = -np.logaddexp.reduce(-per_image['importance_weighted'].reshape(200, -1), axis=0) + np.log(200)
    np.testing.assert_allclose(weighted, exact, atol=0.05)
    assert ((per_image['reconstruction'] + per_image['kl']).reshape(200, -1).mean(axis=0) > exact).all()


def test_bound_tightens_with_k():
    net = make_net(ARGUMENTS)
    exact = -exact_log_px(net, 2).mean()
    images = np.tile(IMAGES, (40, 1))
    means = [bounds(net, images, 0, num_draws=k, batch_size=200)['importance_weighted'].mean() for k in (1, 4, 16, 64)]
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
def test_batch_size_changes_last_bits_at_most(batch_size):
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

@pytest.fixture
def evaluated(run, capsys):
    """A function that evaluates a small run: (the result, the name of its file, what is printed)."""
    def evaluated(*argv):
        capsys.readouterr()
        assert evaluate.main([str(run), *argv]) == 0
        out = capsys.readouterr().out
        path = Path(re.search('^Kept in (.*)$', out, re.MULTILINE).group(1))
        assert path.parent == run / 'evaluations'
        return json.loads(path.read_text()), path.name, out

    return evaluated


def test_whole_test_set(run, evaluated):
    result, name, out = evaluated('-b', '8', '-k', '5')
    assert name == 'split_test-pixels_drawn-images_30-draws_5-seed_0.json'
    assert result['num_images'] == 30 and result['split'] == 'test' and result['pixels'] == 'drawn'
    assert result['num_importance_samples'] == 5 and result['unit'] == 'nats'
    assert result['importance_weighted_bound'] < result['bound']
    assert result['bound'] == pytest.approx(result['reconstruction'] + result['kl'])
    for text in ('30 test images', f'{result["bound"]:.2f} +- {result["standard_error"]:.2f} nats', 'K = 5',
                 'trained with dynamic', f'{result["importance_weighted_bound"]:.2f}', 'best.safetensors'):
        assert text in out
    net, _, path = storage.load_net(run, [CPU])
    images = stream.evaluation_images(stream.load('mnist', 'data', (28, 28))['test'], 'dynamic')
    arrays = load_file(path)
    for key, content in ('parameters', b''.join(arrays[name].tobytes() for name in sorted(arrays))), ('images', images):
        assert result[f'{key}_sha256'] == hashlib.sha256(content).hexdigest()
    per_image = bounds(net, images, 0, 5)
    np.testing.assert_allclose(per_image['importance_weighted'].mean(), result['importance_weighted_bound'], rtol=1e-6)


def test_every_setting_has_a_result_of_its_own(run, evaluated):
    result, name, out = evaluated('--split', 'validation')
    assert result['num_images'] == 20 and result['importance_weighted_bound'] is None
    assert 'importance' not in out
    assert evaluated('--split', 'validation')[:2] == (result, name)  # the same again
    names, found = {name}, {result['bound']}
    for argv in (['--seed', '1'], ['-n', '4'], ['-k', '2'], ['--binarization', 'threshold']):
        other, name, _ = evaluated('--split', 'validation', *argv)
        assert other['bound'] not in found and name not in names
        names.add(name)
        found.add(other['bound'])
    assert set(os.listdir(run / 'evaluations')) == names
    assert evaluated('-n', '4')[0]['num_images'] == 4


@pytest.mark.parametrize('changes', [{'binarization': 'threshold'}, {'dataset': 'synthetic'}], ids=str)
def test_images_are_those_of_the_run(run, evaluated, monkeypatch, changes):
    """Also those that sample.py reconstructs."""
    change_arguments(run, **changes)
    expected = stream.images_of(config_of(run)['arguments'], 'test', 3)
    assert evaluated('-n', '3')[0]['images_sha256'] == hashlib.sha256(expected).hexdigest()
    given, painted = [], paint.paint
    monkeypatch.setattr(paint, 'paint', lambda *args, images, **kwargs: (
        given.append(images) or painted(*args, images=images, **kwargs)))
    sample.main([str(run), '--reconstruct', '-n', '3', '-o', 'out'])
    np.testing.assert_array_equal(given[0], expected)
    grey = stream.load(changes.get('dataset', 'mnist'), 'data', (28, 28), ['test'])['test'][:3]
    if 'binarization' in changes:
        np.testing.assert_array_equal(expected, grey > 127)
    else:
        np.testing.assert_array_equal(expected, stream.evaluation_images(grey, 'dynamic'))


def test_same_pixels_have_one_result(evaluated):
    """Dynamic and static binarization evaluate on the same pixels, drawn once."""
    assert evaluated('--binarization', 'static')[:2] == evaluated('--binarization', 'dynamic')[:2]


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_evaluation_goes_on_where_it_was_stopped(run, evaluated, monkeypatch, capsys, number, code):
    argv = ['-b', '8', '-k', '3']
    result, name, _ = evaluated(*argv)
    (run / 'evaluations' / name).unlink()
    draw, drawn, numbers = Evaluator._draw, [], [number]

    def counted(self, images, rows, seed, purpose):
        drawn.append(rows[0])
        if len(drawn) == 5 and numbers:  # in the second batch
            os.kill(os.getpid(), numbers.pop())
        return draw(self, images, rows, seed, purpose)

    monkeypatch.setattr(Evaluator, '_draw', counted)
    assert evaluate.main([str(run), *argv]) == code
    out = capsys.readouterr().out
    assert 'Stopped after 8 of 30 images' in out and '--resume goes on' in out
    assert os.listdir(run / 'evaluations') == [f'{name}.part']
    drawn.clear()
    again, _, _ = evaluated(*argv, '--resume')
    assert drawn == [first for first in (8, 16, 24) for _ in range(3)]
    assert os.listdir(run / 'evaluations') == [name]
    assert again == {**result, 'bound': pytest.approx(result['bound'], rel=1e-12)}


def stopped(run, monkeypatch, *argv):
    """Stop an evaluation after its first batch; the path of what is kept of it."""
    draw = Evaluator._draw
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, '_draw', lambda self, images, rows, *rest: (
            os.kill(os.getpid(), signal.SIGTERM) if rows[0] else None) or draw(self, images, rows, *rest))
        assert evaluate.main([str(run), '-b', '8', *argv]) == 0
    path, = (run / 'evaluations').iterdir()
    return path


def test_part_of_other_parameters_is_refused(run, monkeypatch, capsys):
    stopped(run, monkeypatch)
    net = storage.build_net(config_of(run)['arguments'])
    net.initialize()
    storage.save_params(run, 'best', net)
    assert 'is of other parameters' in refusal(capsys, evaluate.main, run, '-b', '8', '--resume')
    assert evaluate.main([str(run), '-b', '8']) == 0


def test_part_of_other_images_is_refused(run, monkeypatch, capsys):
    stopped(run, monkeypatch)
    os.mkdir('other')
    write_mnist(Path('other'), seed=1)
    argv = [run, '-b', '8', '--data_dir', 'other']
    assert 'is of other parameters or images' in refusal(capsys, evaluate.main, *argv, '--resume')
    assert evaluate.main(list(map(str, argv))) == 0


def test_run_that_trains_on_meanwhile(run, evaluated, monkeypatch):
    """The result belongs to the parameters that were read, not to those that replaced them."""
    result, _, _ = evaluated()
    load = stream.load

    def replace(*args):
        net = storage.build_net(config_of(run)['arguments'])
        net.initialize()
        storage.save_params(run, 'best', net)
        return load(*args)

    monkeypatch.setattr(stream, 'load', replace)
    assert evaluated()[0] == result


@pytest.mark.parametrize('damage', [
    lambda text: '', lambda text: text[:-30], lambda text: '[]', lambda text: '{"bounds": 3}',
    lambda text: text.replace('"kl": [', '"kl": [1.0, '), lambda text: text.replace('"kl": [', '"kl": ["x", ')],
    ids=range(6))
def test_damaged_part_is_refused(run, monkeypatch, capsys, damage):
    path = stopped(run, monkeypatch)
    path.write_text(damage(path.read_text()))
    assert f'{path} is damaged' in refusal(capsys, evaluate.main, run, '-b', '8', '--resume')


def test_resume_without_a_part_starts_anew(evaluated):
    assert evaluated('--resume')[0] == evaluated()[0]


def test_result_that_cannot_be_kept_is_told(run, capsys):
    (run / 'evaluations').write_text('a file in the place of the folder')
    assert evaluate.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert 'negative variational bound' in out and 'Not kept' in out and 'evaluations' in out.splitlines()[-1]


def test_bound_that_is_not_finite_is_refused(run, capsys):
    """Finite numbers, but too large to compute with."""
    net = storage.build_net(config_of(run)['arguments'])
    net.initialize()
    for parameter in net.collect_params().values():
        parameter.set_data(nd.full(parameter.shape, 1e38))
    storage.save_params(run, 'best', net)
    assert 'the bound is not finite' in refusal(capsys, evaluate.main, run)
    assert not os.path.exists(run / 'evaluations')


def test_batch_is_no_larger_than_the_images(run, monkeypatch):
    sizes = []
    monkeypatch.setattr(Evaluator, '_draw', lambda self, images, rows, *rest, draw=Evaluator._draw: (
        sizes.append(len(rows)) or draw(self, images, rows, *rest)))
    assert evaluate.main([str(run), '-n', '5', '-b', '1e6', '--cpu_contexts', '1']) == 0
    assert sizes == [5]


def test_bad_input(run, capsys):
    copy = Path(shutil.copytree(run, 'copy'))
    (copy / 'best.safetensors').write_bytes(b'')
    for argv in (['nowhere'], [copy], [run, '-k', '0'], [run, '--batch_size', 'x'], [run, '--split', 'all']):
        assert refusal(capsys, evaluate.main, *argv)
    assert not any((folder / 'evaluations').exists() for folder in (run, copy))


def test_help():
    help_text = script('evaluate.py', '--help')
    assert help_text.returncode == 0 and not help_text.stderr
    parser = cli.Parser(prog='evaluate.py')
    evaluate.parse_args(parser, ['run'])
    assert_help_is_complete(help_text.stdout, parser)
