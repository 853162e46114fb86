"""Train DRAW on MNIST with Gluon, logging to TensorBoard through mxboard.

    python train_mnist.py --attention             # the paper's MNIST row: 64 steps, 2x2 read, 5x5 write
    python train_mnist.py --dataset synthetic     # no files, no network
    python train_mnist.py --resume results/RUN    # go on after a stop, a crash or a power cut
"""
import contextlib
import math
import os
import shlex
import shutil
import signal
import sys
import time
import zlib

from system import cli, devices, files, memory

import mxnet as mx
import numpy as np

from dataset import stream
from dataset.load import load
from distributed import workers
from pictures import paint
from runs import storage
from runs.arguments import OF_EACH_WORKER, arguments_of, parse_args
from runs.log import Log, NoLog
from runs.training import NotFinite, Training, memory_needed, read_checkpoint

_NUM_GIFS = 10


def train(training, images, validation_images, log, folder, stop):
    """Train until args.num_train_samples are seen or a worker's `stop` has a signal.

    Parameters
    ----------
    training : Training
    images : stream.TrainingStream
    validation_images : numpy.ndarray
        (n, height * width); the first args.num_val_samples are used.
    log : Log
    folder : str
        The run's folder, in which worker 0 writes.
    stop : cli.Stop

    Raises
    ------
    cli.Stopped
        After the checkpoint of the stop.
    NotFinite, OSError
        Every file is as it was when last written whole.
    """
    args, recent, stopping = training.args, [], False
    began = logged = training.seen
    validation_images = validation_images[:args.num_val_samples]
    total = -(-args.num_train_samples // args.batch_size) * args.batch_size  # whole batches
    checkpoint_freq = args.checkpoint_freq or args.val_freq
    moment = log_moment = time.perf_counter()

    def is_due(frequency):
        return training.seen % frequency < args.batch_size or training.seen >= total

    with cli.Progress('training', total, 'samples', training.seen, training.group.rank > 0) as bar:
        while training.seen < args.num_train_samples and not stopping:
            x = images.batch(*training.next_images())
            recent.append(training.step(x))
            # Asked once, so that a signal that comes later gets a step of its own; all workers stop at the same step.
            stopping = training.group.any(stop.signal is not None)
            training.seconds, moment = training.seconds + time.perf_counter() - moment, time.perf_counter()
            bar.update(args.batch_size)
            if not (stopping or any(map(is_due, (args.log_freq, args.val_freq, checkpoint_freq)))):
                continue
            reconstruction, kl, norm = np.mean(recent, axis=0, dtype=np.float64).tolist()
            log.bound('train', training.seen, reconstruction, kl)
            log.optimization(training.seen, gradient_norm=norm, learning_rate=training.learning_rate(),
                             samples_per_second=(training.seen - logged) / (time.perf_counter() - log_moment))
            bar.set_postfix_str(f'bound {reconstruction + kl:.2f} nats, KL {kl:.2f}')
            if is_due(args.val_freq):  # also when stopping, as a run that goes on begins with the next step
                log.gradients(training.net, training.seen)
                validate(training, validation_images, log, folder, bar)
            elif stopping or is_due(checkpoint_freq):
                training.save_checkpoint(folder, log)
            recent, logged, log_moment = [], training.seen, time.perf_counter()
        if training.seen == began:  # no step was left of a run that goes on
            validate(training, validation_images, log, folder, bar)
    if stopping:
        training.save_params(folder, 'last')
    log.save_curves()
    if stopping:
        raise cli.Stopped


def validate(training, images, log, folder, bar):
    """The validation bound: log it and what the network paints, and save the parameters and a checkpoint."""
    reconstruction, kl, kl_t = training.validate(images)
    bound = reconstruction + kl
    log.bound('validation', training.seen, reconstruction, kl)
    log.kl_per_step(training.seen, kl_t)
    log.pictures(training.net, images, training.seen)
    bar.say(f'{training.seen:>9,} samples: validation bound {bound:.2f} nats')
    training.save_params(folder, 'last')
    if bound < training.best_bound:
        training.best_bound = bound
        training.save_params(folder, 'best')
        if bound < math.log(2) * len(images[0]):  # that of probability 1/2 for every pixel; above, it may have exploded
            training.save_checkpoint(folder, log, 'fallback')
    training.save_checkpoint(folder, log)  # or the best parameters would be ahead of it


def finish(training, validation_images, log, folder, config, stop):
    """After training: the bound of the best parameters on all validation images into `config`, and ten samples.

    Raises cli.Stopped where a worker's `stop` has a signal before that.
    """
    leads = training.group.rank == 0
    training.load_best(folder)
    with cli.Progress('validating', len(validation_images), 'images', silent=not leads) as bar:
        def on_batch(count):
            bar.update(count)
            if training.group.any(stop.signal is not None):
                raise cli.Stopped

        reconstruction, kl, _ = training.validate(validation_images, on_batch)
    if not leads:
        return
    validation = {
        'bound': reconstruction + kl, 'reconstruction': reconstruction, 'kl': kl, 'unit': 'nats',
        'num_images': len(validation_images), 'parameters': 'best.safetensors', 'samples_seen': training.seen}
    log.result(training.seen, validation)
    samples = paint.paint(training.net, 0, num_samples=_NUM_GIFS)
    gifs = os.path.join(folder, 'samples')
    os.makedirs(gifs, exist_ok=True)
    paint.write_gifs(samples, gifs, 'sample')
    config['validation'] = validation  # last, as it makes the run complete
    print(f'Negative variational bound of best.safetensors on all {len(validation_images):,} validation images: '
          f'{reconstruction + kl:.2f} nats (reconstruction {reconstruction:.2f}, KL {kl:.2f}).\n'
          f'{_NUM_GIFS} samples: {gifs}/sample_0.gif ... sample_{_NUM_GIFS - 1}.gif')


def used_devices(config):
    """What a run computes with, in words."""
    arguments = config.get('arguments', {})
    workers = '' if config.get('workers', 1) == 1 else f'{config["workers"]!r} workers, each '
    if arguments.get('gpu') or arguments.get('gpus'):
        return f'{workers}GPU {arguments.get("gpus") or 0}'
    return f'{workers}CPU (contexts x threads: {arguments.get("cpu_contexts")!r} x {config.get("threads")!r})'


def is_complete(config, checkpoint, args):
    """Whether a run has seen all training samples that are asked for, and was finished."""
    seen = checkpoint[1]['samples_seen'] if checkpoint else 0
    return seen >= args.num_train_samples and config.get('validation', {}).get('samples_seen') == seen


def run(args, contexts, group, command):
    """One training from the data to the samples, or the rest of one; returns the exit code."""
    leads, folder, config, checkpoint = group.rank == 0, args.resume, {}, None
    if leads and not folder:
        storage.check_writable(args.logdir)
    splits = load(args.dataset, args.data_dir, (args.input_height, args.input_width)).splits
    images = stream.TrainingStream(splits['train'], args.binarization, args.seed)
    validation_images = stream.evaluation_images(splits['validation'], args.binarization)
    net, checksum = storage.build_net(vars(args)), zlib.crc32(splits['train'])
    group.connect()
    common = {name: value for name, value in arguments_of(args).items() if name not in OF_EACH_WORKER}
    group.check_same({**common, **storage.versions(), 'training images (CRC-32)': checksum})
    with contextlib.ExitStack() as stack:
        if leads and folder:
            stack.enter_context(storage.lock(folder))
            config, checkpoint = storage.read_config(folder), read_checkpoint(folder, net, args)
            if config.setdefault('training_images_crc32', checksum) != checksum:
                raise storage.RunError(f'{folder} was trained on other images than --dataset {args.dataset}, '
                                       f'--data_dir {args.data_dir} give with this Pillow')
        if group.any(is_complete(config, checkpoint, args)):
            if leads:
                print(f'{folder} is complete: {config["validation"]["samples_seen"]:,} training samples, validation '
                      f'bound {config["validation"]["bound"]:.2f} nats. A larger --num_train_samples trains on.')
            return 0
        need = group.num_here() * memory_needed(net, args.batch_size // group.size, len(contexts))
        there = memory.available()
        if need > there and contexts[0].device_type == 'cpu':
            raise cli.UserError(f'a training of these sizes needs {need / 2 ** 30:,.1f} GiB of memory or more, but '
                                f'there are {there / 2 ** 30:,.1f}')
        mx.random.seed(args.seed)
        net.initialize(ctx=contexts)
        if leads and args.init and not checkpoint:
            config['init'] = storage.load_init(args.init, net)  # the others get the parameters from this worker
        training, log = Training(net, args, contexts, group), NoLog()
        training.resume(checkpoint)
        if leads:
            before = used_devices(config)
            config.update(arguments=arguments_of(args), threads=devices.threads(), workers=group.size)
            if not folder:
                config.update(command=command, versions=storage.versions(), training_images_crc32=checksum)
                folder = storage.create(args.logdir, 'attention' if args.attention else 'no_attention', config)
                stack.enter_context(storage.lock(folder))
            else:
                if used_devices(config) != before:
                    print(f'Note: {before} before, {used_devices(config)} now. The parameters will differ in the last '
                          'bits from those of a training that was never stopped.')
                config.setdefault('resumed', []).append({'command': command, 'samples_seen': training.seen})
                files.remove_unfinished(folder)
                storage.write_config(folder, config)
            print(f'Run folder: {folder}' + (f', from {training.seen:,} training samples on' if training.seen else ''))
            log = Log(folder, config['arguments'], training.seen)

        def keep_config():
            if leads:
                config.update(samples_seen=training.seen, seconds=round(training.seconds))
                storage.write_config(folder, config)

        try:
            with cli.Stop() as stop:
                train(training, images, validation_images, log, folder, stop)
                finish(training, validation_images, log, folder, config, stop)
                keep_config()
            return 0
        except cli.Stopped:
            if leads:
                print(f'\nStopped after {training.seen:,} training samples. {go_on(folder, group)}')
            return 130 if stop.signal == signal.SIGINT else 0
        except KeyboardInterrupt:
            if leads:
                print(f'\nStopped. {go_on(folder, group)}')
            group.abandon(130)
            return 130
        except NotFinite as error:
            if leads:
                seen = storage.fall_back(folder, net)
                state = f'is again the best, after {seen:,} samples' if seen else 'is gone, the run starts anew'
                rate = f' --learning_rate {args.learning_rate / 10:g}'
                cli.complain(f'{error}; the checkpoint {state}. {go_on(folder, group)}{rate}')
            return 1
        except (mx.MXNetError, MemoryError) as error:  # MXNet has no more memory, as a rule, or NumPy
            with contextlib.suppress(mx.MXNetError):
                mx.nd.waitall()  # or it fails again at the end of the program
            if not training.seen and not args.resume:
                if leads:
                    shutil.rmtree(folder)
                raise cli.UserError(f'no step can be done: {cli.last_line(error)}') from None
            if leads:
                cli.complain(f'{cli.last_line(error)}. {go_on(folder, group)}')
            return 1
        except OSError as error:
            if leads:
                cli.complain(f'{cli.reason(error)}. {go_on(folder, group)}')
            return 1
        finally:
            log.close()
            with contextlib.suppress(OSError):  # a full disk, which was told
                keep_config()


def go_on(folder, group):
    """The command that goes on with a run."""
    flags = os.environ.get('DISTRIBUTED_LAUNCH', f'-n {group.size}')
    launcher = ['-m', 'distributed.launch', *shlex.split(flags)] if os.environ.get('DMLC_ROLE') == 'worker' else []
    resume = [f'--resume={folder}'] if folder.startswith('-') else ['--resume', folder]
    return 'Go on with: ' + cli.command(*launcher, cli.script(__file__), *resume)


def main(argv=None):
    parser = cli.Parser(prog='train_mnist.py', doc=__doc__)
    args = parse_args(parser, argv)
    command = shlex.join(['train_mnist.py', *(sys.argv[1:] if argv is None else argv)])
    with cli.one_line(parser):
        group = workers.join(args.kvstore, args.sync_timeout)
    contexts = devices.contexts(parser, args)
    devices.check_parts(parser, args, group.size)
    with group:
        with cli.one_line(parser):
            code = run(args, contexts, group, command)
        if code == 1:  # of this worker alone, maybe
            group.abandon(code)
        group.leave()
    return code


if __name__ == '__main__':
    cli.start(main)
