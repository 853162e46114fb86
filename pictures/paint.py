"""What a trained network paints: samples and reconstructions, step by step, as GIFs and as a sheet."""
import collections
import os

import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import gluon, nd

from dataset.noise import noise
from pictures import render

CHUNK = 100  # images that the network paints at a time
_SHEET_COLUMNS = 10
SCALE = 4  # screen pixels per image pixel and side

Painting = collections.namedtuple('Painting', 'probabilities write_windows read_windows')
Painting.__doc__ = """One image, step by step.

`probabilities` (num_steps + 1, height * width): the canvases c_0 .. c_T as pixel probabilities; `write_windows` and
`read_windows`, each (num_steps, 5), or None without attention; a sample has no read windows.
"""


def paint(net, seed, contexts, num_samples=None, images=None):
    """Samples (num_samples of them) or reconstructions (of images), one after the other.

    Parameters
    ----------
    net : DRAW
        Initialized on `contexts`, which share the work.
    seed : int
    contexts : list of mxnet.Context
    num_samples : int, optional
        Number of samples from the prior.
    images : numpy.ndarray, optional
        Images to reconstruct instead, shape (n, height * width), values 0 or 1.

    Yields
    ------
    Painting
    """
    purpose, total = ('sample', num_samples) if images is None else ('reconstruction', len(images))
    for first in range(0, total, CHUNK):
        size = min(CHUNK, total - first)
        eps = noise(seed, purpose, first, size, net.num_steps, net.latent_dim)
        parts = _share(eps, contexts, batch_axis=1)
        if images is None:
            outputs = [net.generate(part) + (None,) for part in parts]
        else:
            outputs = [net.reconstruct(x, part) for x, part in zip(_share(images[first:first + size], contexts), parts)]
        for canvases, *windows in outputs:
            windows = [[None] * canvases.shape[1] if w is None else w.asnumpy().swapaxes(0, 1) for w in windows]
            probabilities = render.probabilities(canvases.asnumpy().swapaxes(0, 1))      # (part, T + 1, pixels)
            yield from map(Painting, probabilities, *windows)


def _share(array, contexts, batch_axis=0):
    contexts = contexts[:array.shape[batch_axis]]
    return gluon.utils.split_and_load(nd.array(array), contexts, batch_axis, even_split=False)


def frames(net, painting, scale, boxes=True):
    """The canvases of a Painting as pictures, the write window in red and the read window in green."""
    windows = [(colour, block.filter_size, own) for colour, block, own in (
        (render.READ_COLOUR, net.read, painting.read_windows),
        (render.WRITE_COLOUR, net.write, painting.write_windows)) if boxes and own is not None]
    return render.frames(painting.probabilities, net.image_shape, scale, windows)


def write_gifs(net, paintings, output_dir, prefix, scale, boxes=True):
    """Write <prefix>_0.gif, ..., one frame per canvas; returns how many."""
    number = 0
    for number, painting in enumerate(paintings, start=1):
        render.save_gif(os.path.join(output_dir, f'{prefix}_{number - 1}.gif'), frames(net, painting, scale, boxes))
    return number


def sheet(net, paintings, columns=_SHEET_COLUMNS):
    """A row per painting, `columns` of its time steps from left to right, the last canvas at the end."""
    steps = np.unique(np.linspace(0, net.num_steps, min(columns, net.num_steps + 1)).round().astype(int))
    return render.sheet(np.stack([p.probabilities[steps].reshape((len(steps), *net.image_shape)) for p in paintings]))
