"""Likelihood bounds of a trained DRAW: the variational bound, and the importance-weighted one.

    python evaluate.py RUN_DIR
    python evaluate.py RUN_DIR --num_importance_samples 50
"""
import os
import signal

from system import cli, devices

import numpy as np

from dataset import load, stream
from runs import storage
from runs.bounds import Evaluator
from runs.evaluation import Evaluation


def summary(per_image, num_draws):
    """What the result says of the bounds: means over the images, in nats, and standard errors over the images."""
    def standard_error(values):
        return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None

    bound, importance_weighted = per_image['reconstruction'] + per_image['kl'], per_image['importance_weighted']
    return {'bound': float(bound.mean()), 'standard_error': standard_error(bound),
            'reconstruction': float(per_image['reconstruction'].mean()), 'kl': float(per_image['kl'].mean()),
            'importance_weighted_bound': float(importance_weighted.mean()) if num_draws else None,
            'importance_weighted_standard_error': standard_error(importance_weighted) if num_draws else None,
            'num_importance_samples': num_draws, 'num_images': len(bound), 'unit': 'nats'}


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run_dir', type=cli.text, metavar='RUN_DIR', help='folder of a run: results/<run id>')
    add('--split', choices=load.SPLITS, default='test', help='images to evaluate on')
    add('--binarization', choices=stream.BINARIZATIONS,
        help="of the images, the run's if not given; dynamic and static are drawn once with the same fixed seed")
    add('--num_importance_samples', '-k', type=cli.count, metavar='K',
        help='also the importance-weighted bound with K draws of z per image, and the bound as their mean')
    add('--num_images', '-n', type=cli.count, metavar='N', help='the first N images of the split instead of all')
    add('--batch_size', '-b', type=cli.count, metavar='N', default=100,
        help='images at a time; changes the last bits of a result at most')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of the noise')
    add('--data_dir', type=cli.text, metavar='DIR', help="folder of the MNIST files; the run's if not given")
    add('--resume', action='store_true', help='go on with this evaluation where it was stopped')
    devices.add_flags(parser)
    args = parser.parse_args(argv)
    devices.check_flags(parser, args)
    return args


def run(args, contexts):
    """Evaluate, print, and keep the result in the run's folder; returns the exit code."""
    net, config, path = storage.load_net(args.run_dir, contexts)
    arguments, num_draws = config['arguments'], args.num_importance_samples
    data_dir, binarization = args.data_dir or arguments['data_dir'], args.binarization or arguments['binarization']
    grey = load.load_of_run(config, [args.split], data_dir=data_dir).splits[args.split]
    images = stream.evaluation_images(grey[:args.num_images], binarization)
    pixels = 'threshold' if binarization == 'threshold' else 'drawn'
    evaluation = Evaluation(args.run_dir, net, images, {'split': args.split, 'pixels': pixels, 'images': len(images),
                                                        'draws': num_draws, 'seed': args.seed})
    done = evaluation.read_part() if args.resume else {}
    smallest = -(-len(images) // len(contexts)) * len(contexts)  # batch in which all images have room
    evaluator = Evaluator(net, contexts, min(args.batch_size, smallest))
    total, first = len(images) * (num_draws or 1), len(done.get('kl', ())) * (num_draws or 1)
    with cli.Stop() as stop, cli.Progress('evaluating', total, 'draws', first) as bar:
        def on_draw(count):
            bar.update(count)
            if len(done['kl']):
                bar.set_postfix_str(f'bound {(done["reconstruction"] + done["kl"]).mean():.2f} nats')
            if stop.signal is not None:
                raise cli.Stopped

        try:
            evaluator.per_image(images, args.seed, num_draws or 1, done, on_draw)
        except cli.Stopped:
            print(f'\nStopped after {len(done["kl"]):,} of {len(images):,} images. {evaluation.write_part(done)}')
            return 130 if stop.signal == signal.SIGINT else 0
    if not all(np.isfinite(values).all() for values in done.values()):
        raise storage.RunError(f'{path}: the bound is not finite')
    result = {**summary(done, num_draws), 'split': args.split, 'pixels': pixels, 'dataset': arguments['dataset'],
              'trained_with': arguments['binarization'], 'parameters': os.path.basename(path)}
    print(report(result, path))
    print(evaluation.write(result))
    return 0


def report(result, path):
    """The lines that evaluate.py prints."""
    def nats(key, error):
        return f'{result[key]:.2f}' + (f' +- {result[error]:.2f}' if result[error] is not None else '') + ' nats'

    kind = 'drawn once with a fixed seed' if result['pixels'] == 'drawn' else 'intensity > 0.5'
    lines = [f'{path} on {result["num_images"]:,} {result["split"]} images of {result["dataset"]} '
             f'(pixels: {kind}; trained with {result["trained_with"]} binarization)',
             f'negative variational bound: {nats("bound", "standard_error")} '
             f'(reconstruction {result["reconstruction"]:.2f}, KL {result["kl"]:.2f})']
    if result['num_importance_samples']:
        lines.append(f'negative importance-weighted bound, K = {result["num_importance_samples"]}: '
                     + nats('importance_weighted_bound', 'importance_weighted_standard_error'))
    return '\n'.join(lines)


def main(argv=None):
    parser = cli.Parser(prog='evaluate.py', doc=__doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        return run(args, devices.contexts(parser, args))


if __name__ == '__main__':
    cli.start(main)
