"""The learning curves of a run: CSV files of numbers, and their picture."""
import contextlib
import io
import itertools
import os
import sys

from system import files

import numpy as np

COLUMNS = ('samples_seen', 'split', 'bound', 'reconstruction', 'kl', 'gradient_norm', 'learning_rate',
           'samples_per_second')
_MAX_POINTS = 10 ** 6  # to draw
_PANELS = {'bound': 'Negative variational bound', 'reconstruction': 'Reconstruction', 'kl': 'KL'}
_STYLES = {'train': {'color': '#8fb7de', 'linewidth': 1}, 'validation': {'color': '#b2182b', 'linewidth': 1.5}}


def kl_columns(num_steps):
    """The columns of a kl_per_step.csv."""
    return 'samples_seen', *(f'kl_{t}' for t in range(1, num_steps + 1))


def line(cells):
    """Text and numbers as a line of a CSV file."""
    return ','.join(cell if isinstance(cell, str) else f'{cell:.12g}' for cell in cells) + '\n'


def _points(path, columns):
    """(line, cells) of each point in a CSV file, but for damaged lines; a file with other columns has no points."""
    if os.path.isfile(path):  # a pipe would block
        kinds = [str if name == 'split' else float for name in columns]
        with open(path, errors='replace') as file:
            for text in file if file.readline(2 ** 16) == line(columns) else ():
                cells = text.split(',')
                if text.endswith('\n') and len(cells) == len(columns):  # a crash may tear the last line
                    with contextlib.suppress(ValueError):
                        yield text, tuple(kind(cell) for kind, cell in zip(kinds, cells))


def read(path, columns=COLUMNS):
    """The points in a CSV file, a structured array of text in the column `split` and of float in all others.

    Of a file with more than a million lines, the first million.
    """
    rows = [cells for _, cells in itertools.islice(_points(path, columns), _MAX_POINTS)]
    return np.array(rows, [(name, 'U10' if name == 'split' else float) for name in columns])


def cut(path, columns, seen):
    """Keep the points of a CSV file with at most `seen` training samples; make it where it is missing."""
    kept = [text for text, cells in _points(path, columns) if cells[0] <= seen]
    files.write_whole(path, ''.join([line(columns), *kept]).encode())


def figure(table):
    """Bound, reconstruction and KL in what `read` returns of a run's curves.csv, as a matplotlib.figure.Figure.

    It is made without pyplot, which keeps a global list of figures.
    """
    backend = None if 'matplotlib' in sys.modules else os.environ.pop('MPLBACKEND', None)
    import matplotlib.figure  # takes up to a second, which no run should wait for when it starts
    if backend:  # set after the import, which fails on a Jupyter kernel's where matplotlib-inline is not installed
        os.environ['MPLBACKEND'] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams['backend'] = backend
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
