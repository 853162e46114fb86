"""Make a compact model and the README's pictures from a run.

    python -m assets.make RUN NAME

Beside this file:
    NAME/                     best.safetensors in half precision,
                              and config.json without paths
    NAME_grid.gif             a hundred samples of seed 0
    NAME_reconstructions.png  the first four test images
    NAME_kl.png               the KL of every time step
    curves.png                the validation bound, of a run on MNIST
"""
import os

from system import cli, files

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from dataset import stream
from dataset.load import load_of_run
from pictures import paint, plot, render
from runs import curves, params

FOLDER = os.path.dirname(os.path.abspath(__file__))
_PATHS = 'data_dir', 'logdir', 'init', 'resume'  # among the flags
_GRID_SIDE = 56  # screen pixels of an image in a grid
_PAPER = {True: 80.97, False: 87.40}  # nats on MNIST's test images (Table 2), with attention and without


def compact_model(run, folder):
    """Write the model of a run in half precision, and its config.json without the paths of this machine."""
    net, stored, _ = params.load_run(run)
    kept = {name: stored[name] for name in ('images', 'versions', 'validation') if name in stored}
    if kept.get('validation', {}).get('samples_seen', 0) < stored['arguments'].num_train_samples:
        kept.pop('validation', None)  # the result of a shorter run, whose best parameters may have been replaced
    name = os.path.basename(stored['arguments'].dataset)  # of a path
    own = {flag: value for flag, value in vars(stored['arguments']).items() if flag not in _PATHS}
    kept['arguments'] = {**own, 'dataset': name}
    if 'images' in kept:
        kept['images'] = {**kept['images'], 'dataset': name, 'path': 'data'}
    os.makedirs(folder, exist_ok=True)
    params.save(os.path.join(folder, 'best.safetensors'), params.arrays_of(net, 'float16'))
    files.write_json(os.path.join(folder, 'config.json'), kept)


def kl_figure(table):
    """The KL of each time step over training as colours; `table` is that of kl_per_step.csv."""
    figure, axes = _new_figure('time step')
    kl_t = np.array(table.tolist())[:, 1:]
    colours = axes.pcolormesh(table['samples_seen'], np.arange(1, kl_t.shape[1] + 1), kl_t.T, vmin=0,
                              vmax=np.quantile(kl_t, 0.99), shading='nearest')
    figure.colorbar(colours, label='KL on the validation images,\nnats per image', extend='max')
    return figure


def curves_figure(attention, table):
    """The validation bound over training beside the paper's; `table` is that of curves.csv."""
    figure, axes = _new_figure('validation bound,\nnats per image')
    label = f'{"with" if attention else "without"} attention'
    axes.plot(table['samples_seen'], table['bound'], label=label)
    axes.axhline(_PAPER[attention], color='C0', linestyle='--',
                 label=f'the paper, {label}, test images: {_PAPER[attention]:.2f}')
    axes.set_ylim(min(_PAPER.values()) - 1, min(table['bound'].max() + 1, table['bound'][-1] + 50))
    figure.legend(loc='outside upper center', ncols=2)
    return figure


def _new_figure(ylabel):
    figure = Figure(figsize=(8, 3.5), dpi=100, layout='constrained')
    axes = figure.subplots()
    axes.set(xlabel='training samples', ylabel=ylabel)
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.locator_params(axis='x', nbins=7)
    return figure, axes


def read(run):
    """What `make` shows of a run: (config, four test images, table of curves.csv, table of kl_per_step.csv).

    Raises cli.UserError, also where its model cannot be read.
    """
    _, stored, _ = params.load_run(run)
    bounds = curves.read(os.path.join(run, 'curves.csv'))
    bounds = bounds[bounds['split'] == 'validation']
    kl_t = curves.read(os.path.join(run, 'kl_per_step.csv'))
    if not len(bounds) or not len(kl_t):
        raise cli.UserError(f'{run} has no validation in curves.csv or kl_per_step.csv')
    test = load_of_run(stored, ['test']).splits['test'][:4]
    return stored, stream.evaluation_images(test, stored['arguments'].binarization), bounds, kl_t


def make(run, name, images, kl_t):
    """The model folder and the pictures of one run."""
    folder = os.path.join(FOLDER, name)
    compact_model(run, folder)
    net = params.load_net(folder)
    scale = max(1, _GRID_SIDE // max(net.image_shape))
    grid = paint.frames(paint.paint(net, 0, num_samples=100), scale)
    files.write_whole(f'{folder}_grid.gif', render.gif(grid))
    files.write_whole(f'{folder}_reconstructions.png', render.png(paint.sheet(paint.paint(net, 0, images=images))))
    files.write_whole(f'{folder}_kl.png', plot.png(kl_figure(kl_t)))


def main(argv=None):
    parser = cli.Parser('python -m assets.make', __doc__)
    parser.add_argument('run', metavar='RUN', help='folder of a run')
    parser.add_argument('name', metavar='NAME', help='name of its model')
    args = parser.parse_args(argv)
    if args.name != os.path.basename(args.name) or args.name in ('', '.', '..'):
        parser.error(f'{args.name!r} is not a plain name')
    with cli.one_line(parser), style.context('default'):
        stored, images, bounds, kl_t = read(args.run)  # all, before anything is written
        make(args.run, args.name, images, kl_t)
        if stored['arguments'].dataset == 'mnist':
            figure = curves_figure(stored['arguments'].attention, bounds)
            files.write_whole(os.path.join(FOLDER, 'curves.png'), plot.png(figure))


if __name__ == '__main__':
    cli.start(main)
