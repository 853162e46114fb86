"""The curves of a run as CSV files."""
import os

from system import cli, files

import numpy as np

COLUMNS = ('samples_seen', 'split', 'bound', 'reconstruction', 'kl', 'gradient_norm', 'learning_rate',
           'samples_per_second')


def kl_columns(num_steps):
    """The columns of a kl_per_step.csv."""
    return 'samples_seen', *(f'kl_{t}' for t in range(1, num_steps + 1))


def line(cells):
    """Text and numbers as a line of a CSV file."""
    return ','.join(cell if isinstance(cell, str) else f'{cell:.12g}' for cell in cells) + '\n'


def _lines(path):
    """The lines of a CSV file, its header first, without a last line that a crash cut short."""
    with open(path) as file:
        return [text for text in file if text.endswith('\n')]


def read(path):
    """The points in a CSV file, a structured array of text in the column `split` and of float in all others. Raises
    OSError and cli.UserError."""
    try:
        header, *lines = _lines(path)
        kinds = [(name, 'U10' if name == 'split' else float) for name in header.strip().split(',')]
        return np.array([tuple(text.strip().split(',')) for text in lines], kinds)
    except ValueError as error:
        raise cli.UserError(f'{path} is damaged: {error}') from None


def truncate(path, columns, seen):
    """Keep the points of a CSV file with at most `seen` training samples; create it if it is missing. Raises
    cli.UserError if a line does not begin with a number."""
    try:
        lines = _lines(path)[1:] if os.path.exists(path) else []
        kept = [text for text in lines if float(text.split(',')[0]) <= seen]
    except ValueError as error:
        raise cli.UserError(f'{path} is damaged: {error}') from None
    files.write_whole(path, ''.join([line(columns), *kept]).encode())
