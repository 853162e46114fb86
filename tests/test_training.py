"""The training step, its schedules and its validation."""
import itertools

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

import core
import train_mnist
from dataset import stream
from dataset.load import load
from dataset.noise import noise
from distributed.workers import Alone
from networks import assert_equal
from runs import config, params
from runs.bounds import Evaluator
from runs.training import Training
from small_runs import SIZES

BATCH, T, LATENT = 8, 2, 2  # of SIZES

pytestmark = pytest.mark.usefixtures('workplace')


class Recorder:
    """Stands in for a Run and its Log: notes the calls."""

    def __init__(self):
        self.log, self.calls = self, []

    def stops(self):
        return False

    def __getattr__(self, name):
        return lambda *args, **numbers: self.calls.append((name, *args, numbers))

    def bounds(self, split):
        """[(samples seen, bound)]"""
        return [(call[2], call[3] + call[4]) for call in self.calls if call[:2] == ('bound', split)]


def start(*argv, num_contexts=1, group=None):
    """Training, and the images that it needs."""
    args = config.parse_args([*SIZES, '-hh', '5', '-ww', '7', *argv])
    splits = load(args.dataset, splits=('train', 'validation')).splits
    images = stream.TrainingStream(splits['train'], args.binarization, args.seed)
    contexts = [mx.cpu(k) for k in range(num_contexts)]
    training = Training(args, contexts, group or Alone())
    training.restore(None)
    return training, images, stream.evaluation_images(splits['validation'], args.binarization)


# Before the first step

def test_initial_parameters():
    training, _, _ = start('--attention', '-hh', '28', '-ww', '28', '-ar', '2', '-aw', '5')
    net, arrays = training.net, params.arrays_of(training.net)
    for name in 'read', 'write':  # the filters overlap: halfway between two, each has a third of its height
        window = nd.array(arrays.pop(f'{name}.window.bias')).reshape((1, 5))
        mu_x, _, sigma2 = core.filter_centres(nd, window, getattr(net, name).filter_size, net.image_shape)
        distance = (mu_x[0, 1] - mu_x[0, 0]).asscalar()
        assert np.exp(-0.5 * (distance / 2) ** 2 / sigma2.asscalar()) > 0.3
    for name, array in arrays.items():
        assert name.endswith('.weight') == (array != 0).any(), name
    limit = np.sqrt(3 / 8)  # Xavier with a fan-in of 2 * 2 * 2
    assert 0.9 * limit < np.abs(arrays['r_to_enc.weight']).max() < limit


def test_initial_parameters_depend_on_the_seed():
    one, two = (params.arrays_of(start('--seed', seed)[0].net)['r_to_enc.weight'] for seed in '01')
    assert (one != two).mean() > 0.9


# A step

def train_by_hand(training, images, num_steps):
    """The same in plain Gluon: an imperative network, one device, the schedules as numbers. Returns gradient norms."""
    args, net, loss, norms = training.args, training.net, core.DRAWLoss(), []
    net.hybridize(False)
    trainer = gluon.Trainer(net.collect_params(), 'adam', kvstore=None)
    for k, weight, rate in zip(range(num_steps), (1 / 3, 2 / 3, 1, 1, 1), (0.01, 0.01, 0.01, 0.008, 0.004)):
        x = nd.array(images.batch(k * BATCH, BATCH))
        eps = nd.array(noise(args.seed, 'noise', k * BATCH, BATCH, T, LATENT))
        with autograd.record():
            canvas, mu, log_sigma = net(x, eps)
            reconstruction, kl = loss(canvas, mu, log_sigma, x)
            bound = (reconstruction + weight * kl).mean()
        bound.backward()
        norms.append(gluon.utils.clip_global_norm([p.grad() for p in net.collect_params().values()], args.clip_norm))
        trainer.set_learning_rate(rate)
        trainer.step(1)
    return norms


