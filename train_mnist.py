"""Train DRAW on MNIST with Gluon, logging to TensorBoard through mxboard.

    python train_mnist.py --attention             # the paper's MNIST row: 64 steps, 2x2 read, 5x5 write
    python train_mnist.py --dataset synthetic     # no files, no network
    python train_mnist.py --resume results/RUN    # go on after a stop, a crash or a power cut
"""
import contextlib
import shlex
import signal
import sys
import time
import zlib

from system import cli, devices, files

import mxnet as mx
from tqdm import tqdm

from dataset import mnist, stream
from distributed.workers import Workers, WorkersError
from pictures import paint
from runs import storage
from runs.arguments import OWN, arguments_of, check_parts, parse_args
from runs.log import Log
from runs.training import NotFinite, Training

_NUM_GIFS = 10


def train(training, batches, images, log, folder, stop):
    """Train until args.num_train_samples are seen or a worker's `stop` has a signal.

    Worker 0 writes last.params and, if it is, best.params in `folder` at every validation, and checkpoint.params when
    it is due and at the end.

    Parameters
    ----------
    training : Training
    batches : stream.TrainingStream
    images : numpy.ndarray
        Validation images, (n, height * width); the first args.num_val_samples are used.
    log : Log or None
        None at all workers but 0, which write and print nothing.
    folder : str or None
    stop : cli.Stop

    Raises
    ------
    NotFinite, OSError
        Every file is as it was when last written whole.
    """
    args, logged, before, started = training.args, training.seen, training.seconds, time.perf_counter()
    moment, stopping, checkpoint_freq = started, False, args.checkpoint_freq or args.val_freq

    def due(frequency):
        return training.seen % frequency < args.batch_size or training.seen >= args.num_train_samples or stopping

    total = -(-args.num_train_samples // args.batch_size) * args.batch_size  # whole batches
    with tqdm(total=total, initial=training.seen, unit=' samples', smoothing=0.1, disable=log is None) as bar:
        while training.seen < args.num_train_samples and not stopping:
            training.step(batches.batch(*training.next_images()))
            # Asked once, so that a signal that comes later gets a step of its own; all workers stop at the same step.
            stopping = training.workers.any(stop.signal is not None)
            if not any(map(due, (args.log_freq, args.val_freq, checkpoint_freq))):
                continue
            reconstruction, kl, norm = training.means()
            if log:
                log.bound('train', training.seen, reconstruction, kl)
                log.optimization(training.seen, gradient_norm=norm, learning_rate=training.learning_rate(),
                                 samples_per_second=(training.seen - logged) / (time.perf_counter() - moment))
                bar.set_postfix_str(f'bound {reconstruction + kl:.2f} nats, KL {kl:.2f}')
                bar.update(training.seen - logged)
            if due(args.val_freq) and not stopping:
                _validate(training, images[:args.num_val_samples], log, folder)
            if due(checkpoint_freq) and log:
                training.seconds = before + time.perf_counter() - started
                training.save_checkpoint(folder, log)
            logged, moment = training.seen, time.perf_counter()


def _validate(training, images, log, folder):
    """The validation bound, of all workers together; worker 0 logs it and saves the parameters."""
    reconstruction, kl, kl_t = training.validate(images)
    bound = reconstruction + kl
    if log:
        log.bound('validation', training.seen, reconstruction, kl)
        log.kl_per_step(training.seen, kl_t)
        log.pictures(training.net, images, training.seen, training.contexts)
        log.gradients(training.net, training.seen)
        log.flush()
        storage.save_params(folder, 'last', training.net)
        tqdm.write(f'{training.seen:>9,} samples: validation bound {bound:.2f} nats')
    if bound < training.best_bound:
        training.best_bound = bound
        if log:
            storage.save_params(folder, 'best', training.net)


def finish(training, images, log, folder, config):
    """After training: the bound of best.params on all validation images into `config`, and ten GIFs of samples."""
    training.load_best(folder)
    reconstruction, kl, _ = training.validate(images)
    if not log:
        return
    log.bound('validation_whole', training.seen, reconstruction, kl)
    log.flush()
    config['validation'] = {'bound': reconstruction + kl, 'reconstruction': reconstruction, 'kl': kl,
                            'num_images': len(images), 'unit': 'nats', 'parameters': 'best.params'}
    samples = paint.paint(training.net, 0, training.contexts, num_samples=_NUM_GIFS)
    paint.write_gifs(training.net, samples, output_dir=folder, prefix='sample', scale=paint.SCALE)
    print(f'Negative variational bound of best.params on all {len(images):,} validation images: '
          f'{reconstruction + kl:.2f} nats (reconstruction {reconstruction:.2f}, KL {kl:.2f}).\n'
          f'{_NUM_GIFS} samples: {folder}/sample_0.gif ... sample_{_NUM_GIFS - 1}.gif')


def run(args, contexts, workers, command):
    """One training run from the data to the GIFs, or the rest of one; returns its exit code."""
    leads = workers.rank == 0
    if leads and not args.resume:
        storage.check_writable(args.logdir)
    splits = stream.load(args.dataset, args.data_dir, (args.input_height, args.input_width))
    batches = stream.TrainingStream(splits['train'], args.binarization, args.seed)
    images = stream.evaluation_images(splits['validation'], args.binarization)
    workers.connect()
    common = {name: value for name, value in arguments_of(args).items() if name not in OWN}
    workers.agree({**common, **storage.versions(), 'training images (CRC-32)': zlib.crc32(splits['train'])})
    if not leads:
        return _run_in(None, _start(args, contexts, workers, None), batches, images, None)
    folder = args.resume
    if not folder:
        name = 'attention' if args.attention else 'no_attention'
        folder = storage.create(args.logdir, name, {'arguments': arguments_of(args), 'command': command,
                                                       'versions': storage.versions()})
    with storage.lock(folder):
        config = storage.read_config(folder)
        training = _start(args, contexts, workers, folder)
        if args.resume:
            config.setdefault('resumed', []).append({'command': command, 'samples_seen': training.seen})
            config['arguments'] = arguments_of(args)
            storage.write_config(folder, config)
        print(f'Run folder: {folder}' + (f', from {training.seen:,} training samples on' if args.resume else ''))
        return _run_in(folder, training, batches, images, config)


def _start(args, contexts, workers, folder):
    """A new Training, or the one that `folder` (worker 0's, None at the others) holds a checkpoint of."""
    mx.random.seed(args.seed)
    net = storage.build_net(vars(args))
    net.initialize(ctx=contexts)
    training = Training(net, args, contexts, workers)
    if args.resume:
        if folder:
            files.remove_unfinished(folder)
        training.resume(folder)
    return training


def _run_in(folder, training, batches, images, config):
    """Train, and finish if nothing stops it; returns the exit code. Without a folder, a worker that writes nothing."""
    log = Log(folder, config['arguments']) if folder else None
    workers = training.workers
    launcher = f'-m distributed.launch -n {workers.size} ' if workers.size > 1 else ''
    contexts = training.args.cpu_contexts
    go_on = (f'Go on with: python {launcher}train_mnist.py --resume {shlex.quote(folder or "")}'
             + (f' --cpu_contexts {contexts}' if contexts > 1 else ''))
    try:
        with cli.Stop() as stop:
            train(training, batches, images, log, folder, stop)
        if training.seen < training.args.num_train_samples:
            if folder:
                print(f'\nStopped after {training.seen:,} training samples. {go_on}')
            return 130 if stop.signal == signal.SIGINT else 0
        finish(training, images, log, folder, config)
        return 0
    except KeyboardInterrupt:
        if folder:
            print(f'\nStopped. {go_on}')
        workers.abandon(130)
        return 130
    except (NotFinite, OSError) as error:
        what = error if isinstance(error, NotFinite) else ': '.join(filter(None, (error.filename, error.strerror)))
        if folder:
            print(f'\ntrain_mnist.py: stopped: {what}. {go_on}', file=sys.stderr)
        return 1
    finally:
        if folder:
            log.close()
            config.update(samples_seen=training.seen, seconds=round(training.seconds))
            with contextlib.suppress(OSError):  # a full disk, which was told
                storage.write_config(folder, config)


def main(argv=None):
    parser = cli.Parser(prog='train_mnist.py', description=__doc__.splitlines()[0])
    args = parse_args(parser, argv)
    command = shlex.join(['train_mnist.py', *(sys.argv[1:] if argv is None else argv)])
    known = mnist.DataError, storage.RunError, WorkersError
    with cli.one_line(parser, *known):
        workers = Workers(args.kvstore, args.sync_timeout)
    contexts = devices.contexts(parser, args)
    check_parts(parser, args, workers.size)
    with workers:
        with cli.one_line(parser, *known):
            code = run(args, contexts, workers, command)
        if code == 1:  # of this worker alone, maybe
            workers.abandon(code)
        workers.leave()
    return code


if __name__ == '__main__':
    sys.exit(main())
