"""Small files of images for tests, and how they are refused."""
import gzip
import struct

import numpy as np
import pytest

from dataset.images import DataError
from dataset.load import load

TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'


def header(*shape):
    """The header of an IDX file; the magic number carries the type, uint8, and the number of dimensions."""
    return struct.pack(f'>{1 + len(shape)}I', 2048 + len(shape), *shape)


def idx_bytes(array):
    """Content of an IDX file."""
    return header(*array.shape) + array.astype(np.uint8).tobytes()


def write_idx(path, array):
    """Write a raw IDX file, or a compressed one if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


def numbered(n, shape=(28, 28), first=0):
    """uint8 images: pixel 0 tells the number, pixel 1 is white, the others are black."""
    images = np.zeros((n, shape[0] * shape[1]), np.uint8)
    images[:, 0], images[:, 1] = range(first, first + n), 255
    return images.reshape(n, *shape)


def numbers(images):
    """The numbers of `numbered` images, from a split."""
    return images[:, 0].tolist()


def error_line(*args, **kwargs):
    """The message of the DataError that load raises; it is one printable line."""
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message
