"""Small IDX files (the format of MNIST) for tests, and how they are refused."""
import functools
import gzip
import struct

import numpy as np
import pytest

from dataset import mnist, stream

TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'


def idx_bytes(array):
    """Content of an IDX file of unsigned bytes; the magic number carries the number of dimensions."""
    header = struct.pack(f'>{1 + array.ndim}I', 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array):
    """Write a raw IDX file, or a compressed one if the name ends in .gz."""
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


def write_mnist(folder, num_train=120, num_test=30, size=(28, 28), seed=0):
    """Write the four MNIST files with round grey blobs on black. `size` is (height, width)."""
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


def numbered_images(n, shape=(2, 3)):
    """Image i is filled with intensity i."""
    return np.arange(n, dtype=np.uint8).reshape(-1, 1, 1) * np.ones(shape, dtype=np.uint8)


def error_line(folder, dataset='mnist', image_shape=(2, 3), splits=stream.SPLITS):
    """The message of the DataError that load raises; it is one printable line."""
    with pytest.raises(mnist.DataError) as caught:
        stream.load(dataset, folder, image_shape, splits)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message
