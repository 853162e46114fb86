"""What all data sets share: their error, the limit of their size, and the resizing of their images."""
from system import cli

import numpy as np
from PIL import Image

MAX_BYTES = 2 ** 30  # of the images of one file: a small .gz can unpack to more than the memory


class DataError(cli.UserError):
    """The data cannot be used; the message is one line for the user."""


def check_size(source, n, image_shape):
    """Raise DataError if n images of (height, width) are too many bytes, before they are read or drawn."""
    height, width = image_shape
    if n * height * width > MAX_BYTES:
        raise DataError(f'{source}: {n} images of {height}x{width} pixels are more than {MAX_BYTES} bytes')


def resize(images, image_shape):
    """uint8 (n, any height, any width) -> (n, height * width).

    Pillow's bilinear filter averages when it shrinks (no aliasing) and has no negative weights (no ringing).
    """
    height, width = image_shape
    if images.shape[1:] != (height, width):
        source, images = images, np.empty((len(images), height, width), dtype=np.uint8)
        for i, image in enumerate(source):
            images[i] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return images.reshape(-1, height * width)
