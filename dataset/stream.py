"""Binarization, and the endless stream of training images.

Intensities are uint8, 0..255, one image per row of an array, its pixels row by row. The model sees float32 pixels that
are 0 or 1.
"""
import functools

import numpy as np

from dataset.noise import generator

BINARIZATIONS = ('dynamic', 'static', 'threshold')


def binarize(intensities, binarization, rng):
    """Pixels 0 or 1 from intensities.

    Parameters
    ----------
    intensities : uint8 array
    binarization : str
        'dynamic' and 'static': Bernoulli with p = intensity / 255; 'threshold': intensity / 255 > 0.5.
    rng : numpy.random.Generator
        Gives one 64-bit number for each pixel, in order; not used by 'threshold'.

    Returns
    -------
    float32 array of the same shape
    """
    if binarization not in BINARIZATIONS:
        raise ValueError(f'binarization must be one of {", ".join(BINARIZATIONS)}, not {binarization}')
    if binarization == 'threshold':
        return (intensities > 127).astype(np.float32)
    return (rng.random(intensities.shape) * 255 < intensities).astype(np.float32)


def evaluation_images(intensities, binarization, first=0):
    """Binarize once and for all, independent of any seed, so that all runs are compared on the same pixels.

    Parameters
    ----------
    intensities : uint8 array (n, pixels)
    binarization : str
        'dynamic' and 'static' give the same pixels.
    first : int
        Number of the first image: image i of every split gets the same random numbers.

    Returns
    -------
    float32 array (n, pixels) of 0 and 1
    """
    rng = _generator_at(0, 'fixed pixels', first * intensities.shape[1])
    pixels = np.empty(intensities.shape, dtype=np.float32)
    for start in range(0, len(pixels), 1000):  # in parts: the random numbers take 8 bytes a pixel
        pixels[start:start + 1000] = binarize(intensities[start:start + 1000], binarization, rng)
    return pixels


def _generator_at(seed, purpose, number):
    """A generator past its first random numbers."""
    rng = generator(seed, purpose)
    rng.bit_generator.advance(int(number))
    return rng


class TrainingStream:
    """The endless stream of training images: every epoch is a fresh permutation of all images.

    An image of the stream is a function of the seed and its number alone. So a run can resume anywhere, and workers
    that share a batch get together what one worker would get.

    Parameters
    ----------
    intensities : uint8 array (n, pixels), or dataset.two_digits.TwoDigits
    binarization : str
        'dynamic': pixels drawn anew each time an image is used; 'static': drawn once, the same for every
        seed; 'threshold': not drawn.
    seed : int
    """

    def __init__(self, intensities, binarization, seed):
        binarize(intensities[:0], binarization, np.random)  # refuses an unknown binarization
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
