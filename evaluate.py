"""Evaluate a trained DRAW: its variational bound, and the importance-weighted one.

    python evaluate.py RUN                          # on the 10,000 test images
    python evaluate.py RUN -n 100                   # on the first hundred
    python evaluate.py RUN -k 50                    # 50 draws of z per image, and the importance-weighted bound
    python evaluate.py RUN --dataset fixed_mnist    # on other images
"""
import os

from system import cli, devices, files

import numpy as np

from dataset import stream
from dataset.load import SPLITS, load_of_run
from distributed.workers import Alone
from fused.network import accelerate
from runs import config, params
from runs.bounds import Evaluator


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run', type=cli.path, metavar='RUN', help='folder of a run')
    add('--num_importance_samples', '-k', type=cli.count, metavar='K',
        help='draws of z per image, for the importance-weighted bound; the variational bound is their mean')
    add('--num_images', '-n', type=cli.count, metavar='N', help='only the first N images of the split')
    add('--split', choices=SPLITS, default='test', help='part of the data set')
    add('--dataset', type=config.dataset_name, metavar='NAME|PATH', help="other images than the run's, see train_mnist.py")
    add('--data_dir', type=cli.path, metavar='DIR', help="folder of the data set's files (default: the run's)")
    add('--transpose', action='store_true', help='with --dataset: swap rows and columns')
    add('--binarization', choices=('drawn', 'threshold'),
        help="draw the pixels once with a fixed seed, or intensity > 0.5 (default: as the run's validation)")
    add('--batch_size', '-b', type=cli.count, metavar='N', default=100, help='images at a time')
    add('--seed', type=cli.seed, metavar='N', default=0, help='random seed of the noise')
    devices.add_flags(parser)
    return parser.parse_args(argv)


def summary(per_image, num_draws):
    """Means over the images, in nats, and their standard errors over the images."""
    def statistics(values):
        return float(values.mean()), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None

    result = {'num_images': len(per_image['bound']), 'num_importance_samples': num_draws, 'unit': 'nats'}
    result['bound'], result['standard_error'] = statistics(per_image['bound'])
    result['reconstruction'] = float(per_image['reconstruction'].mean())
    result['kl'] = result['bound'] - result['reconstruction']
    if num_draws:
        name = 'importance_weighted_bound'
        result[name], result[f'{name}_standard_error'] = statistics(per_image['importance_weighted'])
    return result


def report(result, path):
    """The lines that evaluate.py prints."""
    def nats(value, error):
        return f'{value:.2f}' + (f' +- {error:.2f}' if error is not None else '') + ' nats'

    kind = 'drawn once with a fixed seed' if result['pixels'] == 'drawn' else 'intensity > 0.5'
    lines = [f'{cli.shown(path)} on {result["num_images"]:,} {result["split"]} images of {result["dataset"]} (pixels: {kind})',
             f'negative variational bound: {nats(result["bound"], result["standard_error"])} '
             f'(reconstruction {result["reconstruction"]:.2f}, KL {result["kl"]:.2f})']
    if result['num_importance_samples']:
        lines.append(f'negative importance-weighted bound, K = {result["num_importance_samples"]}: '
                     + nats(result['importance_weighted_bound'], result['importance_weighted_bound_standard_error']))
    return '\n'.join(lines)


def keep(folder, result):
    """Write the result to a file of its own for each choice of settings; returns its path."""
    settings = [f'{result["split"]}', os.path.basename(result['dataset']), result['images_sha256'][:8], result['pixels'],
                f'images_{result["num_images"]}', f'seed_{result["seed"]}']
    if result['num_importance_samples']:
        settings.append(f'draws_{result["num_importance_samples"]}')
    folder = os.path.join(folder, 'evaluations')
    if os.path.islink(folder):
        raise OSError(f'{folder} is a symbolic link')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, '-'.join(settings) + '.json')
    files.write_json(path, result)
    return path


def run(args):
    """Evaluate, print and keep the result; returns the exit code."""
    contexts = devices.contexts(args)
    net, stored, path = params.load_run(args.run, contexts)
    data = load_of_run({**stored, 'arguments': vars(stored['arguments'])}, [args.split], args.dataset, args.data_dir,
                       args.transpose)
    for line in data.lines:
        cli.say(line)
    binarization = args.binarization or ('threshold' if stored['arguments'].binarization == 'threshold' else 'drawn')
    images = stream.evaluation_images(data.splits[args.split][:args.num_images],
                                      binarization.replace('drawn', 'static'))
    num_draws, batch_size = args.num_importance_samples, min(args.batch_size, len(images))
    batch_size += -batch_size % len(contexts)
    evaluator = Evaluator(net, accelerate(net, contexts, args.fused), contexts, batch_size, Alone())
    with cli.Progress('evaluating', len(images) * (num_draws or 1), 'draws') as bar:
        per_image = evaluator.per_image(images, args.seed, num_draws or 1, bar.update)
    if not all(np.isfinite(values).all() for values in per_image.values()):
        raise cli.UserError(f'{path}: the bound is not finite')
    result = {**summary(per_image, num_draws), 'split': args.split, 'pixels': binarization, 'dataset': data.name,
              'images_sha256': data.facts['splits'][args.split]['sha256'], 'seed': args.seed,
              'parameters': os.path.basename(path)}
    cli.say(report(result, path))
    try:
        cli.say(f'Kept in {cli.shown(keep(args.run, result))}')
    except OSError as error:
        cli.say(f'The result could not be kept: {cli.reason(error)}')
        return 1
    return 0


def main(argv=None):
    parser = cli.Parser('evaluate.py', __doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        return run(args)


if __name__ == '__main__':
    cli.start(main)