@pytest.mark.parametrize('num_contexts, fused', [(1, 'on'), (1, 'off'), (2, 'off')])
@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_training_is_that_of_a_loop_written_by_hand(attention, num_contexts, fused):
    """Its objective, warm-up, clipping, decay and Adam; validations between the steps change nothing."""
    argv = ['-t', '40', '--kl_warmup', '24', '--lr_decay', '0.5', '--clip_norm', '2.5', '--log_freq', '8', *attention]
    by_hand, images, _ = start(*argv)
    before = params.arrays_of(by_hand.net)
    norms = train_by_hand(by_hand, images, 5)
    assert min(norms) > 2.5  # all are clipped
    training, *data = start(*argv, '-f', '16', '-v', '5', '--fused', fused, num_contexts=num_contexts,
                            group=Alone('local'))
    run = Recorder()
    train_mnist.train(training, *data, run)
    after = params.arrays_of(training.net)
    for name, array in params.arrays_of(by_hand.net).items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=1e-5, err_msg=name)
    assert max(abs(after[name] - before[name]).max() for name in after) > 0.03
    logged = [call[-1] for call in run.calls if call[:2] == ('bound', 'train')]
    np.testing.assert_allclose([numbers['gradient_norm'] for numbers in logged], norms, rtol=1e-4)
    np.testing.assert_allclose([numbers['learning_rate'] for numbers in logged], [0.01, 0.01, 0.01, 0.008, 0.004])


@pytest.mark.parametrize('decay, expected', [
    ('0', [1, 1, 1, 1, 1]), ('0.5', [1, 1, 1, 0.8, 0.4]), ('1', [1, 0.8, 0.6, 0.4, 0.2])])
def test_learning_rate_falls_over_the_last_part(decay, expected):
    training, *_ = start('-t', '40', '--lr_decay', decay)
    rates = []
    for training.seen in range(0, 40, BATCH):
        rates.append(training.learning_rate())
    np.testing.assert_allclose(rates, 0.01 * np.array(expected), rtol=1e-12)


def test_workers_and_devices_share_what_one_would_get():
    def batch(rank, size, num_contexts, seed='0'):
        group = Alone()
        group.rank, group.size = rank, size
        training, images, _ = start('--seed', seed, num_contexts=num_contexts, group=group)
        training.seen = 3 * BATCH
        x, eps = training.batch(images)
        assert len(x) == len(eps) == num_contexts
        return np.concatenate([part.asnumpy() for part in x]), np.concatenate([part.asnumpy() for part in eps], axis=1)

    whole, other, parts = batch(0, 1, 1), batch(0, 1, 1, seed='1'), [batch(rank, 2, 2) for rank in (0, 1)]
    for k, axis in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(np.concatenate([part[k] for part in parts], axis=axis), whole[k])
        assert (other[k] != whole[k]).any()
    assert set(np.unique(whole[0])) == {0, 1}


def test_restored_training_continues_on_every_device():
    (whole, *data), (stopped, *_), (resumed, *_) = (
        start('-t', '48', '--fused', 'off', num_contexts=2) for _ in range(3))
    train_mnist.train(whole, *data, Recorder())
    stopped.args.num_train_samples = 24
    stopped.learning_rate = lambda: 0.01  # that of the whole, which does not decay yet
    train_mnist.train(stopped, *data, Recorder())
    resumed.restore(stopped.state())
    assert resumed.seen == 24 and resumed.best_bound == stopped.best_bound
    train_mnist.train(resumed, *data, Recorder())
    for left, right in zip(resumed.state(), whole.state()):
        left.pop('best_bound', None), right.pop('best_bound', None)  # validated at other moments
        assert_equal(left, right)
    for parameter in params.of(resumed.net).values():
        first, second = parameter.list_data()
        np.testing.assert_array_equal(first.asnumpy(), second.asnumpy())


# Validation

