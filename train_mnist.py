"""Train DRAW on MNIST with Gluon, logging to TensorBoard through mxboard.

    python train_mnist.py --attention             # the paper's MNIST row: 64 steps, 2x2 read, 5x5 write
    python train_mnist.py --dataset synthetic     # no files, no network
    python train_mnist.py --resume results/RUN    # go on after a stop, a crash or a power cut
"""
import argparse
import contextlib
import shlex
import signal
import sys
import time
import zlib

import cli  # isort: skip  (sets up threads before mxnet is imported)
import mxnet as mx
from tqdm import tqdm

import data
import files
import run_folder
import sample
from log import Log
from training import MAY_CHANGE, NotFinite, Training, arguments_of
from workers import Workers, WorkersError

_NUM_GIFS = 10
_DEVICES = ('gpu', 'gpus', 'cpu_contexts')
_OWN = ('data_dir', 'logdir', *_DEVICES)  # arguments in which workers may differ


def train(training, stream, images, log, folder, stop):
    """Train until args.num_train_samples are seen or a worker's `stop` has a signal.

    Worker 0 writes last.params and, if it is, best.params in `folder` at every validation, and checkpoint.params when
    it is due and at the end.

    Parameters
    ----------
    training : Training
    stream : data.TrainingStream
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
            training.step(stream.batch(*training.next_images()))
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
        log.pictures(training.net, images, training.seen, training.contexts[0])
        log.gradients(training.net, training.seen)
        log.flush()
        run_folder.save_params(folder, 'last', training.net)
        tqdm.write(f'{training.seen:>9,} samples: validation bound {bound:.2f} nats')
    if bound < training.best_bound:
        training.best_bound = bound
        if log:
            run_folder.save_params(folder, 'best', training.net)


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
    arguments = config['arguments']
    paintings = sample.paint(training.net, arguments, seed=0, ctx=training.contexts[0], num_samples=_NUM_GIFS)
    sample.write_gifs(paintings, arguments, output_dir=folder, prefix='sample', scale=sample.SCALE)
    print(f'Negative variational bound of best.params on all {len(images):,} validation images: '
          f'{reconstruction + kl:.2f} nats (reconstruction {reconstruction:.2f}, KL {kl:.2f}).\n'
          f'{_NUM_GIFS} samples: {folder}/sample_0.gif ... sample_{_NUM_GIFS - 1}.gif')


def _add_arguments(parser):
    add = parser.add_argument
    add('--batch_size', '-b', type=cli.count, metavar='N', default=64, help='images per gradient step')
    add('--input_height', '-hh', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--input_width', '-ww', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--num_steps', '-s', type=cli.count, metavar='N', default=64, help='time steps T in which an image is painted')
    add('--num_recurrent_units', '-u', type=cli.count, metavar='N', default=256,
        help='units of the encoder and of the decoder LSTM')
    add('--latent_dim', '-l', type=cli.count, metavar='N', default=100, help='dimensions of z_t')
    add('--learning_rate', '-r', type=cli.positive, metavar='X', default=2e-3, help="Adam's learning rate")
    add('--lr_decay', type=cli.share, metavar='X', default=0.4,
        help='last part of the training, 0 to 1, over which the learning rate falls linearly to 0; 0: constant')
    add('--num_train_samples', '-t', type=cli.count, metavar='N', default=1000000,
        help='training samples to see, rounded up to whole batches; 1e6 is accepted')
    add('--num_val_samples', '-v', type=cli.count, metavar='N', default=256,
        help='validation images per validation (all of them at the end)')
    add('--val_freq', '-f', type=cli.count, metavar='N', default=10000, help='training samples between two validations')
    add('--gpu', action='store_true', help='use the first GPU instead of the CPU')
    add('--gpus', type=cli.numbers, metavar='LIST', help='share every batch among these GPUs, as 0,1')
    add('--cpu_contexts', type=cli.count, metavar='N', default=1,
        help='share every batch, and the processors, among N contexts of the CPU, which compute at the same time')
    add('--kvstore', choices=('local', 'device', 'dist_sync'), default='device',
        help='what adds up the gradients of several devices: the CPU, the devices, or, with workers that launch.py '
             'started, a server; --batch_size is that of all together')
    add('--sync_timeout', type=cli.count, metavar='N', default=300,
        help='with dist_sync: seconds without a word from the other workers after which one gives up')
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
    add('--checkpoint_freq', type=cli.count, metavar='N',
        help='training samples between two checkpoints; as --val_freq if not given')
    add('--resume', metavar='RUN_DIR',
        help='go on with this run; of its arguments only these may change: ' + ', '.join(MAY_CHANGE))


def _check(parser, args):
    largest = dict.fromkeys((*run_folder.SIZES, 'batch_size'), run_folder.MAX_SIZE)
    for name, limit in {**largest, 'cpu_contexts': 64, 'sync_timeout': 24 * 3600}.items():
        if getattr(args, name) > limit:
            parser.error(f'argument --{name}: at most {limit}, not {getattr(args, name)}')
    if args.gpus and (args.gpu or args.cpu_contexts > 1) or args.gpu and args.cpu_contexts > 1:
        parser.error('only one of --gpu, --gpus and --cpu_contexts can be given')
    _check_parts(parser, args)
    side = min(args.input_height, args.input_width)
    for name in ('read_size', 'write_size'):
        if args.attention and getattr(args, name) > side:
            parser.error(f'argument --{name}: {getattr(args, name)} is larger than the shorter side of the image '
                         f'({side})')
    return args


def _check_parts(parser, args, num_workers=1):
    parts = num_workers * (len(args.gpus.split(',')) if args.gpus else args.cpu_contexts)
    if args.batch_size % parts:
        parser.error(f'argument --batch_size: {args.batch_size} images cannot be shared evenly by {parts} devices')


def parse_args(parser, argv=None):
    _add_arguments(parser)
    args = _check(parser, parser.parse_args(argv))
    return args if args.resume is None else _resumed_args(parser, args.resume, argv)


def _resumed_args(parser, folder, argv):
    """The arguments of the run in `folder`, checked as a command line is, with the changes that `argv` makes."""
    try:
        arguments = {'lr_decay': 0., **run_folder.read_config(folder)['arguments']}  # runs older than the flag
    except run_folder.RunError as error:
        parser.error(str(error))
    own = cli.Parser(prog=f'{parser.prog}: {folder}/config.json')
    _add_arguments(own)
    known = vars(own.parse_args([]))
    for name, value in arguments.items():
        if name not in known or not (value is None or isinstance(value, (bool, int, float, str))):
            own.error(f'{name!r}: {value!r} is no argument of a run')
    flags = [f'--{name}' if value is True else f'--{name}={value}' for name, value in arguments.items()
             if value is not None and value is not False]
    stored = _check(own, own.parse_args(flags))
    given = {word.partition('=')[0] for word in (sys.argv[1:] if argv is None else argv)}
    if given & {f'--{name}' for name in _DEVICES}:  # instead of the stored ones, not beside them
        vars(stored).update({name: known[name] for name in _DEVICES})
    args = _check(parser, parser.parse_args(argv, namespace=argparse.Namespace(**vars(stored))))
    for name, value in vars(args).items():
        if value != getattr(stored, name, value) and name not in (*MAY_CHANGE, 'resume'):
            parser.error(f'argument --{name}: {value} contradicts {getattr(stored, name)} of the run in {folder}')
    return args


def run(args, contexts, workers, command):
    """One training run from the data to the GIFs, or the rest of one; returns its exit code."""
    leads = workers.rank == 0
    if leads and not args.resume:
        run_folder.check_writable(args.logdir)
    splits = data.load(args.dataset, args.data_dir, (args.input_height, args.input_width))
    stream = data.TrainingStream(splits['train'], args.binarization, args.seed)
    images = data.evaluation_images(splits['validation'], args.binarization)
    workers.connect()
    common = {name: value for name, value in arguments_of(args).items() if name not in _OWN}
    workers.agree({**common, **run_folder.versions(), 'training images (CRC-32)': zlib.crc32(splits['train'])})
    if not leads:
        return _run_in(None, _start(args, contexts, workers, None), stream, images, None)
    folder = args.resume
    if not folder:
        name = 'attention' if args.attention else 'no_attention'
        folder = run_folder.create(args.logdir, name, {'arguments': arguments_of(args), 'command': command,
                                                       'versions': run_folder.versions()})
    with run_folder.lock(folder):
        config = run_folder.read_config(folder)
        training = _start(args, contexts, workers, folder)
        if args.resume:
            config.setdefault('resumed', []).append({'command': command, 'samples_seen': training.seen})
            config['arguments'] = arguments_of(args)
            run_folder.write_config(folder, config)
        print(f'Run folder: {folder}' + (f', from {training.seen:,} training samples on' if args.resume else ''))
        return _run_in(folder, training, stream, images, config)


def _start(args, contexts, workers, folder):
    """A new Training, or the one that `folder` (worker 0's, None at the others) holds a checkpoint of."""
    mx.random.seed(args.seed)
    net = run_folder.build_net(vars(args))
    net.initialize(ctx=contexts)
    training = Training(net, args, contexts, workers)
    if args.resume:
        if folder:
            files.remove_unfinished(folder)
        training.resume(folder)
    return training


def _run_in(folder, training, stream, images, config):
    """Train, and finish if nothing stops it; returns the exit code. Without a folder, a worker that writes nothing."""
    log = Log(folder, config['arguments']) if folder else None
    workers = training.workers
    launcher = f'launch.py -n {workers.size} ' if workers.size > 1 else ''
    contexts = training.args.cpu_contexts
    go_on = (f'Go on with: python {launcher}train_mnist.py --resume {shlex.quote(folder or "")}'
             + (f' --cpu_contexts {contexts}' if contexts > 1 else ''))
    try:
        with cli.Stop() as stop:
            train(training, stream, images, log, folder, stop)
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
                run_folder.write_config(folder, config)


def main(argv=None):
    parser = cli.Parser(prog='train_mnist.py', description=__doc__.splitlines()[0])
    args = parse_args(parser, argv)
    command = shlex.join(['train_mnist.py', *(sys.argv[1:] if argv is None else argv)])
    known = data.DataError, run_folder.RunError, WorkersError
    with cli.one_line(parser, *known):
        workers = Workers(args.kvstore, args.sync_timeout)
    contexts = cli.contexts(parser, args)
    _check_parts(parser, args, workers.size)
    with workers:
        with cli.one_line(parser, *known):
            code = run(args, contexts, workers, command)
        if code == 1:  # of this worker alone, maybe
            workers.abandon(code)
        workers.leave()
    return code


if __name__ == '__main__':
    sys.exit(main())
