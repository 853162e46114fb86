"""Pictures: canvases as GIFs with their attention windows, sheets of many images as PNGs.

Letters, equation numbers and the five numbers of a window are those of core.py. An image is a row of
height * width numbers, row by row.
"""
import io
import math

from system import files

import numpy as np
from mxnet import nd
from PIL import GifImagePlugin, Image

import core

WRITE_COLOUR = (255, 0, 0)
READ_COLOUR = (0, 255, 0)

# A GIF's palette: few greys, because they make the file small (all 253 possible ones: 1.7 times as large).
_GREYS = np.arange(0, 256, 5, dtype=np.uint8)
_COLOURS = (WRITE_COLOUR, READ_COLOUR)
_UNCHANGED = 255  # transparent: the pixel stays as it was in the frame before
_PALETTE = (bytes(_GREYS.repeat(3)) + bytes(sum(_COLOURS, ()))).ljust(768, b'\0')

_MAX_LINE_WIDTH = 2  # image pixels
_SEPARATOR, _SEPARATOR_GREY = 2, 96


def probabilities(canvases):
    """Probability that a pixel is on: the sigmoid of logits, as a float32 array of the same shape."""
    logits = np.asarray(canvases, dtype=np.float32)
    small = np.exp(-np.abs(logits))  # never above 1, so that nothing overflows
    return np.where(logits >= 0, 1, small) / (1 + small)


def window_boxes(windows, filter_size, image_shape):
    """The rectangles that the centres of the outermost filters of windows span.

    Coordinates are continuous: pixel a = 1, 2, ... covers [a - 1, a], so its centre is a - 0.5.

    Parameters
    ----------
    windows : numpy.ndarray
        (n, 5), the five numbers of Eqn. 21.
    filter_size : int
        N. With N = 1 a box is a point.
    image_shape : tuple of int
        (height, width).

    Returns
    -------
    (n, 5) : left, top, right, bottom and the filters' standard deviation sigma, in image pixels; nan where a number
        of the window is not finite
    """
    mu_x, mu_y, sigma2 = (array.asnumpy() for array in
                          core.filter_centres(nd, nd.array(windows), filter_size, image_shape))
    boxes = np.stack([mu_x[:, 0] - 0.5, mu_y[:, 0] - 0.5, mu_x[:, -1] - 0.5, mu_y[:, -1] - 0.5,
                      np.sqrt(sigma2[:, 0])], axis=1)
    boxes[~np.isfinite(windows).all(axis=1)] = np.nan
    return boxes


def _levels(values, num_levels):
    """Values in [0, 1] as whole numbers from 0 to num_levels - 1; nan is black."""
    return np.rint(np.clip(np.nan_to_num(values), 0, 1) * (num_levels - 1)).astype(np.uint8)


def _repeat(pixels, scale):
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _draw_box(pixels, box, scale, colour):
    """Draw an outline on enlarged pixels, every line centred on the box's edge; clip what lies outside."""
    *edges, sigma = box
    line = int(min(max(round(sigma * scale), 1), _MAX_LINE_WIDTH * scale))

    def span(first, last, size):
        return slice(max(first, 0), min(max(last + line, 0), size))

    def start(edge, size):
        return math.floor(min(max(edge * scale - line / 2 + 0.5, -line), size))

    height, width = pixels.shape
    left, top, right, bottom = (start(edge, size) for edge, size in zip(edges, (width, height) * 2))
    for first in (top, bottom):
        pixels[span(first, first, height), span(left, right, width)] = colour
    for first in (left, right):
        pixels[span(top, bottom, height), span(first, first, width)] = colour


def frames(probabilities, image_shape, scale, boxes=()):
    """The canvases of one image as pictures, with the windows that led to them.

    The line width is the filters' sigma, as in the paper's figures, but at least one screen pixel and at most
    two image pixels. A window with a number that is not finite is left out.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Shape (num_steps + 1, height * width), values in [0, 1]; row 0, the initial canvas, gets no box.
    image_shape : tuple of int
        (height, width).
    scale : int
        Screen pixels per image pixel and side.
    boxes : list of tuple, optional
        (colour, filter_size, windows): WRITE_COLOUR or READ_COLOUR, N, and an array (num_steps, 5) whose row
        t - 1 is drawn on canvas t. Later ones lie on top.

    Returns
    -------
    list of PIL.Image.Image
        All with the same palette, (width * scale, height * scale) in size.
    """
    images = []
    boxes = [(len(_GREYS) + _COLOURS.index(colour), window_boxes(windows, filter_size, image_shape))
             for colour, filter_size, windows in boxes]
    for t, row in enumerate(_levels(probabilities, len(_GREYS))):
        pixels = _repeat(row.reshape(image_shape), scale)
        for colour, corners in boxes if t else ():
            if np.isfinite(corners[t - 1]).all():
                _draw_box(pixels, corners[t - 1].tolist(), scale, colour)
        image = Image.fromarray(pixels)
        image.putpalette(_PALETTE)
        images.append(image)
    return images


def sheet(rows):
    """Tile images (num_rows, num_columns, height, width), values in [0, 1], into one grey uint8 array.

    Between neighbours stands a line of two dark grey pixels; there is none around the sheet.
    """
    margin = ((0, 0), (0, 0), (0, _SEPARATOR), (0, _SEPARATOR))
    tiles = np.pad(_levels(rows, 256), margin, constant_values=_SEPARATOR_GREY)
    num_rows, num_columns, height, width = tiles.shape
    grey = tiles.transpose(0, 2, 1, 3).reshape(num_rows * height, num_columns * width)
    return grey[:-_SEPARATOR, :-_SEPARATOR]


def enlarge(grey, scale):
    """A grey uint8 array (height, width) as a picture with `scale` screen pixels per pixel and side."""
    return Image.fromarray(_repeat(grey, scale))


def _changes(pixels, previous):
    """The smallest rectangle around the pixels that changed, the others in it transparent; and its corner."""
    changed = np.ones(pixels.shape, bool) if previous is None else pixels != previous
    x, y = (changed.any(axis=axis).nonzero()[0] if changed.any() else np.zeros(1, int) for axis in (0, 1))
    rectangle = slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)
    image = Image.fromarray(np.where(changed, pixels, np.uint8(_UNCHANGED))[rectangle])
    image.putpalette(_PALETTE)
    return image, (int(x[0]), int(y[0]))


def save_gif(path, images, duration=100, hold=2000):
    """Write an endless GIF with exactly one frame per picture; the same pictures give the same bytes.

    Pillow's `save` would merge equal neighbours into one frame, so its encoder is called frame by frame.

    Parameters
    ----------
    path : str
    images : list of PIL.Image.Image
        From `frames`.
    duration, hold : int, optional
        Milliseconds that a frame, and the last frame, stands, in steps of 10.
    """
    arrays = [np.asarray(image) for image in images]
    delays = [duration] * (len(arrays) - 1) + [hold]
    blocks = GifImagePlugin.getheader(images[0], info={'loop': 0})[0]
    for pixels, previous, delay in zip(arrays, [None] + arrays[:-1], delays):
        image, corner = _changes(pixels, previous)
        blocks += GifImagePlugin.getdata(image, offset=corner, duration=delay, disposal=1, transparency=_UNCHANGED)
    files.write_whole(path, b''.join(blocks) + b';')


def save_png(path, image):
    """Write one picture as a PNG."""
    file = io.BytesIO()
    image.save(file, 'PNG')
    files.write_whole(path, file.getvalue())