@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_bound_goes_down(attention):
    training, *data = start('-t', '400', '-f', '80', '--log_freq', '40', '-v', '10', '-r', '0.03', *attention)
    run = Recorder()
    train_mnist.train(training, *data, run)
    trained, validated = run.bounds('train'), run.bounds('validation')
    assert [seen for seen, _ in validated] == [*range(80, 401, 80)]
    assert [seen for seen, _ in trained] == [*range(40, 401, 40)]
    assert trained[0][1] > 22  # 35 log(2) = 24.3 nats without training
    assert trained[-1][1] < 15 and validated[-1][1] < 15
    for name, number in (('kl_per_step', 5), ('pictures', 5), ('gradients', 5), ('save_checkpoint', 5)):
        assert sum(call[0] == name for call in run.calls) == number, name


@pytest.mark.parametrize('num_images', [BATCH + 2, 5, BATCH])
def test_validation_is_the_mean_over_the_images(num_images):
    """With the whole KL, whatever its weight in training."""
    training, images, validation_images = start('--attention', '-t', '80', '--kl_warmup', '1e6')
    train_mnist.train(training, images, validation_images, Recorder())
    validation_images = validation_images[:num_images]
    assert len(validation_images) == num_images
    per_image = []
    for i, x in enumerate(validation_images):
        eps = noise(0, 'validation', i, 1, T, LATENT)
        outputs = training.net(nd.array(x[None]), nd.array(eps))
        canvas, mu, log_sigma = (output.asnumpy().astype(np.float64)[..., 0, :] for output in outputs)
        p, sigma, eps = 1 / (1 + np.exp(-canvas)), np.exp(log_sigma), eps[:, 0].astype(np.float64)
        reconstruction = -np.log(np.where(x == 1, p, 1 - p)).sum()
        z = mu + sigma * eps
        sampled_kl = (-0.5 * eps ** 2 - log_sigma + 0.5 * z ** 2).sum()  # log q(z|x) - log p(z)
        kl_t = 0.5 * (mu ** 2 + sigma ** 2 - 2 * log_sigma - 1).sum(axis=1)
        per_image.append([reconstruction + sampled_kl, reconstruction, *kl_t])
    bound, reconstruction, kl_t = training.validate(validation_images)
    np.testing.assert_allclose([bound, reconstruction, *kl_t], np.mean(per_image, axis=0), rtol=1e-5, atol=1e-6)
    assert np.std(per_image, axis=0)[0] > 0.01  # an image counted twice would be seen
    assert training.validate(validation_images)[0] == bound  # the noise is the same


def test_sampled_kl_has_the_analytic_one_as_its_expectation():
    """2,000 copies of each image have noise of their own. How devices divide the work changes last bits at most."""
    training, _, images = start('--attention')
    copies, net, rng = np.tile(images[:5], (2000, 1)), training.net, np.random.default_rng(0)
    params.set_arrays(net, {name: rng.normal(size=array.shape) for name, array in params.arrays_of(net).items()})
    whole = Evaluator(net, training.forward, training.contexts, 2000, Alone())
    per_image = whole.per_image(copies, 0)
    sampled = per_image['bound'] - per_image['reconstruction']
    bound, reconstruction, analytic = whole.mean(copies, 0, 'evaluation 0')
    assert abs(sampled.mean() - analytic.sum()) < 4 * sampled.std() / np.sqrt(len(copies))
    assert sampled.std() > 0.1 and analytic.sum() > 0.5
    assert [bound, reconstruction] == pytest.approx([per_image[name].mean() for name in ('bound', 'reconstruction')])
    net.collect_params().reset_ctx([mx.cpu(0), mx.cpu(1)])
    divided = Evaluator(net, net, [mx.cpu(0), mx.cpu(1)], 6, Alone()).per_image(copies[:10], 0)
    for name, values in divided.items():
        np.testing.assert_allclose(values, per_image[name][:10], rtol=1e-5, err_msg=name)


def test_checkpoints_are_saved_when_they_are_due():
    """At the first step that reaches a multiple of the frequency, which need not be one of the batch."""
    training, *data = start('-t', '60', '-f', '1e6', '--checkpoint_freq', '20')
    moments, run = [], Recorder()
    run.save_checkpoint = lambda is_best=False: moments.append(training.seen)
    train_mnist.train(training, *data, run)
    assert moments == [24, 40, 64] and list(itertools.chain(*run.bounds('validation')))[::2] == [64]
