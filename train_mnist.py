"""Train DRAW with Gluon, and log the run to TensorBoard.

  python train_mnist.py --attention           # on MNIST
  python train_mnist.py --dataset ~/photos -hh 28 -ww 28
  python train_mnist.py --resume results/RUN  # continue
"""
import os
import shlex
import sys
import time

from system import cli, devices

import numpy as np
from mxnet import autograd

from dataset import stream
from dataset.load import load
from distributed import workers
from pictures import paint
from runs import config, params
from runs.run import Run, Stopped, versions
from runs.training import Training, check_batch_size

NUM_GIFS = 10


def step(training, images):
    """One training step, on the next images of a TrainingStream; returns what `Training.update` returns."""
    losses = []
    for x, eps in zip(*training.batch(images)):
        with autograd.record():
            canvas, mu, log_sigma = training.forward(x, eps)                                 # Eqns. 1-8
            reconstruction, kl = training.loss(canvas, mu, log_sigma, x)                     # Eqns. 9-11
            bound = (reconstruction + training.kl_weight() * kl).sum() / training.args.batch_size  # Eqn. 12
        bound.backward()
        losses.append((reconstruction, kl))
    return training.update(losses)  # sum gradients, clip, Adam


def train(training, images, validation_images, run):
    """Train until args.num_train_samples are seen. Raises Stopped (after a signal), NotFinite, OSError."""
    args, recent = training.args, []
    if args.init and training.best_bound == np.inf:
        validate(training, validation_images[:args.num_val_samples], run)  # first, so that the run ends no worse
    mark = time.perf_counter()
    total = -(-args.num_train_samples // args.batch_size) * args.batch_size  # whole batches

    def is_due(frequency):
        return training.seen % frequency < args.batch_size or training.seen >= total

    with cli.progress('training', total, 'samples', training.seen) as bar:
        while training.seen < args.num_train_samples:
            rate = training.learning_rate()
            recent.append(step(training, images))
            bar.update(args.batch_size)
            stopping = run.stops()  # read once per step; a later signal waits for the next one
            if stopping or is_due(args.log_freq) or is_due(args.val_freq):
                bound, reconstruction, kl, norm = np.mean(recent, axis=0).tolist()
                speed = len(recent) * args.batch_size / (time.perf_counter() - mark)
                run.log.bound('train', training.seen, reconstruction, kl, gradient_norm=norm, learning_rate=rate,
                              samples_per_second=speed)
                bar.set_postfix_str(f'bound {bound:.2f}, KL {kl:.2f}')
                recent = []
            if is_due(args.val_freq):  # even when stopping: --resume would skip this validation
                validate(training, validation_images[:args.num_val_samples], run)
            elif stopping or (args.checkpoint_freq and is_due(args.checkpoint_freq)):
                run.save_checkpoint()
            if stopping:
                raise Stopped
            if not recent:
                mark = time.perf_counter()


def validate(training, images, run):
    """Log the validation bound and what the network paints, and save a checkpoint, and the parameters if they are the
    best so far."""
    bound, reconstruction, kl_t = training.validate(images)
    run.log.bound('validation', training.seen, reconstruction, bound - reconstruction)
    run.log.kl_per_step(training.seen, kl_t)
    if training.seen:
        run.log.gradients(training.net, training.seen)
    run.log.pictures(training.net, images, training.seen)
    cli.say(f'{training.seen:>11,} training samples: validation bound {bound:.2f} nats')
    is_best = bool(bound < training.best_bound)
    training.best_bound = min(bound, training.best_bound)
    run.save_checkpoint(is_best)


def finish(training, images, run):
    """The bound of the best parameters on all validation images, and ten samples."""
    if training.best_bound == np.inf:  # never validated, and resumed with -t below what it had seen
        validate(training, images[:training.args.num_val_samples], run)
    run.load_best()
    with cli.progress('validating', len(images), 'images') as bar:
        def on_batch(count):
            bar.update(count)
            if run.stops():
                raise Stopped

        bound, reconstruction, _ = training.validate(images, on_batch)
    result = {'bound': bound, 'reconstruction': reconstruction, 'kl': bound - reconstruction, 'unit': 'nats',
              'num_images': len(images), 'samples_seen': training.seen}
    run.log.result(training.seen, result)
    try:
        folder = run.path('samples')
        os.makedirs(folder, exist_ok=True)
        paint.write_gifs(paint.paint(training.net, 0, num_samples=NUM_GIFS), folder, 'sample')
        samples = f'{NUM_GIFS} samples: {cli.shown(folder)}/sample_0.gif ... sample_{NUM_GIFS - 1}.gif'
    except OSError as error:  # a run can finish without its pictures
        samples = f'Note: the samples were not written: {cli.reason(error)}'
    run.finish(result)
    cli.say(f'Negative variational bound of best.safetensors on all {len(images):,} validation images: '
            f'{bound:.2f} nats (reconstruction {reconstruction:.2f}, KL {bound - reconstruction:.2f})\n{samples}')


def main(argv=None):
    args = config.parse_args(argv, __doc__)
    parser = cli.Parser('train_mnist.py')
    command = shlex.join(['train_mnist.py', *(sys.argv[1:] if argv is None else argv)])
    with cli.one_line(parser), workers.join(args.kvstore, args.sync_timeout) as group, cli.one_line(parser):
        contexts = devices.contexts(args)
        check_batch_size(args, contexts, group)
        initial = params.load_init(args)
        data = load(args.dataset, args.data_dir, config.image_shape(args), ('train', 'validation'), args.transpose)
        args.input_height, args.input_width = data.shape
        config.check_sizes(args)
        cli.say('\n'.join(data.lines))
        images = stream.TrainingStream(data.splits['train'], args.binarization, args.seed)
        validation_images = stream.evaluation_images(data.splits['validation'], args.binarization)
        same = {name: value for name, value in vars(args).items() if name not in config.OF_EACH_WORKER}
        group.check_same({**same, **versions(), 'images': data.facts['splits']})
        with Run(args, command, data.facts, group) as run:
            training = Training(args, contexts, group)
            training.restore(run.checkpoint(training.net) or initial)
            if run.is_complete(training):
                cli.say(f'{cli.shown(run.folder)} is complete. To train further, give a larger --num_train_samples.' + (
                    ' Its learning rate then rises again, and falls to 0 at the new end.' if args.lr_decay else ''))
                return 0
            run.begin(training)
            train(training, images, validation_images, run)
            finish(training, validation_images, run)
        return run.code


if __name__ == '__main__':
    cli.start(main)
