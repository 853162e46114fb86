"""Likelihood bounds of a trained DRAW: the variational bound, and the importance-weighted one.

    python evaluate.py RUN_DIR
    python evaluate.py RUN_DIR --num_importance_samples 50
"""
import os

from system import cli, devices

import numpy as np
from mxnet import nd
from tqdm import tqdm

import core
from dataset import mnist, stream
from dataset.noise import noise
from runs import storage


def log_weight(reconstruction, mu, log_sigma, eps):
    """log p(x|z) + log p(z) - log q(z|x) in float64, for z = mu + sigma * eps drawn from q.

    The normal constants of prior and posterior cancel. q(z_t|x) depends on z_1 .. z_{t-1}, and so do mu and log_sigma,
    which makes the product over t the density of the whole z.

    Parameters
    ----------
    reconstruction : numpy.ndarray
        -log p(x|z), shape (batch,).
    mu, log_sigma, eps : numpy.ndarray
        Each (num_steps, batch, latent_dim).

    Returns
    -------
    (batch,), nats
    """
    mu, log_sigma, eps = (array.astype(np.float64) for array in (mu, log_sigma, eps))
    z = mu + np.exp(log_sigma) * eps
    return (0.5 * (eps ** 2 - z ** 2) + log_sigma).sum(axis=(0, 2)) - reconstruction


def bounds(net, arguments, images, seed, ctx, num_draws=1, batch_size=100):
    """Bounds of every image, from `num_draws` draws of z for each.

    Every image has noise of its own, so the batch size does not matter. Memory does not depend on `num_draws`.

    Parameters
    ----------
    net : DRAW
    arguments : dict
        The run's arguments (config.json).
    images : numpy.ndarray
        (n, height * width), values 0 or 1.
    seed : int
    ctx : mxnet.Context
    num_draws : int
        K, draws of z per image.
    batch_size : int

    Returns
    -------
    dict of numpy.ndarray, each (n,), float64, nats
        `reconstruction` and `kl`, means over the draws, whose sum is the negative variational bound (Eqn. 12), and
        `importance_weighted`, -log (1/K sum_k p(x, z_k) / q(z_k|x)) (Burda et al. 2015, arXiv:1509.00519, Eqn. 8).
    """
    loss = core.DRAWLoss()
    for block in (net, loss):
        block.hybridize(**core.STATIC)
    n = len(images)
    sums = {'reconstruction': np.zeros(n), 'kl': np.zeros(n), 'log_weights': np.full(n, -np.inf)}
    with tqdm(total=n * num_draws, unit=' draws') as bar:
        for first in range(0, n, batch_size):
            rows = np.arange(first, first + batch_size)
            rows, count = rows % n, int((rows < n).sum())  # filled up with images that do not count: one graph for all
            x = nd.array(images[rows], ctx=ctx)
            for k in range(num_draws):
                eps = noise(seed, f'evaluation {k}', first, batch_size, net.num_steps, net.latent_dim)
                canvas, mu, log_sigma = net(x, nd.array(eps, ctx=ctx))
                reconstruction, kl = (part.asnumpy().astype(np.float64) for part in loss(canvas, mu, log_sigma, x))
                weight = log_weight(reconstruction, mu.asnumpy(), log_sigma.asnumpy(), eps)
                batch = slice(first, first + count)
                sums['reconstruction'][batch] += reconstruction[:count]
                sums['kl'][batch] += kl[:count]
                sums['log_weights'][batch] = np.logaddexp(sums['log_weights'][batch], weight[:count])
                bar.update(count)
    return {'reconstruction': sums['reconstruction'] / num_draws, 'kl': sums['kl'] / num_draws,
            'importance_weighted': np.log(num_draws) - sums['log_weights']}


def summary(per_image, num_draws):
    """What evaluation.json says of the bounds: means over the images, in nats, and standard errors over the images."""
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
    add('run_dir', metavar='RUN_DIR', help='folder of a run: results/<run id>')
    add('--split', choices=stream.SPLITS, default='test', help='images to evaluate on')
    add('--num_importance_samples', '-k', type=cli.count, metavar='K',
        help='also the importance-weighted bound with K draws of z per image, and the bound as their mean')
    add('--num_images', '-n', type=cli.count, metavar='N', help='the first N images of the split instead of all')
    add('--batch_size', '-b', type=cli.count, metavar='N', default=100, help='images at a time; changes no result')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of the noise')
    add('--data_dir', metavar='DIR', help="folder of the MNIST files; the run's if not given")
    add('--gpu', action='store_true', help='use the first GPU instead of the CPU')
    return parser.parse_args(argv)


def run(args, ctx):
    """Evaluate, print, and write evaluation.json in the run's folder."""
    net, config, path = storage.load_net(args.run_dir, ctx)
    storage.check_writable(args.run_dir)
    arguments = config['arguments']
    shape = arguments['input_height'], arguments['input_width']
    split = stream.load(arguments['dataset'], args.data_dir or arguments['data_dir'], shape)[args.split]
    images = stream.evaluation_images(split, arguments['binarization'])[:args.num_images]
    num_draws = args.num_importance_samples
    per_image = bounds(net, arguments, images, args.seed, ctx, num_draws or 1, args.batch_size)
    result = {**summary(per_image, num_draws), 'split': args.split, 'dataset': arguments['dataset'],
              'binarization': arguments['binarization'], 'seed': args.seed, 'parameters': os.path.basename(path)}
    storage.write_json(args.run_dir, 'evaluation.json', result)
    print(report(result, path))


def report(result, path):
    """The lines that evaluate.py prints."""
    def nats(key, error):
        return f'{result[key]:.2f}' + (f' +- {result[error]:.2f}' if result[error] is not None else '') + ' nats'

    kind = 'drawn once with a fixed seed' if result['binarization'] != 'threshold' else 'intensity > 0.5'
    lines = [f'{path} on {result["num_images"]:,} {result["split"]} images of {result["dataset"]} '
             f'(pixels: {kind}; trained with {result["binarization"]} binarization)',
             f'negative variational bound: {nats("bound", "standard_error")} '
             f'(reconstruction {result["reconstruction"]:.2f}, KL {result["kl"]:.2f})']
    if result['num_importance_samples']:
        lines.append(f'negative importance-weighted bound, K = {result["num_importance_samples"]}: '
                     + nats('importance_weighted_bound', 'importance_weighted_standard_error'))
    return '\n'.join(lines)


def main(argv=None):
    parser = cli.Parser(prog='evaluate.py', description=__doc__.splitlines()[0])
    args = parse_args(parser, argv)
    with cli.one_line(parser, storage.RunError, mnist.DataError):
        run(args, devices.context(parser, args.gpu))


if __name__ == '__main__':
    main()
