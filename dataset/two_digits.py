"""Two MNIST digits in one image (Sec. 4.3 of the paper)."""
import numpy as np

from dataset.images import check_size, resize
from dataset.noise import generator

SIDE = 60  # pixels
_NUMBER = {'train': 1000000, 'validation': 10000, 'test': 10000}


class TwoDigits:
    """An array uint8 (n, height * width); row i is drawn when it is asked for, from the digits of a split and i alone.

    Two digits lie at random places of a black image of 60x60 pixels, added and clipped at 255. (The paper does not say
    whether its pixels are binary; ours are binarized like those of all images.)
    """

    def __init__(self, digits, split, image_shape):
        self._digits, self._split, self._image_shape = digits.reshape(-1, 28, 28), split, image_shape
        self.shape = _NUMBER[split], image_shape[0] * image_shape[1]

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = range(len(self))[rows] if isinstance(rows, slice) else rows
        check_size('two_digits', (len(rows), SIDE, SIDE))
        images = np.zeros((len(rows), SIDE, SIDE), dtype=np.uint8)
        for image, row in zip(images, rows):
            rng = generator(0, f'two digits, {self._split}', int(row))
            for digit in self._digits[rng.integers(len(self._digits), size=2)]:
                y, x = rng.integers(SIDE - 28, size=2, endpoint=True)
                place = image[y:y + 28, x:x + 28]
                place += np.minimum(digit, 255 - place)
        return resize(images, self._image_shape)
