"""Train DRAW on MNIST with Gluon, logging to TensorBoard through mxboard.

    python train_mnist.py --attention             # the paper's MNIST row: 64 steps, 2x2 read, 5x5 write
    python train_mnist.py --dataset synthetic     # no files, no network
"""
import copy
import os
import shlex
import sys
import time

import cli  # isort: skip  (sets up threads before mxnet is imported)
import mxboard
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from tqdm import tqdm

import core
import data
import run_folder
import sample
from log import Log

_STATIC = {'static_alloc': True, 'static_shape': True}  # safe with one forward pass per record() (core.DRAW)
_NUM_GIFS = 10
_VALIDATION_SEED = 0  # of the noise in validation bounds, so that moments and runs compare


class NotFinite(Exception):
    """The bound or the gradient became NaN or infinite."""


class Training:
    """A network in training: the graphs, the optimizer, and how far it has come.

    Parameters
    ----------
    net : core.DRAW
        Initialized on `ctx`.
    args : argparse.Namespace
        What `parse_args` returns.
    ctx : mxnet.Context
    """

    def __init__(self, net, args, ctx):
        self.net, self.args, self.ctx, self.seen = net, args, ctx, 0
        # The copy shares the parameters and has a graph of its own: with one graph for both, MXNet plans it anew at
        # every change between training and validation.
        self._evaluator, self._loss = copy.copy(net), core.DRAWLoss()
        for block in (self.net, self._evaluator, self._loss):
            block.hybridize(**_STATIC)
        self._trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': args.learning_rate})
        self._recent = []

    def step(self, x):
        """One Adam step on a batch (batch_size, height * width) of 0 and 1; does not wait for its result."""
        x = nd.array(x, ctx=self.ctx)
        eps = self._noise(self.args.seed, 'noise', self.seen)
        with autograd.record():
            canvas, mu, log_sigma = self.net(x, eps)
            reconstruction, kl = self._loss(canvas, mu, log_sigma, x)
            bound = (reconstruction + self.kl_weight() * kl).mean()                      # Eqn. 12
        bound.backward()
        gradients = [parameter.grad() for parameter in self.net.collect_params().values()]
        norm = gluon.utils.clip_global_norm(gradients, self.args.clip_norm, check_isfinite=False)
        self._trainer.step(1)  # the bound is a mean over the batch already
        self._recent.append((reconstruction.mean(), kl.mean(), norm))
        self.seen += len(x)

    def kl_weight(self):
        """Weight of the KL in the training objective: grows linearly to 1 over the first args.kl_warmup samples."""
        return min(1., (self.seen + self.args.batch_size) / self.args.kl_warmup)

    def means(self):
        """Means over the steps since the last call: reconstruction, KL and gradient norm, in nats per image.

        Waits for the device. Raises NotFinite where a number is NaN or infinite.
        """
        means = tuple(float(nd.stack(*values).mean().asscalar()) for values in zip(*self._recent))
        self._recent = []
        self._check_finite(*means)
        return means

    def validate(self, images):
        """Mean reconstruction, KL and KL per step over images (n, height * width), with one draw of z for each.

        The noise is the same at every call. The last batch is filled up with images that do not count, so that
        one graph serves all. Raises NotFinite.
        """
        sums, n = [0., 0., 0.], len(images)
        for first in range(0, n, self.args.batch_size):
            rows = np.arange(first, first + self.args.batch_size)
            x = nd.array(images[rows % n], ctx=self.ctx)
            canvas, mu, log_sigma = self._evaluator(x, self._noise(_VALIDATION_SEED, 'validation', first))
            reconstruction, kl = self._loss(canvas, mu, log_sigma, x)
            for k, values in enumerate((reconstruction, kl, core.kl_per_step(nd, mu, log_sigma))):
                sums[k] = sums[k] + values.asnumpy()[..., rows < n].sum(axis=-1, dtype=np.float64)
        means = tuple(total / n for total in sums)
        self._check_finite(*means)
        return means

    def _noise(self, seed, purpose, position):
        shape = self.args.num_steps, self.args.batch_size, self.args.latent_dim
        return nd.array(data.generator(seed, purpose, position).standard_normal(shape, dtype=np.float32),
                        ctx=self.ctx)

    def _check_finite(self, *numbers):
        if not all(np.isfinite(number).all() for number in numbers):
            raise NotFinite(f'the bound or its gradient is not finite at {self.seen:,} training samples; try a smaller '
                            f'--learning_rate or --clip_norm')


