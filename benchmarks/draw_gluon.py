"""Time this project's training step: images, noise, forward, loss, backward, clipping and Adam.

    python -m benchmarks.draw_gluon --attention                 # one line of JSON
    python -m benchmarks.draw_gluon --attention --fused off     # without the operator
    python -m benchmarks.draw_gluon --attention --profile       # where the time goes
"""
import collections
import os
import statistics
import tempfile
import time
import types

from system import cli, devices

import mxnet as mx
from mxnet import nd

import train_mnist
from benchmarks import common, limits
from dataset import stream
from distributed import workers
from runs import config
from runs.training import Training, check_batch_size

_NUM_IMAGES = 1000


def make_step(args, group=None):
    """A `Training`, and a function that makes one step of train_mnist.py."""
    contexts, group = devices.contexts(args), group or workers.Alone()
    check_batch_size(args, contexts, group)
    intensities = (255 * common.random_images(args, _NUM_IMAGES)).astype('uint8')
    training, images = Training(args, contexts, group), stream.TrainingStream(intensities, args.binarization, args.seed)
    return training, lambda: train_mnist.step(training, images)


def time_steps(args):
    """Speed and memory, and the part of the time that the matrix products would take at two rates."""
    result = common.measure(lambda: (make_step(args)[1], nd.waitall), args)
    step_s = args.batch_size / result['samples_per_s']
    for name, rate in ('peak', limits.peak_rate(devices.threads())), ('sgemm', limits.sgemm_rate()):
        result[f'{name}_gflops'] = round(2e-9 * rate, 1)
        result[f'share_of_{name}'] = float(f'{limits.multiply_adds(args) / rate / step_s:.4g}')
    return result


def profile(args):
    """Print the median time of each stage, and of the functions of draw.c in it."""
    training, step = make_step(args)
    for _ in range(2):
        step()
    stages, inside = collections.defaultdict(list), collections.defaultdict(list)

    def timed(seconds, function, wait=lambda: None):
        def call(*arguments):
            wait()
            started = time.perf_counter()
            result = function(*arguments)
            wait()
            seconds.append(time.perf_counter() - started)
            return result
        return call

    if training.forward is not training.net:
        library = training.forward.library
        training.forward.library = types.SimpleNamespace(
            draw_floats=library.draw_floats, draw_forward=timed(inside['forward'], library.draw_forward),
            draw_backward=timed(inside['backward'], library.draw_backward))
    for name in ('batch', 'forward', 'loss', 'update'):
        setattr(training, name, timed(stages[name], getattr(training, name), nd.waitall))
    whole = timed(stages['step'], step, nd.waitall)
    for _ in range(4 * args.blocks):
        whole()
    stages['backward'] = [all_of_it - sum(parts) for *parts, all_of_it in zip(*stages.values())]
    names = {'images and noise': 'batch', 'forward': 'forward', 'loss': 'loss', 'backward': 'backward',
             'clipping and Adam': 'update'}
    ms = {stage: 1e3 * statistics.median(stages[name]) for stage, name in names.items()}
    print('| stage | ms per step | share | in draw.c, ms |\n|---|---|---|---|')
    for stage in ms:
        in_c = f'{1e3 * statistics.median(inside[stage]):.1f}' if inside[stage] else ''
        print(f'| {stage} | {ms[stage]:.1f} | {ms[stage] / sum(ms.values()):.1%} | {in_c} |')
    print(f'| all | {sum(ms.values()):.1f} | | |')


def main(argv=None):
    parser = cli.Parser('draw_gluon.py', __doc__)
    parser.add_argument('--fused', choices=('on', 'off'), default='on', help='use the operator in fused/, or not')
    parser.add_argument('--compile', action='store_true', help='compile the operator anew, and forget it')
    parser.add_argument('--profile', action='store_true', help='time the parts of a step instead')
    own = common.parse_args(parser, argv, cli.count)
    args = config.parse_args([*common.size_flags(own), '--fused', own.fused])
    args.blocks = own.blocks
    with cli.one_line(parser), tempfile.TemporaryDirectory() as folder:
        if own.compile:
            os.environ['XDG_CACHE_HOME'] = folder
        if own.profile:
            profile(args)
        else:
            common.print_result(f'MXNet {mx.__version__}', time_steps(args))


if __name__ == '__main__':
    cli.start(main)
