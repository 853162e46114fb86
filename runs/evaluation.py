"""What evaluate.py keeps in a run's folder: its results, and how far it came where it was stopped."""
import contextlib
import hashlib
import json
import os

from system import cli, files

import numpy as np

from runs import storage

_MAX_BOUND = 1e100  # nats: the sum of their squares is still finite


def _are_bounds(values):
    return bool((np.abs(values) < _MAX_BOUND).all())  # not so for nan


class Evaluation:
    """The evaluation of a model with some settings: a file for each choice of them.

    Parameters
    ----------
    run_dir : str
    net : core.DRAW
        With the parameters that are evaluated; their file may be another by now.
    images : numpy.ndarray
        (n, height * width), binarized.
    settings : dict
        What else decides the result, and the number of images, of what JSON can hold.
    """

    def __init__(self, run_dir, net, images, settings):
        self._settings = {**settings, 'images_sha256': hashlib.sha256(images).hexdigest(),
                          'parameters_sha256': storage.digest(net)}
        name = '-'.join(f'{key}_{value}' for key, value in settings.items() if value is not None)
        self._path = os.path.join(run_dir, 'evaluations', f'{name}.json')

    def write(self, result):
        """Keep a result (a dict); returns the line that says where."""
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            files.write_json(self._path, {**result, **self._settings})
        except OSError as error:
            return f'Not kept: {cli.reason(error)}'
        with contextlib.suppress(FileNotFoundError):
            os.remove(f'{self._path}.part')
        return f'Kept in {self._path}'

    def write_part(self, done):
        """Keep the bounds of the images so far, a dict of arrays; returns the line that says where."""
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            part = {'settings': self._settings, 'bounds': {name: list(values) for name, values in done.items()}}
            files.write_whole(f'{self._path}.part', json.dumps(part).encode())
        except OSError as error:
            return f'Not kept: {cli.reason(error)}'
        return 'The same command with --resume goes on.'

    def read_part(self):
        """What `write_part` kept, or {} where there is nothing. Raises storage.RunError."""
        path = f'{self._path}.part'
        try:
            part = files.read_json(path, 2 ** 20 + 100 * self._settings['images'])
            done = {name: np.array(part['bounds'][name], np.float64)
                    for name in ('reconstruction', 'kl', 'importance_weighted')}
            if len({values.shape for values in done.values()}) > 1 or done['kl'].ndim != 1:
                raise ValueError('its lists differ in length')
            if len(done['kl']) > self._settings['images'] or not all(map(_are_bounds, done.values())):
                raise ValueError('it holds what are no bounds of these images')
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise storage.RunError(f'{path} is damaged: {error}') from None
        if part.get('settings') != self._settings:
            raise storage.RunError(f'{path} is of other parameters or images than those that are there now: without '
                                   '--resume the evaluation starts anew')
        return done