def train(training, stream, images, log, folder):
    """Train for args.num_train_samples, saving last.params and best.params in `folder` at every validation.

    Parameters
    ----------
    training : Training
    stream : data.TrainingStream
    images : numpy.ndarray
        Validation images, (n, height * width); the first args.num_val_samples are used.
    log : Log
    folder : str

    Raises
    ------
    NotFinite
        The parameter files are those of the last validation.
    KeyboardInterrupt
        After last.params is saved.
    """
    args, best, logged, started = training.args, float('inf'), training.seen, time.perf_counter()

    def due(frequency):
        return training.seen % frequency < args.batch_size or training.seen >= args.num_train_samples

    total = -(-args.num_train_samples // args.batch_size) * args.batch_size  # whole batches
    with tqdm(total=total, unit=' samples', smoothing=0.1) as bar:
        try:
            while training.seen < args.num_train_samples:
                training.step(stream.batch(training.seen, args.batch_size))
                if not due(args.log_freq) and not due(args.val_freq):
                    continue
                reconstruction, kl, norm = training.means()
                log.bound('train', training.seen, reconstruction, kl)
                log.optimization(training.seen, norm, (training.seen - logged) / (time.perf_counter() - started))
                bar.set_postfix_str(f'bound {reconstruction + kl:.2f} nats, KL {kl:.2f}')
                bar.update(training.seen - logged)
                if due(args.val_freq):
                    bound = _validation(training, images[:args.num_val_samples], log)
                    run_folder.save_params(folder, 'last', training.net)
                    tqdm.write(f'{training.seen:>9,} samples: validation bound {bound:.2f} nats')
                    if bound < best:
                        best = bound
                        run_folder.save_params(folder, 'best', training.net)
                logged, started = training.seen, time.perf_counter()
        except KeyboardInterrupt:
            training.means()
            run_folder.save_params(folder, 'last', training.net)
            raise


def _validation(training, images, log):
    reconstruction, kl, kl_t = training.validate(images)
    log.bound('validation', training.seen, reconstruction, kl)
    log.kl_per_step(training.seen, kl_t)
    log.pictures(training.net, images, training.seen, training.ctx)
    log.gradients(training.net, training.seen)
    log.flush()
    return reconstruction + kl


def finish(training, images, log, folder, config):
    """After training: the bound of best.params on all validation images into `config`, and ten GIFs of samples."""
    run_folder.load_params(folder, 'best', training.net)
    reconstruction, kl, _ = training.validate(images)
    log.bound('validation_whole', training.seen, reconstruction, kl)
    log.flush()
    config['validation'] = {'bound': reconstruction + kl, 'reconstruction': reconstruction, 'kl': kl,
                            'num_images': len(images), 'unit': 'nats', 'parameters': 'best.params'}
    arguments = config['arguments']
    paintings = sample.paint(training.net, arguments, seed=0, ctx=training.ctx, num_samples=_NUM_GIFS)
    sample.write_gifs(paintings, arguments, output_dir=folder, prefix='sample', scale=sample.SCALE)
    print(f'Negative variational bound of best.params on all {len(images):,} validation images: '
          f'{reconstruction + kl:.2f} nats (reconstruction {reconstruction:.2f}, KL {kl:.2f}).\n'
          f'{_NUM_GIFS} samples: {folder}/sample_0.gif ... sample_{_NUM_GIFS - 1}.gif')


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('--batch_size', '-b', type=cli.count, metavar='N', default=128, help='images per gradient step')
    add('--input_height', '-hh', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--input_width', '-ww', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--num_steps', '-s', type=cli.count, metavar='N', default=64, help='time steps T in which an image is painted')
    add('--num_recurrent_units', '-u', type=cli.count, metavar='N', default=256,
        help='units of the encoder and of the decoder LSTM')
    add('--latent_dim', '-l', type=cli.count, metavar='N', default=100, help='dimensions of z_t')
    add('--learning_rate', '-r', type=cli.positive, metavar='X', default=1e-3, help="Adam's learning rate")
    add('--num_train_samples', '-t', type=cli.count, metavar='N', default=1000000,
        help='training samples to see, rounded up to whole batches; 1e6 is accepted')
    add('--num_val_samples', '-v', type=cli.count, metavar='N', default=256,
        help='validation images per validation (all of them at the end)')
    add('--val_freq', '-f', type=cli.count, metavar='N', default=10000, help='training samples between two validations')
    add('--gpu', action='store_true', help='use the first GPU instead of the CPU')
    add('--attention', action='store_true', help='read and write with selective attention')
    add('--read_size', '-ar', type=cli.count, metavar='N', default=2,
        help='with --attention: reads with N x N filters')
    add('--write_size', '-aw', type=cli.count, metavar='N', default=5,
        help='with --attention: writes with N x N filters')
    add('--logdir', metavar='DIR', default='results', help='folder in which the run gets a folder of its own')
    add('--dataset', choices=data.DATASETS, default='mnist',
        help='synthetic: digits drawn with a font, without files or network')
    add('--data_dir', metavar='DIR', default='data', help='folder of the MNIST files; they are downloaded if missing')
    add('--binarization', choices=data.BINARIZATIONS, default='dynamic',
        help='pixels drawn anew at each use, drawn once, or intensity > 0.5')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of parameters, order, pixels and noise')
    add('--clip_norm', type=cli.positive, metavar='X', default=5.,
        help='largest global norm of the gradient, nats per image')
    add('--kl_warmup', type=cli.count, metavar='N', default=20000,
        help='training samples over which the weight of the KL grows to 1; 1: no warm-up')
    add('--log_freq', type=cli.count, metavar='N', default=1280,
        help='training samples between two points of the training curves')
    args = parser.parse_args(argv)
    for name in (*run_folder.SIZES, 'batch_size'):
        if getattr(args, name) > run_folder.MAX_SIZE:
            parser.error(f'argument --{name}: at most {run_folder.MAX_SIZE}, not {getattr(args, name)}')
    side = min(args.input_height, args.input_width)
    for name in ('read_size', 'write_size'):
        if args.attention and getattr(args, name) > side:
            parser.error(f'argument --{name}: {getattr(args, name)} is larger than the shorter side of the image '
                         f'({side})')
    return args


def run(args, ctx, command):
    """One training run from the data to the GIFs; returns its exit code."""
    run_folder.check_writable(args.logdir)
    splits = data.load(args.dataset, args.data_dir, (args.input_height, args.input_width))
    stream = data.TrainingStream(splits['train'], args.binarization, args.seed)
    images = data.evaluation_images(splits['validation'], args.binarization)
    folder = run_folder.create(args.logdir, 'attention' if args.attention else 'no_attention')
    config = {'arguments': vars(args), 'command': command, 'versions': run_folder.versions()}
    run_folder.write_config(folder, config)
    print(f'Run folder: {folder}')

    mx.random.seed(args.seed)
    net = run_folder.build_net(config['arguments'])
    net.initialize(ctx=ctx)
    training = Training(net, args, ctx)
    started = time.time()
    with mxboard.SummaryWriter(logdir=folder, verbose=False) as writer:
        log = Log(writer, config['arguments'])
        try:
            train(training, stream, images, log, folder)
            finish(training, images, log, folder, config)
            return 0
        except KeyboardInterrupt:
            print(f'\nStopped after {training.seen:,} training samples; the parameters: {folder}/last.params')
            return 130
        except NotFinite as error:
            before = os.path.exists(os.path.join(folder, 'last.params'))
            print(f'\ntrain_mnist.py: stopped: {error}; '
                  f'{folder} holds {"the parameters of the last validation" if before else "no parameters yet"}',
                  file=sys.stderr)
            return 1
        finally:
            config.update(samples_seen=training.seen, seconds=round(time.time() - started))
            run_folder.write_config(folder, config)


def main(argv=None):
    parser = cli.Parser(prog='train_mnist.py', description=__doc__.splitlines()[0])
    args = parse_args(parser, argv)
    command = shlex.join(['train_mnist.py', *(sys.argv[1:] if argv is None else argv)])
    with cli.one_line(parser, data.DataError, run_folder.RunError):
        return run(args, cli.context(parser, args.gpu), command)


if __name__ == '__main__':
    sys.exit(main())
