"""evaluate.py: the bounds against exact integrals and the oracle's equations, and as a user runs it."""
import json
import os
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

import evaluate
from dataset import stream
from dataset.load import load
from distributed.workers import Alone
from networks import ATTENTION, NO_ATTENTION, build, random_parameters
from runs import params
from runs.bounds import Evaluator
from small_runs import change_config, code_of, make_parameters_huge, one_line, refusal, write_images

IMAGES = np.random.RandomState(0).randint(2, size=(5, 12)).astype(np.float32)


def bounds(net, images, num_draws, batch_size=100):
    return Evaluator(net, net, [mx.cpu()], batch_size, Alone()).per_image(images, 0, num_draws)


def exact_log_px(net):
    """log p(x) of IMAGES: the integral over z, 1 dimension per step, by the trapezoidal rule, which converges fast."""
    axis = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(*[axis] * net.num_steps, indexing='ij')).reshape(net.num_steps, -1, 1)
    canvas = net.generate(nd.array(grid))[0][-1].asnumpy().astype(np.float64)
    log_prior = (-0.5 * grid ** 2 - 0.5 * np.log(2 * np.pi)).sum(axis=(0, 2))
    log_px_z = np.stack([(x * canvas - np.logaddexp(0, canvas)).sum(axis=1) for x in IMAGES])
    return np.logaddexp.reduce(log_px_z + log_prior, axis=1) + net.num_steps * np.log(axis[1] - axis[0])


@pytest.mark.parametrize('num_steps', [1, 2])
@pytest.mark.parametrize('sizes', [ATTENTION, NO_ATTENTION])
def test_bounds_of_a_model_that_can_be_integrated(num_steps, sizes):
    net = build(sizes, (3, 4), num_steps, units=4, latent_dim=1)
    params.set_arrays(net, random_parameters(net, scale=0.7))
    exact = -exact_log_px(net)
    # 3,000 draws: 15 for each of 200 copies of an image, whose average of weights is that of all its draws.
    per_image = bounds(net, np.tile(IMAGES, (200, 1)), num_draws=15, batch_size=1000)
    weighted = -np.logaddexp.reduce(-per_image['importance_weighted'].reshape(200, -1), axis=0) + np.log(200)
    np.testing.assert_allclose(weighted, exact, atol=0.05)
    assert (per_image['bound'].reshape(200, -1).mean(axis=0) > exact).all()


def test_bounds_of_several_draws_are_means_over_them():
    net = build(NO_ATTENTION, (3, 4), num_steps=2, units=4, latent_dim=1)
    params.set_arrays(net, random_parameters(net))
    evaluator = Evaluator(net, net, [mx.cpu()], 100, Alone())
    several = evaluator.per_image(IMAGES, seed=0, num_draws=3)
    each = [evaluator.mean(IMAGES, 0, f'evaluation {k}')[:2] for k in range(3)]
    np.testing.assert_allclose([several[name].mean() for name in ('bound', 'reconstruction')], np.mean(each, axis=0))


# As a user runs it

@pytest.fixture
def evaluated(run, capsys):
    """A function that evaluates a small run: (the result that is kept, the name of its file, what is printed)."""
    def evaluated(*argv):
        capsys.readouterr()
        evaluate.main([str(run), *argv])
        out = capsys.readouterr().out
        path = Path(out.splitlines()[-1][len('Saved to '):])
        assert path.parent == run / 'evaluations'
        return json.loads(path.read_text()), path.name, out

    return evaluated


def test_the_whole_test_set(run, evaluated):
    result, name, out = evaluated('-b', '4', '-k', '5')
    data = load('images.npy', splits=['test'])
    checksum = data.facts['splits']['test']['sha256']
    parameters = result['parameters_sha256']
    assert name == (f'test-images.npy-{checksum[:8]}-static-images_10-draws_5-seed_0-parameters_{parameters[:8]}.json')
    assert (result['num_images'], result['num_draws'], result['images_sha256']) == (10, 5, checksum)
    per_image = bounds(params.load_net(str(run)), stream.evaluation_images(data.splits['test'], 'static'), num_draws=5)
    for key, values in per_image.items():
        np.testing.assert_allclose(result[key], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(result[f'{key}_standard_error'], values.std(ddof=1) / np.sqrt(10), rtol=1e-4)
    assert result['kl'] == pytest.approx(result['bound'] - result['reconstruction'])
    assert (f'bound of best.safetensors on 10 test images (static binarization): {result["bound"]:.2f} +- '
            f'{result["bound_standard_error"]:.2f} nats (reconstruction {result["reconstruction"]:.2f}') in out
    assert f'K = 5: {result["importance_weighted"]:.2f} +- ' in out


def test_every_setting_has_a_result_of_its_own(run, evaluated):
    write_images('other.npy', seed=1)
    names, found = set(), set()
    for argv in ([], ['--seed', '1'], ['-n', '1'], ['-k', '2'], ['--binarization', 'threshold'],
                 ['--split', 'validation'], ['--dataset', 'other.npy']):
        result, name, out = evaluated(*argv)
        names.add(name)
        found.add(result['bound'])
        assert ('importance' in out) == ('-k' in argv)
        assert (result['bound_standard_error'] is None) == ('+-' not in out) == ('-n' in argv)  # one image has none
    assert len(names) == len(found) == 7 and set(os.listdir(run / 'evaluations')) == names
    assert evaluated()[:2] == evaluated()[:2]  # the same again


def test_a_run_with_threshold_is_evaluated_with_threshold(run, evaluated):
    change_config(run, {'binarization': 'threshold'})
    assert evaluated()[0]['binarization'] == 'threshold'


def test_other_images_than_those_of_the_run_are_refused(run, capsys):
    write_images('images.npy', seed=1)
    change_config(run, {'dataset': os.path.abspath('images.npy')})
    line = refusal(capsys, evaluate.main, run)
    assert 'the images of the run were 50 training, 10 validation and 10 test images' in line and 'these are' in line
    assert not os.path.exists(run / 'evaluations')
    evaluate.main([str(run), '--dataset', 'images.npy'])


def test_a_result_that_cannot_be_kept_is_printed(run, capsys):
    (run / 'evaluations').write_text('')
    assert code_of(evaluate.main, run) == 2
    out, err = capsys.readouterr()
    assert 'Negative variational bound' in out and 'evaluations: File exists' in one_line(err)


def test_a_bound_that_is_not_finite_is_refused(run, capsys):
    make_parameters_huge(run)
    assert 'not finite' in refusal(capsys, evaluate.main, run)
    assert not os.path.exists(run / 'evaluations')
