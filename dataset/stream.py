"""Binarization, and the endless stream of training images.

Intensities are uint8, 0..255, one image per row of an array, its pixels row by row. The model sees float32 pixels that
are 0 or 1.
"""
import functools

import numpy as np

from dataset.noise import generator

BINARIZATIONS = ('dynamic', 'static', 'threshold')


def binarize(intensities, binarization, rng):
    """Pixels 0 or 1 from intensities: Bernoulli with p = intensity / 255, or intensity / 255 > 0.5 ('threshold').

    The generator gives one 64-bit number for each pixel, in order.
    """
    if binarization == 'threshold':
        return (intensities > 127).astype(np.float32)
    return (rng.random(intensities.shape) * 255 < intensities).astype(np.float32)


def evaluation_images(intensities, binarization, first=0):
    """Binarize (n, pixels) once and for all, independent of any seed, so that all runs are compared on the same pixels.

    Image i of every split gets the same random numbers; `first` is the number of the first one here.
    """
    rng = _generator_at(0, 'fixed pixels', first * intensities.shape[1])
    pixels = np.empty(intensities.shape, dtype=np.float32)
    for start in range(0, len(pixels), 1000):  # in parts: the random numbers take 8 bytes a pixel
        pixels[start:start + 1000] = binarize(intensities[start:start + 1000], binarization, rng)
    return pixels


def _generator_at(seed, purpose, number):
    """A generator that has skipped its first `number` random numbers."""
    rng = generator(seed, purpose)
    rng.bit_generator.advance(int(number))
    return rng


class TrainingStream:
    """The endless stream of training images: every epoch is a fresh permutation of all images.

    An image of the stream is a function of the seed and its number alone. So a run can resume anywhere, and workers
    that share a batch get, between them, what one alone would get. `intensities` are uint8 (n, pixels), or a TwoDigits.
    Dynamic binarization draws pixels anew each time an image is used, static binarization once, the same for any seed.
    """

    def __init__(self, intensities, binarization, seed):
        self._intensities, self._binarization, self._seed = intensities, binarization, seed
        n = len(intensities)
        # Two epochs, as a batch may straddle them.
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: generator(seed, 'order', epoch).permutation(n))

    def batch(self, position, batch_size):
        """Images number position ... position + batch_size - 1 as float32 (batch_size, pixels) of 0 and 1."""
        n, pixels = self._intensities.shape
        rows = [self._order(i // n)[i % n] for i in range(position, position + batch_size)]
        images = self._intensities[rows]
        if self._binarization == 'static':
            return np.stack([evaluation_images(image[None], 'static', row)[0] for image, row in zip(images, rows)])
        rng = _generator_at(self._seed, 'dynamic pixels', position * pixels)  # past the numbers of all earlier images
        return binarize(images, self._binarization, rng)
