"""The learning curves of a run: CSV files of numbers, and their picture."""
import io
import os

from system import cli, files

import numpy as np

COLUMNS = ('samples_seen', 'split', 'bound', 'reconstruction', 'kl', 'gradient_norm', 'learning_rate',
           'samples_per_second')
_PANELS = {'bound': 'Negative variational bound', 'reconstruction': 'Reconstruction', 'kl': 'KL'}
_STYLES = {'train': {'color': '#8fb7de', 'linewidth': 1}, 'validation': {'color': '#b2182b', 'linewidth': 1.5}}


def kl_columns(num_steps):
    """The columns of a kl_per_step.csv."""
    return 'samples_seen', *(f'kl_{t}' for t in range(1, num_steps + 1))


def line(cells):
    """Text and numbers as a line of a CSV file."""
    return ','.join(cell if isinstance(cell, str) else f'{cell:.12g}' for cell in cells) + '\n'


def _lines(path):
    """The lines of a CSV file below its header, without a last line that a crash cut short."""
    with open(path) as file:
        return [text for text in file.readlines()[1:] if text.endswith('\n')]


def read(path, columns=COLUMNS):
    """The points in a CSV file, a structured array of text in the column `split` and of float in all others."""
    kinds = [(name, 'U10' if name == 'split' else float) for name in columns]
    return np.array([tuple(text.strip().split(',')) for text in _lines(path)], kinds)


def cut(path, columns, seen):
    """Keep the points of a CSV file with at most `seen` training samples; make it where it is missing. Raises
    cli.UserError where a line does not begin with a number."""
    try:
        kept = [text for text in (_lines(path) if os.path.exists(path) else ()) if float(text.split(',')[0]) <= seen]
    except ValueError as error:
        raise cli.UserError(f'{path} is damaged: {error}') from None
    files.write_whole(path, ''.join([line(columns), *kept]).encode())


def figure(table):
    """Bound, reconstruction and KL in what `read` returns of a run's curves.csv, as a matplotlib.figure.Figure.

    It is made without pyplot, which keeps a global list of figures.
    """
    import matplotlib.figure  # takes up to a second, which no run should wait for when it starts
    picture = matplotlib.figure.Figure(figsize=(12, 3.6), dpi=100, layout='constrained')
    later = table['samples_seen'] >= table['samples_seen'].max(initial=0) / 10
    for axes, (name, title) in zip(picture.subplots(1, len(_PANELS)), _PANELS.items()):
        for split, style in _STYLES.items():
            points = table[table['split'] == split]
            marker = '.' if len(points) == 1 else None
            axes.plot(points['samples_seen'], points[name], label=split, marker=marker, **style)
        axes.set(title=title, xlabel='training samples', ylabel='nats per image', xlim=(0, None))
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.locator_params(axis='x', nbins=5)
        axes.grid(alpha=0.3)
        axes.legend()
        shown = table[name][later & np.isfinite(table[name])]
        if len(shown):  # the first tenth, hundreds of nats above the rest, would flatten it
            margin = 0.05 * np.ptp(shown) or 1
            axes.set_ylim(shown.min() - margin, shown.max() + margin)
    return picture


def png(table):
    """The figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure(table).savefig(file, format='png')
    return file.getvalue()
