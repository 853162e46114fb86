"""Small IDX files (the format of MNIST) for tests."""
import gzip
import struct

import numpy as np


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
