"""Evaluate a trained DRAW: bounds on -log p(x) of images.

  python evaluate.py RUN        # the variational bound
  python evaluate.py RUN -k 50  # and a tighter one, K = 50
  python evaluate.py RUN --dataset ~/photos
"""
import hashlib
import os

from system import cli, devices, files

import numpy as np

from dataset import stream
from dataset.load import SPLITS, dataset_name, load_of_run
from distributed.workers import Alone
from fused.network import accelerate
from runs import params
from runs.bounds import Evaluator


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run', type=cli.path, metavar='RUN', help='folder of a run')
    add('--num_importance_samples', '-k', dest='num_draws', type=cli.count, metavar='K', default=1,
        help='draws of z for each image; with more than one, the importance-weighted bound too')
    add('--num_images', '-n', type=cli.count, metavar='N', help='only the first N images (default: all)')
    add('--split', choices=SPLITS, default='test', help='part of the data set')
    add('--dataset', type=dataset_name, metavar='NAME|PATH',
        help="images other than the run's, see train_mnist.py; of a folder without test/, the last seventh is used")
    add('--data_dir', type=cli.path, metavar='DIR', help="folder of the data set's files (default: the run's)")
    add('--transpose', action='store_true', help='with --dataset: swap rows and columns')
    add('--binarization', choices=('static', 'threshold'),
        help="draw pixels once (static), or set those above 0.5 (threshold); default: the run's, or static for dynamic")
    add('--batch_size', '-b', type=cli.count, metavar='N', default=100, help='images at a time')
    add('--seed', type=cli.seed, metavar='N', default=0, help='random seed of the noise')
    devices.add_flags(parser)
    args = parser.parse_args(argv)
    if args.transpose and not args.dataset:
        parser.error('argument --transpose needs --dataset')
    return args


def evaluate(args, contexts):
    """Evaluate the images of a run; returns the dict that is saved. Raises cli.UserError."""
    net, config, path = params.load_run(args.run, contexts)
    data = load_of_run(config, [args.split], args.dataset, args.data_dir, args.transpose)
    cli.say('\n'.join(data.lines))
    binarization = args.binarization or config['arguments'].binarization.replace('dynamic', 'static')
    images, draws = stream.evaluation_images(data.splits[args.split][:args.num_images], binarization), args.num_draws
    batch_size = min(args.batch_size, len(images))
    batch_size += -batch_size % len(contexts)
    evaluator = Evaluator(net, accelerate(net, contexts, args.fused), contexts, batch_size, Alone())
    with cli.progress('evaluating', len(images) * draws, 'draws') as bar:
        per_image = evaluator.per_image(images, args.seed, draws, bar.update)
    parameters = b''.join(array.tobytes() for _, array in sorted(params.arrays_of(net).items()))
    result = {'parameters': os.path.basename(path), 'parameters_sha256': hashlib.sha256(parameters).hexdigest(),
              'dataset': data.facts['dataset'], 'images_sha256': data.facts['splits'][args.split]['sha256'],
              'split': args.split, 'binarization': binarization, 'num_images': len(images), 'num_draws': draws,
              'seed': args.seed, 'unit': 'nats'}
    for name, values in per_image.items():
        if not np.isfinite(values).all():
            raise cli.UserError(f'{path}: the {name} is not finite')
        result[name] = float(values.mean())
        result[f'{name}_standard_error'] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {**result, 'kl': result['bound'] - result['reconstruction']}


def report(result):
    """The lines that evaluate.py prints; each bound with its standard error over the images."""
    def nats(name):
        error = result[f'{name}_standard_error']
        return f'{result[name]:.2f}{"" if error is None else f" +- {error:.2f}"} nats'

    split = result['split'].replace('train', 'training')
    yield (f'Negative variational bound of {result["parameters"]} on {result["num_images"]:,} {split} images '
           f'({result["binarization"]} binarization): {nats("bound")} '
           f'(reconstruction {result["reconstruction"]:.2f}, KL {result["kl"]:.2f})')
    if result['num_draws'] > 1:
        yield f'Negative importance-weighted bound, K = {result["num_draws"]}: {nats("importance_weighted")}'


def keep(result, folder):
    """Write the result to a file that is named by what was evaluated; returns its path. Raises OSError."""
    name = ('{split}-{name}-{images_sha256:.8}-{binarization}-images_{num_images}-draws_{num_draws}-seed_{seed}'
            '-parameters_{parameters_sha256:.8}.json')
    path = os.path.join(folder, name.format(name=os.path.basename(result['dataset'])[:40], **result))
    os.makedirs(folder, exist_ok=True)
    files.write_json(path, result)
    return path


def main(argv=None):
    parser = cli.Parser('evaluate.py', __doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        result = evaluate(args, devices.contexts(args))
        cli.say('\n'.join(report(result)))
        cli.say(f'Saved to {cli.shown(keep(result, os.path.join(args.run, "evaluations")))}')


if __name__ == '__main__':
    cli.start(main)
