"""What all data sets share: their error, the limit of their size, resizing and checksums."""
import hashlib
import math

from system import cli

import numpy as np
from PIL import Image

MAX_BYTES = 2 ** 30  # of all images of a split


class DataError(cli.UserError):
    """The data cannot be used; the message is one line for the user."""


def check_size(source, shape):
    """Raise DataError if uint8 images of this shape take more than MAX_BYTES, before they are resized."""
    if math.prod(shape) > MAX_BYTES:
        raise DataError(f'{source}: an array of {"x".join(map(str, shape))} takes more than {MAX_BYTES:,} bytes')


def resize(images, image_shape):
    """uint8 (n, any height, any width) -> (n, height * width).

    Pillow's bilinear filter averages when it shrinks (no aliasing) and has no negative weights (no ringing).
    """
    height, width = image_shape
    if images.shape[1:] != (height, width):
        check_size('resized images', (len(images), height, width))
        source, images = images, np.empty((len(images), height, width), dtype=np.uint8)
        for i, image in enumerate(source):
            images[i] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return images.reshape(-1, height * width)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
