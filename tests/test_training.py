"""The training loop: what a step does, what is validated, logged and kept, and when."""
import signal
from types import SimpleNamespace

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import HybridBlock

import core
import sample
import train_mnist
from commands import BATCH, SIZES, T, checkpoint, config_of, content, only_folder, parse
from dataset import stream
from dataset.noise import noise
from idx import write_mnist
from runs import storage
from runs.log import read_scalars

pytestmark = pytest.mark.usefixtures('no_figures')

TINY = [*SIZES, '-t', '64', '-f', '32', '-v', '20']


class Recorder:
    """Stands in for train_mnist's Log: keeps what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **numbers: self.calls.append((name, *args, numbers))

    def bounds(self, split):
        """Pairs of samples seen and bound."""
        return [(call[2], float(call[3] + call[4])) for call in self.calls if call[:2] == ('bound', split)]


def start_training(folder, *argv, num_contexts=1):
    """What train_mnist.train needs: Training, the stream of batches and the validation images."""
    args = parse(*SIZES, *argv)
    write_mnist(folder)
    splits = stream.load('mnist', folder, (28, 28))
    mx.random.seed(args.seed)
    net = storage.build_net(vars(args))
    contexts = [mx.cpu(k) for k in range(num_contexts)]
    net.initialize(ctx=contexts)
    batches = stream.TrainingStream(splits['train'], args.binarization, args.seed)
    images = stream.evaluation_images(splits['validation'], args.binarization)
    return train_mnist.Training(net, args, contexts), batches, images


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_bound_goes_down(tmp_path, attention):
    training, batches, images = start_training(tmp_path, '-t', '320', '-f', '80', '--log_freq', '32', '-r', '0.03',
                                              *attention)
    log = Recorder()
    train_mnist.train(training, batches, images, log, str(tmp_path), cli.Stop())
    trained, validated = log.bounds('train'), log.bounds('validation')
    assert [seen for seen, _ in validated] == [80, 160, 240, 320]
    assert [seen for seen, _ in trained] == sorted({*range(32, 321, 32), 80, 160, 240, 320})
    for bounds in (trained, validated):
        assert np.isfinite(bounds).all()
    assert trained[0][1] > 400  # 784 * log(2) = 543 nats without training
    assert trained[-1][1] < 300 and validated[-1][1] < 300
    seen = [call[2] if call[0] == 'bound' else call[1] for call in log.calls
            if call[0] not in ('pictures', 'gradients', 'sync', 'save_curves')]
    assert seen == sorted(seen)
    assert all(len(call[2]) == T for call in log.calls if call[0] == 'kl_per_step')
    for name in ('kl_per_step', 'pictures', 'gradients'):
        assert sum(call[0] == name for call in log.calls) == 4, name


def test_static_graphs_train_like_imperative_code(tmp_path, monkeypatch):
    """Also with validations in between."""
    argv = ['--attention', '-t', '96', '-f', '32', '-v', '20']
    training, *rest = start_training(tmp_path, *argv)
    before = values(training.net)
    train_mnist.train(training, *rest, Recorder(), str(tmp_path), cli.Stop())
    for block in (HybridBlock, core.DRAW):
        monkeypatch.setattr(block, 'hybridize', lambda *args, **kwargs: None)
    imperative, *rest = start_training(tmp_path, *argv)
    assert training.net._active and not imperative.net._active
    assert all(np.array_equal(array, before[name]) for name, array in values(imperative.net).items())
    train_mnist.train(imperative, *rest, Recorder(), str(tmp_path), cli.Stop())
    after = values(training.net)
    for name, array in values(imperative.net).items():
        np.testing.assert_allclose(array, after[name], rtol=0, atol=1e-4, err_msg=name)
    assert max(abs(after[name] - before[name]).max() for name in before) > 5e-3


@pytest.mark.parametrize('num_images', [BATCH + 4, 5, BATCH], ids=str)
def test_validation_is_the_average_over_the_images(tmp_path, num_images):
    training, batches, images = start_training(tmp_path, '--attention', '-r', '0.01')
    for seen in range(0, 5 * BATCH, BATCH):
        training.step(batches.batch(seen, BATCH))
    images = images[:num_images]
    reconstruction, kl, kl_t = training.validate(images)

    per_image = []
    for i, x in enumerate(images):
        eps = noise(0, 'validation', i, 1, T, 4)
        canvas, mu, log_sigma = (output.asnumpy().astype(np.float64)
                                 for output in training.net(nd.array(x[None]), nd.array(eps)))
        p = 1 / (1 + np.exp(-canvas[0]))
        terms = mu[:, 0] ** 2 + np.exp(log_sigma[:, 0]) ** 2 - 2 * log_sigma[:, 0] - 1
        per_image.append([-np.log(np.where(x == 1, p, 1 - p)).sum(), *(terms.sum(axis=1) / 2)])
    expected = np.mean(per_image, axis=0)
    assert len(per_image) == num_images
    np.testing.assert_allclose([reconstruction, *kl_t], expected, rtol=1e-5)
    np.testing.assert_allclose(kl, expected[1:].sum(), rtol=1e-5)
    assert np.std(per_image, axis=0)[0] > 1e-4 * expected[0]  # an image counted twice would be seen
    np.testing.assert_array_equal(training.validate(images)[:2], (reconstruction, kl))  # the noise is the same


def test_best_parameters_are_those_of_the_lowest_bound(tmp_path, monkeypatch):
    training, batches, images = start_training(tmp_path, '-t', '64', '-f', '16')
    moments, bounds = [], iter([9., 4., 5., 6.])

    def validate(images):
        moments.append(values(training.net))
        return next(bounds), 1., np.ones(T) / T

    monkeypatch.setattr(training, 'validate', validate)
    train_mnist.train(training, batches, images, Recorder(), str(tmp_path), cli.Stop())
    assert len(moments) == 4
    for name, moment in (('best', moments[1]), ('last', moments[3])):
        storage.load_params(tmp_path, name, training.net)
        for key, array in values(training.net).items():
            np.testing.assert_array_equal(array, moment[key], err_msg=f'{name}: {key}')


def test_weight_of_the_kl_grows_to_1(tmp_path):
    training, batches, _ = start_training(tmp_path, '--kl_warmup', '64')
    weights = []
    for seen in range(0, 6 * BATCH, BATCH):
        weights.append(training.kl_weight())
        training.step(batches.batch(seen, BATCH))
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize('decay, expected', [('0', [1, 1, 1, 1, 1]), ('0.5', [1, 1, 1, 0.8, 0.4]),
                                             ('1', [1, 0.8, 0.6, 0.4, 0.2])])
def test_learning_rate_falls_over_the_last_part(tmp_path, decay, expected):
    training, batches, _ = start_training(tmp_path, '-t', str(5 * BATCH), '-r', '0.01', '--lr_decay', decay)
    rates = []
    for seen in range(0, 5 * BATCH, BATCH):
        training.step(batches.batch(seen, BATCH))
        rates.append(training._trainer.learning_rate)
    np.testing.assert_allclose(rates, 0.01 * np.array(expected), rtol=1e-12)


def test_interruption_between_validations_saves_the_latest_parameters(tmp_path, monkeypatch):
    training, batches, images = start_training(tmp_path, '-t', '640', '-f', '32', '--log_freq', '16')
    step, stop = training.step, cli.Stop()

    def interrupted(x):
        if training.seen == 32:
            stop.signal = signal.SIGINT
        return step(x)

    monkeypatch.setattr(training, 'step', interrupted)
    with pytest.raises(cli.Stopped):
        train_mnist.train(training, batches, images, Recorder(), str(tmp_path), stop)
    assert training.seen == 48
    latest = values(training.net)
    (parameters, *_), metadata = storage.load_checkpoint(tmp_path, 'checkpoint', training.net)
    assert metadata['samples_seen'] == 48
    for name, array in parameters.items():
        np.testing.assert_array_equal(array, latest[name], err_msg=name)
    storage.load_params(tmp_path, 'last', training.net)
    np.testing.assert_array_equal(values(training.net)['r_to_enc.weight'], latest['r_to_enc.weight'])
    storage.load_params(tmp_path, 'best', training.net)  # of the validation at 32
    assert abs(values(training.net)['r_to_enc.weight'] - latest['r_to_enc.weight']).max() > 1e-4


def test_final_bound_is_of_all_validation_images(workplace, monkeypatch):
    numbers, validate = [], train_mnist.Training.validate
    monkeypatch.setattr(train_mnist.Training, 'validate', lambda training, images, *rest: (
        numbers.append(len(images)) or validate(training, images, *rest)))
    assert train_mnist.main([*TINY, '-v', '7']) == 0
    assert numbers == [7, 7, 20]


def test_validation_images_are_binarized_as_the_run_says(workplace, monkeypatch):
    grey, seen, validate = stream.load('mnist', 'data', (28, 28))['validation'], [], train_mnist.Training.validate
    monkeypatch.setattr(train_mnist.Training, 'validate', lambda training, images, *rest: (
        seen.append(images) or validate(training, images, *rest)))
    assert train_mnist.main([*TINY, '--binarization', 'threshold']) == 0
    assert len(seen) == 3 and all(np.array_equal(images, grey > 127) for images in seen)


def test_best_bound_has_the_whole_kl(workplace):
    """Also while the warm-up lasts, or early parameters would look best."""
    assert train_mnist.main([*TINY, '--kl_warmup', '1e6', '-r', '0.03']) == 0
    folder = only_folder('results')
    found = {name: read_scalars(folder)['validation'][name][:, 1] for name in ('bound', 'reconstruction', 'kl')}
    assert checkpoint(folder)[1]['best_bound'] == pytest.approx(found['bound'].min(), rel=1e-6)
    np.testing.assert_allclose(found['bound'], found['reconstruction'] + found['kl'], rtol=1e-6)
    assert found['kl'].max() > 0.1


def test_log_is_on_the_disk_before_its_checkpoint(tmp_path, monkeypatch):
    training, _, _ = start_training(tmp_path)
    calls = []
    monkeypatch.setattr(storage, 'save_checkpoint', lambda *args: calls.append('checkpoint'))
    training.step(np.zeros((BATCH, 784), np.float32))
    training.save_checkpoint(str(tmp_path), SimpleNamespace(sync=lambda: calls.append('sync')))
    assert calls == ['sync', 'checkpoint']


def test_run_ends_with_the_best_parameters(workplace, monkeypatch):
    at_the_end, bounds = [], iter([5., 6., 7.])  # the first of two validations is the best; the third is the last word

    def validate(training, images, on_batch=None):
        at_the_end[:] = [training.net.z_to_dec.weight.data().asnumpy()]
        return next(bounds), 1., np.ones(T) / T

    monkeypatch.setattr(train_mnist.Training, 'validate', validate)
    assert train_mnist.main([*TINY, '-r', '0.03']) == 0
    folder = only_folder('results')
    assert config_of(folder)['validation']['bound'] == 8
    best, _, _ = storage.load_net(folder, [mx.cpu()])
    np.testing.assert_array_equal(at_the_end[0], best.z_to_dec.weight.data().asnumpy())
    assert (folder / 'best.safetensors').read_bytes() != (folder / 'last.safetensors').read_bytes()
    sample.main([str(folder), '-n', '10', '-o', 'out'])
    assert content('out') == content(folder / 'samples')


def test_initial_parameters_depend_on_the_seed_alone(workplace, monkeypatch):
    weights = []

    def look(training, *args):
        weights.append(training.net.z_to_dec.weight.data().asnumpy())
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mnist, 'train', look)
    for seed in ('3', '3', '4'):
        mx.random.seed(len(weights))  # what happened before does not count
        assert train_mnist.main([*TINY, '--seed', seed]) == 130
    np.testing.assert_array_equal(weights[0], weights[1])
    assert abs(weights[0] - weights[2]).max() > 1e-3
