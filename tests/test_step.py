"""One training step: its noise, its objective and its clipping, with one context or two."""
import numpy as np
import pytest

from commands import BATCH
from dataset.noise import noise
from runs import training as runs_training
from test_training import start_training


def one_step(folder, *argv, **kwargs):
    """A training after one step, and what the step returned."""
    training, batches, _ = start_training(folder, *argv, **kwargs)
    return training, training.step(batches.batch(0, BATCH))


def norm_of_gradient(training):
    return np.sqrt(sum((parameter.list_grad()[0].asnumpy().astype(np.float64) ** 2).sum()
                       for parameter in training.net.collect_params().values()))


def test_every_batch_has_noise_of_its_own(tmp_path, monkeypatch):
    drawn = set()
    monkeypatch.setattr(runs_training, 'noise', lambda *args: drawn.add(args[:3]) or noise(*args))
    training, batches, _ = start_training(tmp_path, '--seed', '5')
    for seen in (0, BATCH, 2 * BATCH):
        training.step(batches.batch(seen, BATCH))
    assert drawn == {(5, 'noise', seen) for seen in (0, BATCH, 2 * BATCH, 3 * BATCH)}  # the last one ahead


def test_the_objective_weighs_the_kl(tmp_path, monkeypatch):
    gradients = {}
    for weight in (0., 0.5, 1.):
        monkeypatch.setattr(runs_training.Training, 'kl_weight', lambda training, weight=weight: weight)
        training, (reconstruction, kl, _) = one_step(tmp_path, '--clip_norm', '1e30')
        gradients[weight] = training.net.h_enc_to_q.weight.grad().asnumpy()
        assert reconstruction > 400 > 10 > kl > 0  # as they are, whatever the weight
    np.testing.assert_allclose(gradients[0.5], (gradients[0] + gradients[1]) / 2, rtol=1e-3, atol=1e-5)
    assert abs(gradients[1] - gradients[0]).max() > 1e-3


def test_the_gradient_is_clipped(tmp_path):
    whole, (*_, norm) = one_step(tmp_path, '--clip_norm', '1e30')
    clipped, (*_, same) = one_step(tmp_path, '--clip_norm', '0.01')
    assert norm_of_gradient(whole) == pytest.approx(norm, rel=1e-5) and same == pytest.approx(norm, rel=1e-5)
    assert norm > 1 and norm_of_gradient(clipped) == pytest.approx(0.01, rel=1e-3)


def test_two_contexts_have_the_gradient_of_one(tmp_path):
    one, two = (one_step(tmp_path, num_contexts=number)[1] for number in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)  # the KL is nearly 0
