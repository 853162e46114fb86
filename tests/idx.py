"""Small files of images for tests, and how they are refused."""
import functools
import gzip
import struct

import numpy as np
import pytest

from dataset.images import DataError
from dataset.load import load

TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'


def idx_bytes(array, kind=8, dtype=np.uint8):
    """Content of an IDX file; the magic number carries the type and the number of dimensions."""
    header = struct.pack(f'>{1 + array.ndim}I', 256 * kind + array.ndim, *array.shape)
    return header + array.astype(dtype).tobytes()


def write_idx(path, array):
    """Write a raw IDX file, or a compressed one if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


def write_mnist(folder, num_train=120, num_test=30, size=(28, 28), seed=0):
    """Write the four files of a small MNIST: round grey blobs on black. `size` is (height, width)."""
    for name, content in _mnist(num_train, num_test, size, seed).items():
        (folder / name).write_bytes(content)


@functools.lru_cache
def _mnist(num_train, num_test, size, seed):
    rng, files = np.random.default_rng(seed), {}
    y, x = np.indices(size)
    for part, n in (('train', num_train), ('t10k', num_test)):
        centre_y, centre_x, radius = (rng.uniform(low, high, (n, 1, 1)) for low, high in
                                      ((0.3, 0.7), (0.3, 0.7), (0.15, 0.3)))
        distance = np.hypot(y - centre_y * size[0], x - centre_x * size[1]) / (radius * min(size))
        files[f'{part}-images-idx3-ubyte.gz'] = gzip.compress(idx_bytes(255 * np.clip(2 - 2 * distance, 0, 1)))
        files[f'{part}-labels-idx1-ubyte.gz'] = gzip.compress(idx_bytes(rng.integers(10, size=n)))
    return files


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
