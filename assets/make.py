"""Make the README's pictures, and compact model folders, from runs.

    python -m assets.make RUN_DIR NAME [RUN_DIR NAME ...]

Writes beside this file, for each model, NAME/ (config.json and best.safetensors in half precision, which sample.py and
evaluate.py take), and of that very model NAME_grid.gif (the first hundred samples of seed 0), NAME_0.gif ...
NAME_9.gif (the first ten of them), NAME_reconstructions.png (the first four test images) and NAME_kl.png (the KL of
every time step over training); and of all runs together curves.png (the validation bound over training). Runs that
went on from one another with --init have one NAME: the last is the model, and the curve is that of all.
"""
import io
import os
import shlex

from system import cli, files

import mxnet as mx
import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from dataset import stream
from pictures import paint, render
from runs import arguments, log, storage

FOLDER = os.path.dirname(os.path.abspath(__file__))
_NUM_GIFS, _NUM_SAMPLES, _NUM_IMAGES = 10, 100, 4
_PAPER = {True: 80.97, False: 87.40}  # bound on the test images in nats, with attention and without


def compact_model(run_dir, folder):
    """The run's best parameters in half precision, with its config.json."""
    net, config, _ = storage.load_net(run_dir, [mx.cpu()])
    os.makedirs(folder, exist_ok=True)
    storage.save_params(folder, 'best', net, dtype='float16')
    storage.write_config(folder, without_paths(config))


def without_paths(config):
    """The same with the default folders: where data and runs were on one machine is nobody else's."""
    defaults = arguments.parse_args(cli.Parser(), [])
    folders = {'data_dir': defaults.data_dir, 'logdir': defaults.logdir, 'run': 'RUN_DIR', 'init': 'RUN_DIR'}

    def walk(value, key=None):
        if isinstance(value, dict):
            return {name: walk(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        if key == 'command':
            return _without_folders(value)
        return folders.get(key, value) if value else value  # no --init stays None

    return walk(config)


def _without_folders(command):
    words = [part for word in shlex.split(command)
             for part in (word.split('=', 1) if word.startswith('--') else [word])]
    for flag in ('--data_dir', '--logdir'):
        if flag in words:
            at = words.index(flag)
            del words[at:at + 2]
    for flag in ('--init', '--resume'):
        if flag in words:
            words[words.index(flag) + 1] = 'RUN_DIR'
    return shlex.join(words)


def reconstructions(net, images):
    """Rows of canvases with their windows, and the original."""
    return paint.sheet(net, paint.paint(net, 0, [mx.cpu()], images=images))


def kl_figure(seen, table):
    """The KL of each time step over training, as colours."""
    figure, axes = _new_figure('time step')
    steps = np.arange(1, table.shape[1] + 1)
    colours = axes.pcolormesh(seen, steps, table.T, vmin=0, vmax=np.quantile(table, 0.99), shading='nearest')
    figure.colorbar(colours, label='KL on the validation images,\nnats per image', extend='max')
    return figure


def samples_before(config):
    """Training samples that the model had seen when a run began with it (--init)."""
    init = config.get('init')
    return init.get('samples_seen', 0) + samples_before(init) if init else 0


def validation_curve(run_dirs):
    """The validation bound of a model over all its runs: (with attention?, array (n, 2) of samples and nats).

    Raises storage.RunError for a run without a validation.
    """
    bounds = []
    for run_dir in run_dirs:
        config, validation = storage.read_config(run_dir), log.read_scalars(run_dir)['validation']
        if 'bound' not in validation:
            raise storage.RunError(f'{run_dir} has no validation in its event files')
        bounds.append(validation['bound'] + [samples_before(config), 0])
    return config['arguments']['attention'], np.concatenate(bounds)


def curves_figure(curves):
    """The validation bounds of models, a list of what `validation_curve` returns, and the paper's bounds."""
    figure, axes = _new_figure('bound on the validation images,\nnats per image')
    for attention, bound in curves:
        label, colour = f'{"with" if attention else "without"} attention', 'C0' if attention else 'C1'
        axes.plot(*bound.T, color=colour, label=label)
        axes.axhline(_PAPER[attention], color=colour, linestyle='--',
                     label=f'the paper, {label}, test images: {_PAPER[attention]:.2f}')
    ends, highest = [bound[-1, 1] for _, bound in curves], max(bound[:, 1].max() for _, bound in curves)
    cut = max(*ends, *_PAPER.values()) + 50  # the start of a model's first training is far above all that comes later
    axes.set(ylim=(min(_PAPER.values()) - 5, min(cut, highest + 5)))
    figure.legend(loc='outside upper center', ncols=2)
    return figure


def _new_figure(ylabel):
    figure = Figure(figsize=(8, 3.5), dpi=100, layout='constrained')
    axes = figure.subplots()
    axes.set(xlabel='training samples', ylabel=ylabel)
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.locator_params(axis='x', nbins=7)
    return figure, axes


def _save(name, figure):
    file = io.BytesIO()
    figure.savefig(file, format='png')
    files.write_whole(os.path.join(FOLDER, name), file.getvalue())


def read(run_dir):
    """What `make` shows of a run: test images, and the KL of every time step with the training samples seen.

    Raises cli.UserError, also where its model cannot be read.
    """
    _, config, _ = storage.load_net(run_dir, [mx.cpu()])
    seen, kl_t = log.read_kl_per_step(run_dir)
    if not len(seen):
        raise storage.RunError(f'{run_dir} has no KL per time step in its event files')
    return stream.images_of(config['arguments'], 'test', _NUM_IMAGES), seen + samples_before(config), kl_t


def make(run_dir, name, images, seen, kl_t):
    """The model folder and the pictures of one run, of which `read` has read the rest."""
    folder = os.path.join(FOLDER, name)
    compact_model(run_dir, folder)
    net, _, _ = storage.load_net(folder, [mx.cpu()])
    render.save_gif(f'{folder}_grid.gif', paint.grid(net, paint.paint(net, 0, [mx.cpu()], num_samples=_NUM_SAMPLES)))
    # Ten at a time, as sample.py does: on some processors the last bits depend on how many are painted together.
    samples = paint.paint(net, 0, [mx.cpu()], num_samples=_NUM_GIFS)
    paint.write_gifs(net, samples, output_dir=FOLDER, prefix=name, scale=paint.SCALE)
    render.save_png(f'{folder}_reconstructions.png', reconstructions(net, images))
    _save(f'{name}_kl.png', kl_figure(seen, kl_t))


def main(argv=None):
    parser = cli.Parser(prog='python -m assets.make', doc=__doc__)
    parser.add_argument('pairs', nargs='+', metavar='RUN_DIR NAME',
        help='folder of a run, and the name of its model; runs that went on from one another have one name')
    pairs = parser.parse_args(argv).pairs
    if len(pairs) % 2:
        parser.error(f'{pairs[-1]!r} has no NAME')
    runs = {}
    for run_dir, name in zip(pairs[::2], pairs[1::2]):
        if name != os.path.basename(name) or name in ('', '.', '..'):
            parser.error(f'{name!r} is not a plain name')
        runs.setdefault(name, []).append(run_dir)
    with cli.one_line(parser), style.context('default'):
        curves = curves_figure([validation_curve(run_dirs) for run_dirs in runs.values()])
        found = {name: read(run_dirs[-1]) for name, run_dirs in runs.items()}  # all, before anything is written
        for name, run_dirs in runs.items():
            make(run_dirs[-1], name, *found[name])
        _save('curves.png', curves)


if __name__ == '__main__':
    cli.start(main)
