"""What a trained network paints: samples and reconstructions, as GIFs and as a sheet."""
import os

import numpy as np
from mxnet import nd

from dataset.noise import noise
from pictures import render

_CHUNK = 100  # images that the network paints at a time
_SHEET_COLUMNS = 10
SCALE = 4  # screen pixels per image pixel and side


def paint(net, arguments, seed, ctx, num_samples=None, images=None):
    """Samples (num_samples) or reconstructions (images), as a list with one dict per image.

    Parameters
    ----------
    net : DRAW
    arguments : dict
        The run's arguments (config.json).
    seed : int
    ctx : mxnet.Context
    num_samples : int, optional
        Number of samples from the prior.
    images : numpy.ndarray, optional
        Images to reconstruct instead, shape (n, height * width), values 0 or 1.

    Returns
    -------
    list of dict
        `probabilities` (num_steps + 1, height * width), the canvases as pixel probabilities; `write_windows` and
        `read_windows`, each (num_steps, 5) or None.
    """
    paintings = []
    total = num_samples if images is None else len(images)
    for first in range(0, total, _CHUNK):
        size = min(_CHUNK, total - first)
        purpose = 'sample' if images is None else 'reconstruction'
        eps = nd.array(noise(seed, purpose, first, size, arguments), ctx=ctx)
        if images is None:
            outputs = net.generate(eps) + (None,)
        else:
            outputs = net.reconstruct(nd.array(images[first:first + size], ctx=ctx), eps)
        canvases, write_windows, read_windows = (None if a is None else a.asnumpy() for a in outputs)
        for i in range(size):
            paintings.append({'probabilities': render.probabilities(canvases[:, i]),
                              'write_windows': None if write_windows is None else write_windows[:, i],
                              'read_windows': None if read_windows is None else read_windows[:, i]})
    return paintings


def write_gifs(paintings, arguments, output_dir, prefix, scale, boxes=True):
    """Write <prefix>_0.gif, ...: one frame per canvas, the write window in red and the read window in green."""
    image_shape = arguments['input_height'], arguments['input_width']
    for i, painting in enumerate(paintings):
        windows = [(render.READ_COLOUR, arguments['read_size'], painting['read_windows']),
                   (render.WRITE_COLOUR, arguments['write_size'], painting['write_windows'])]
        windows = [window for window in windows if boxes and window[2] is not None]
        frames = render.frames(painting['probabilities'], image_shape, scale, windows)
        render.save_gif(os.path.join(output_dir, f'{prefix}_{i}.gif'), frames)


def sheet(paintings, arguments, columns=_SHEET_COLUMNS):
    """A row per painting, `columns` of its time steps from left to right, the last canvas at the end."""
    num_steps = arguments['num_steps']
    steps = np.unique(np.linspace(0, num_steps, min(columns, num_steps + 1)).round().astype(int))
    shape = len(steps), arguments['input_height'], arguments['input_width']
    return render.sheet(np.stack([p['probabilities'][steps].reshape(shape) for p in paintings]))
