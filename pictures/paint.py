"""Samples and reconstructions of a trained network, step by step, as GIFs and as pictures of many images."""
import collections
import math
import os

from system import files

import numpy as np
from mxnet import nd

from dataset.noise import noise
from pictures import render

SCALE, GRID_SCALE = 4, 2  # screen pixels per side of an image pixel: usual, and for many images in a GIF
_COLUMNS = 10  # images in a row of a grid, or time steps in a row of a sheet
_CHUNK, _CHUNK_PIXELS = 100, 2 ** 24  # images that the network paints together, and the pixels of all their canvases

Painting = collections.namedtuple('Painting', 'probabilities boxes input')
Painting.__doc__ = """One image, step by step.

`probabilities` (num_steps + 1, height, width): c_0 .. c_T as pixel probabilities.
`boxes`: (colour, box of each step (num_steps, 5)) of the read windows (reconstructions only) and of the write windows;
empty without attention. `input` (height, width): the reconstructed image, None for a sample.
"""


def paint(net, seed, num_samples=None, images=None):
    """Yield the Paintings of samples from the prior, or of reconstructions of binary images, (n, height * width).

    A painting depends only on its own number and on the seed of the noise, except for the last bits.
    """
    ctx, shape = net.h_enc_0.list_ctx()[0], net.image_shape
    purpose, total = ('sample', num_samples) if images is None else ('reconstruction', len(images))
    chunk = max(1, min(_CHUNK, _CHUNK_PIXELS // (net.num_steps * math.prod(shape))))
    for first in range(0, total, chunk):
        size = min(chunk, total - first)
        eps = nd.array(noise(seed, purpose, first, size, net.num_steps, net.latent_dim), ctx)
        if images is None:
            (canvases, write), read, inputs = net.generate(eps), None, [None] * size
        else:
            x = images[first:first + size]
            (canvases, write, read), inputs = net.reconstruct(nd.array(x, ctx), eps), x.reshape(size, *shape)
        probabilities = nd.sigmoid(canvases).asnumpy().reshape(-1, size, *shape)
        boxes = [(colour, render.window_boxes(windows.asnumpy(), block.filter_size, shape))
                 for colour, block, windows in ((render.READ_COLOUR, net.read, read),
                                                (render.WRITE_COLOUR, net.write, write)) if windows is not None]
        for i, image in enumerate(inputs):
            yield Painting(probabilities[:, i], [(colour, own[:, i]) for colour, own in boxes], image)


def _canvas(painting, t, scale, boxes, light=False):
    """The canvas c_t as a picture, with the windows of step t."""
    drawn = [(colour, own[t - 1]) for colour, own in painting.boxes if boxes and t > 0]
    return render.tile(painting.probabilities[t], scale, drawn, light)


def _grid(paintings, t, scale, boxes, light=False):
    """All canvases c_t, each with its input to the right: rows of ten images, or a square of more than a hundred."""
    tiles, images = [], 1
    for painting in paintings:
        pair = [_canvas(painting, t, scale, boxes, light)]
        if painting.input is not None:
            pair.append(render.tile(painting.input, scale))
        images = len(pair)
        tiles.append(render.table(pair, images, gap=scale))
    columns = max(_COLUMNS // images, math.ceil(math.sqrt(len(tiles) / images)))
    return render.table(tiles, min(columns, len(tiles)), gap=scale if images == 1 else 3 * scale)


def frames(paintings, scale, boxes=True):
    """Yield the frames of a GIF of one painting or of many: the canvases c_0 .. c_T, with boxes for the attention
    windows, green where a step reads and red where it writes; and c_T again without boxes, which would hide it."""
    paintings = list(paintings)
    last = len(paintings[0].probabilities) - 1
    for t, drawn in [*((t, boxes) for t in range(last + 1)), (last, False)]:
        yield _grid(paintings, t, scale, drawn, light=len(paintings) > 1)


def write_gifs(paintings, folder, prefix, scale=SCALE, boxes=True):
    """Write <prefix>_0.gif, ... to a folder, each as soon as it is painted; returns their paths. Raises OSError."""
    paths = []
    for painting in paintings:
        paths.append(os.path.join(folder, f'{prefix}_{len(paths)}.gif'))
        files.write_whole(paths[-1], render.gif(frames([painting], scale, boxes)))
    return paths


def finished(paintings, scale):
    """One picture of the final canvases c_T, without windows. The paintings may be a generator: none is kept."""
    return _grid(paintings, -1, scale, boxes=False)


def sheet(paintings, scale=SCALE, boxes=True):
    """One picture of how images are painted, in RGB: a row for each, with ten steps from 1 to T and the input, if any.

    The number of the step stands above each column; the parameters are those of `frames`.
    """
    tiles, headings = [], []
    for painting in paintings:
        steps = np.unique(np.linspace(1, len(painting.probabilities) - 1, _COLUMNS).round().astype(int)).tolist()
        tiles += [_canvas(painting, t, scale, boxes) for t in steps]
        headings = [*map(str, steps)]
        if painting.input is not None:
            tiles.append(render.tile(painting.input, scale))
            headings.append('input')
    return render.with_headings(render.table(tiles, len(headings), gap=scale), headings)
