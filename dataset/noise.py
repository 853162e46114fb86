"""All random numbers but MXNet's initial weights, each a function of a seed, a purpose and a position."""
import zlib

import numpy as np


def generator(seed, purpose, position=0):
    """A random generator that is a pure function of the arguments.

    Different purposes (strings) give independent random numbers. The position is the index of an image or of an
    epoch: to resume, a run needs only its seed and the number of samples that it has seen.
    """
    key = (zlib.crc32(purpose.encode()), position)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def noise(seed, purpose, first, size, num_steps, latent_dim):
    """Standard normal eps, float32 (num_steps, size, latent_dim), for the images first ... first + size - 1.

    The noise of an image does not depend on its batch, or on how the batch is divided.
    """
    images = [generator(seed, purpose, i).standard_normal((num_steps, latent_dim), dtype=np.float32)
              for i in range(first, first + size)]
    return np.stack(images, axis=1)
