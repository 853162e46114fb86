"""Arrays to pictures: images with their attention windows, tables of them, and GIF and PNG files.

An image is a row of height * width numbers, row by row. All pictures have one palette: greys, and the colours of the
windows.
"""
import io
import itertools

from system import files

import numpy as np
from mxnet import nd
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

import core

WRITE_COLOUR = (255, 0, 0)
READ_COLOUR = (0, 255, 0)

# Few greys, because they make a GIF small (all 253 possible ones: 1.7 times as large).
_GREYS = np.arange(0, 256, 5, dtype=np.uint8)
_EVERY = 3  # of them in a light picture: a third; their number less one, 51, is a multiple of it
_COLOURS = (WRITE_COLOUR, READ_COLOUR)
_LINES = 19  # the dark grey, 95, of the lines between the images of a table
_UNCHANGED = 255  # transparent: the pixel stays as it was in the frame before
_PALETTE = (bytes(_GREYS.repeat(3)) + bytes(sum(_COLOURS, ()))).ljust(768, b'\0')

_MAX_LINE_WIDTH = 2  # image pixels


def probabilities(canvases):
    """Probability that a pixel is on: the sigmoid of logits, float32 and of their shape; nan for inf and nan."""
    logits = np.asarray(canvases, dtype=np.float32)
    small = np.exp(-np.abs(logits))  # never above 1, so that nothing overflows
    return np.where(np.isfinite(logits), np.where(logits >= 0, 1, small) / (1 + small), np.float32(np.nan))


def window_boxes(windows, filter_size, image_shape):
    """The rectangles that the centres of the outermost filters of windows span.

    Coordinates are continuous: pixel a = 1, 2, ... covers [a - 1, a], so its centre is a - 0.5.

    Parameters
    ----------
    windows : numpy.ndarray
        (n, 5), the five numbers of Eqn. 21 in the order of core.py.
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


def tile(values, image_shape, scale, boxes=(), light=False):
    """One image, enlarged, with attention windows on it.

    The line of a window is as wide as its filters' sigma, as in the paper's figures, but at least one screen pixel and
    at most two image pixels.

    Parameters
    ----------
    values : numpy.ndarray
        (height * width,), in [0, 1]; nan is black.
    image_shape : tuple of int
        (height, width).
    scale : int
        Screen pixels per image pixel and side.
    boxes : list of tuple, optional
        (colour, box): WRITE_COLOUR or READ_COLOUR, and a row of `window_boxes`; later ones lie on top. One that is not
        finite is left out.
    light : bool, optional
        With a third of the greys and all lines one screen pixel wide: for many small images in one GIF.

    Returns
    -------
    PIL.Image.Image, (width * scale, height * scale) in size
    """
    every = _EVERY if light else 1
    greys = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (len(_GREYS) - 1) / every) * every
    image = Image.fromarray(greys.astype(np.uint8).reshape(image_shape))
    image.putpalette(_PALETTE)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    for colour, box in boxes:
        if np.isfinite(box).all():
            _draw_box(image, box, scale, colour, 1 if light else _MAX_LINE_WIDTH * scale)
    return image


def _draw_box(image, box, scale, colour, max_line):
    """Draw an outline, every line centred on the box's edge; what lies outside is not drawn."""
    *edges, sigma = box
    line = int(np.clip(np.rint(sigma * scale), 1, max_line))
    first = np.floor(np.array(edges, dtype=float) * scale - line / 2 + 0.5)  # screen pixel of each of the four lines
    left, top, right, bottom = np.clip(first, -line, image.size * 2).astype(int).tolist()
    draw = ImageDraw.Draw(image)
    # Pillow's outlines leave a box that is smaller than its lines, so each line is drawn as a rectangle.
    for x0, y0, x1, y1 in ((left, top, right, top), (left, bottom, right, bottom),
                           (left, top, left, bottom), (right, top, right, bottom)):
        draw.rectangle((x0, y0, x1 + line - 1, y1 + line - 1), fill=len(_GREYS) + _COLOURS.index(colour))


def table(tiles, columns, gap):
    """Pictures of one size in rows of `columns`, with dark grey lines `gap` screen pixels wide between them."""
    width, height = tiles[0].width + gap, tiles[0].height + gap
    picture = Image.new('P', (columns * width - gap, -(-len(tiles) // columns) * height - gap), _LINES)
    picture.putpalette(_PALETTE)
    for i, image in enumerate(tiles):
        picture.paste(image, (i % columns * width, i // columns * height))
    return picture


def with_headings(picture, headings):
    """The picture in RGB with texts above it, each centred above its share of the width."""
    share = picture.width / len(headings)
    font = ImageFont.load_default(max(8, share / 3.5))  # large, as TensorBoard shows pictures at a third of their size
    height = round(1.5 * font.size)
    page = Image.new('RGB', (picture.width, picture.height + height), 'white')
    page.paste(picture, (0, height))
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(headings):
        draw.text((share * (i + 0.5), height / 2), text, 'black', font, anchor='mm')
    return page


def _changes(pixels, previous):
    """The smallest rectangle around the pixels that changed, the others in it transparent; and its corner."""
    changed = np.ones(pixels.shape, bool) if previous is None else pixels != previous
    x, y = (changed.any(axis=axis).nonzero()[0] if changed.any() else np.zeros(1, int) for axis in (0, 1))
    rectangle = slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)
    image = Image.fromarray(np.where(changed, pixels, np.uint8(_UNCHANGED))[rectangle])
    image.putpalette(_PALETTE)
    return image, (int(x[0]), int(y[0]))


def save_gif(path, pictures, duration=100, hold=2000):
    """Write an endless GIF with exactly one frame per picture; the same pictures give the same bytes.

    Pillow's `save` would merge equal neighbours into one frame, so its encoder is called frame by frame.

    Parameters
    ----------
    path : str
    pictures : iterable of PIL.Image.Image
        Of one size, from `tile` or `table`. Only two at a time are in memory.
    duration, hold : int, optional
        Milliseconds that a frame, and the last frame, stands, in steps of 10.
    """
    blocks, previous = [], None
    pictures = itertools.chain(pictures, [None])
    picture = next(pictures)
    blocks += GifImagePlugin.getheader(picture, info={'loop': 0})[0]
    for following in pictures:
        pixels = np.asarray(picture)
        image, corner = _changes(pixels, previous)
        blocks += GifImagePlugin.getdata(image, offset=corner, duration=hold if following is None else duration,
                                         disposal=1, transparency=_UNCHANGED)
        picture, previous = following, pixels
    files.write_whole(path, b''.join(blocks) + b';')


def png(picture):
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return file.getvalue()


def save_png(path, picture):
    """Write one picture as a PNG."""
    files.write_whole(path, png(picture))
