"""What a trained network paints: samples and reconstructions, step by step, as GIFs and as one picture of many."""
import collections
import os

import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import gluon, nd

from dataset.noise import noise
from pictures import render

CHUNK = 100  # images that the network paints at a time
_COLUMNS = 10  # images in a row of a grid, or time steps in a row of a sheet
SCALE, GRID_SCALE = 4, 2  # screen pixels per image pixel and side

Painting = collections.namedtuple('Painting', 'probabilities write_windows read_windows original')
Painting.__doc__ = """One image, step by step.

`probabilities` (num_steps + 1, height * width): the canvases c_0 .. c_T as pixel probabilities, nan where a canvas is
not finite; `write_windows` and `read_windows`, each (num_steps, 5), or None without attention; `original`
(height * width,): the image that this is a reconstruction of. A sample has no read windows and no original: None.
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
        eps = _share(noise(seed, purpose, first, size, net.num_steps, net.latent_dim), contexts, batch_axis=1)
        if images is None:
            originals = [None] * size
            outputs = [net.generate(part) + (None,) for part in eps]
        else:
            originals = images[first:first + size]
            outputs = [net.reconstruct(x, part) for x, part in zip(_share(originals, contexts), eps)]
        originals = iter(originals)  # every part takes its own from it
        for canvases, *windows in outputs:
            windows = [[None] * canvases.shape[1] if w is None else w.asnumpy().swapaxes(0, 1) for w in windows]
            probabilities = render.probabilities(canvases.asnumpy().swapaxes(0, 1))      # (part, T + 1, pixels)
            yield from map(Painting, probabilities, *windows, originals)


def _share(array, contexts, batch_axis=0):
    contexts = contexts[:array.shape[batch_axis]]
    return gluon.utils.split_and_load(nd.array(array), contexts, batch_axis, even_split=False)


def _canvases(net, painting, steps, scale, boxes, light=False):
    """The canvases of these steps as pictures; from step 1 on with the write window in red, the read one in green."""
    windows = [(colour, render.window_boxes(own, block.filter_size, net.image_shape)) for colour, block, own in (
        (render.READ_COLOUR, net.read, painting.read_windows),
        (render.WRITE_COLOUR, net.write, painting.write_windows)) if boxes and own is not None]
    for t in steps:
        drawn = [(colour, corners[t - 1]) for colour, corners in windows if t > 0]
        yield render.tile(painting.probabilities[t], net.image_shape, scale, drawn, light)


def _beside_original(net, painting, canvas, scale):
    """A canvas as it is, or that of a reconstruction with the original at its right."""
    if painting.original is None:
        return canvas
    return render.table([canvas, render.tile(painting.original, net.image_shape, scale)], columns=2, gap=scale)


def frames(net, painting, scale, boxes=True):
    """The frames of one painting's GIF.

    Parameters
    ----------
    net : DRAW
    painting : Painting
    scale : int
        Screen pixels per image pixel and side.
    boxes : bool, optional
        Draw the attention windows: read in green, write in red.

    Yields
    ------
    PIL.Image.Image
        The canvases c_0 .. c_T; those of a reconstruction have the original at their right.
    """
    for canvas in _canvases(net, painting, range(net.num_steps + 1), scale, boxes):
        yield _beside_original(net, painting, canvas, scale)


def write_gifs(net, paintings, output_dir, prefix, scale, boxes=True):
    """Write <prefix>_0.gif, ..., one frame per canvas, as the paintings come; returns how many."""
    number = 0
    for number, painting in enumerate(paintings, start=1):
        render.save_gif(os.path.join(output_dir, f'{prefix}_{number - 1}.gif'), frames(net, painting, scale, boxes))
    return number


def grid(net, paintings, scale=GRID_SCALE, boxes=True):
    """The frames of one GIF of many paintings: rows of ten samples, or of five reconstructions beside their originals.

    Parameters
    ----------
    net : DRAW
    paintings : iterable of Painting
        All of them are kept in memory.
    scale, boxes
        As `frames`; the lines of windows are one screen pixel wide.

    Yields
    ------
    PIL.Image.Image
        The canvases c_0 .. c_T, and c_T again without windows, which would hide what has been painted.
    """
    paintings = list(paintings)
    columns, gap = (_COLUMNS, scale) if paintings[0].original is None else (_COLUMNS // 2, 3 * scale)
    steps = range(net.num_steps + 1)
    canvases = [_canvases(net, painting, steps, scale, boxes, light=True) for painting in paintings]
    finished = [_canvases(net, painting, [net.num_steps], scale, boxes=False, light=True) for painting in paintings]
    for row in (*zip(*canvases), *zip(*finished)):
        tiles = [_beside_original(net, painting, canvas, scale) for painting, canvas in zip(paintings, row)]
        yield render.table(tiles, min(columns, len(tiles)), gap)


def sheet(net, paintings, scale=SCALE, boxes=True):
    """One picture of many paintings: a row for each, with ten of its steps and, of a reconstruction, the original.

    Parameters
    ----------
    net : DRAW
    paintings : iterable of Painting
    scale, boxes
        As `frames`.

    Returns
    -------
    PIL.Image.Image
        RGB, with the number of the step above each column. The first step and the last are always there.
    """
    steps = np.unique(np.linspace(1, net.num_steps, _COLUMNS).round().astype(int)).tolist()
    paintings, tiles = list(paintings), []
    for painting in paintings:
        tiles += _canvases(net, painting, steps, scale, boxes)
        if painting.original is not None:
            tiles.append(render.tile(painting.original, net.image_shape, scale))
    headings = [*map(str, steps)] + ['original'] * (paintings[0].original is not None)
    return render.with_headings(render.table(tiles, len(headings), gap=scale), headings)
