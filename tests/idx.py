"""Small IDX files (the format of MNIST) for tests, and how they are refused."""
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
    with (gzip.open if str(path).endswith('.gz') else open)(path, 'wb') as file:
        file.write(idx_bytes(array))


def write_mnist(folder, num_train=120, num_test=30, size=(28, 28), seed=0):
    """Write the four MNIST files with round grey blobs on black. `size` is (height, width)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)
    for part, n in (('train', num_train), ('t10k', num_test)):
        centre_y, centre_x, radius = (rng.uniform(low, high, (n, 1, 1)) for low, high in
                                      ((0.3, 0.7), (0.3, 0.7), (0.15, 0.3)))
        distance = np.hypot(y - centre_y * size[0], x - centre_x * size[1]) / (radius * min(size))
        write_idx(folder / f'{part}-images-idx3-ubyte.gz', 255 * np.clip(2 - 2 * distance, 0, 1))
        write_idx(folder / f'{part}-labels-idx1-ubyte.gz', rng.integers(10, size=n))


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
