"""Arrays to pictures: images with their attention windows, tables of images, and the bytes of GIF and PNG files.

All pictures share one palette: greys, and the colours of the windows.
"""
import io

import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import nd
from PIL import Image, ImageDraw, ImageFont

import core

_COLOURS = WRITE_COLOUR, READ_COLOUR = (255, 0, 0), (0, 255, 0)
# Few greys keep a GIF small: with all 253 that fit in the palette it is 1.7 times as large.
_GREYS = np.arange(0, 256, 5, dtype=np.uint8)
_EVERY = 3  # a light picture uses every third grey, black and white included
_LINES = 19  # index of the dark grey, 95, between the images of a table
_PALETTE = bytes(_GREYS.repeat(3)) + bytes(sum(_COLOURS, ()))
_MAX_LINE_WIDTH = 2  # image pixels


def window_boxes(windows, filter_size, image_shape):
    """The rectangles spanned by the centres of the outermost filters (Eqns. 19-20 and 22-24) of windows (..., 5).

    Returns (..., 5): left, top, right, bottom and the filters' standard deviation sigma, in image pixels from the
    image's corner, so that the first pixel has its centre at 0.5. A row is nan where its window is not finite.
    """
    rows = np.reshape(windows, (-1, 5))
    mu_x, mu_y, sigma2 = (array.asnumpy() for array in
                          core.filter_centres(nd, nd.array(rows), filter_size, image_shape))
    boxes = np.stack([mu_x[:, 0] - 0.5, mu_y[:, 0] - 0.5, mu_x[:, -1] - 0.5, mu_y[:, -1] - 0.5,
                      np.sqrt(sigma2[:, 0])], axis=1)
    boxes[~np.isfinite(rows).all(axis=1)] = np.nan
    return boxes.reshape(np.shape(windows))


def tile(values, scale, boxes=(), light=False):
    """One enlarged image, values (height, width) in [0, 1], with its attention windows.

    `boxes` are pairs (WRITE_COLOUR or READ_COLOUR, row of `window_boxes`). As in the paper's figures, a line is wide
    where sigma is large: here as wide as sigma, from one screen pixel to two image pixels. `light`, for many small
    images in one GIF, takes a third of the greys, and lines one screen pixel wide.
    """
    every = _EVERY if light else 1
    greys = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (len(_GREYS) - 1) / every) * every
    image = Image.fromarray(greys.astype(np.uint8))
    image.putpalette(_PALETTE)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    for colour, box in boxes:
        if np.isfinite(box).all():
            _draw_box(image, box, scale, colour, 1 if light else _MAX_LINE_WIDTH * scale)
    return image


def _draw_box(image, box, scale, colour, max_line):
    """Draw an outline whose lines are centred on the edges of the box; Pillow clips what lies outside."""
    *edges, sigma = box
    line = int(np.clip(np.rint(sigma * scale), 1, max_line))
    first = np.floor(np.array(edges, dtype=float) * scale - line / 2 + 0.5)  # screen pixel where each line begins
    left, top, right, bottom = np.clip(first, -line, image.size * 2).astype(int).tolist()
    draw = ImageDraw.Draw(image)
    # Four rectangles, because Pillow's outlines spill out of a box that is narrower than its lines.
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
    """The picture in RGB, with a text of at most five letters centred above each of its columns."""
    share = picture.width / len(headings)
    font = ImageFont.load_default(max(8, share / 2.6))  # five letters wide: TensorBoard shows a third of the size
    height = round(1.5 * font.size)
    page = Image.new('RGB', (picture.width, picture.height + height), 'white')
    page.paste(picture, (0, height))
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(headings):
        draw.text((share * (i + 0.5), height / 2), text, 'black', font, anchor='mm')
    return page


def gif(pictures):
    """The bytes of an endless GIF that shows each picture for a tenth of a second, and the last for two seconds.

    The pictures come from `tile` or `table` and have one size. Pillow joins equal neighbours into one frame, which
    lasts as long as they would; the same pictures give the same bytes. Raises OSError if they are too large.
    """
    first, *rest = pictures
    if max(first.size) >= 2 ** 16:
        raise OSError(f'a GIF cannot have {first.width}x{first.height} pixels')
    file = io.BytesIO()
    # A global palette, and a transparent colour for what does not change: half the size.
    first.save(file, 'GIF', save_all=True, append_images=rest, duration=[100] * len(rest) + [2000], loop=0,
               palette=_PALETTE, optimize=True, disposal=1)
    return file.getvalue()


def png(picture):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return file.getvalue()
