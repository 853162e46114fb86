"""Images: MNIST or synthetic digits as grey levels, their binarization, and all randomness of the project.

Grey levels are uint8 intensities 0..255, one image per row of an array, its pixels row by row. The model sees
float32 pixels that are 0 or 1.
"""
import gzip
import hashlib
import http.client
import io
import os
import queue
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import files

DATASETS = ('mnist', 'synthetic')
SPLITS = ('train', 'validation', 'test')
BINARIZATIONS = ('dynamic', 'static', 'threshold')

IMAGE_FILES = ('train-images-idx3-ubyte', 't10k-images-idx3-ubyte')
# Bytes and sha256 of the files as they are after decompression, for compressed they differ between mirrors.
FILES = {
    'train-images-idx3-ubyte': (47040016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    't10k-images-idx3-ubyte': (7840016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    'train-labels-idx1-ubyte': (60008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-labels-idx1-ubyte': (10008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}
# The environment variable DRAW_MNIST_MIRROR names another one, to be used instead.
MIRRORS = (
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/mnist/',
)
# Seconds. A mirror is given up at its first failure, so with no network three mirrors take 45 at most.
STALL_SECONDS = 7  # to connect to one address, and between two pieces of a file
ANSWER_SECONDS = 15  # until a file begins to arrive, name resolution included
DOWNLOAD_SECONDS = 300  # for all files together

_MAX_BYTES = 2 ** 30  # of one array of images: a small .gz can unpack to more than the memory
_IMAGE_MAGIC = 2051  # IDX: unsigned bytes in three dimensions

_SYNTHETIC_COUNTS = (20000, 2000, 2000)  # as in SPLITS


class DataError(Exception):
    """The data cannot be used; the message is one line for the user."""


def generator(seed, purpose, position=0):
    """The one source of randomness: a random generator that is a pure function of the arguments.

    Parameters
    ----------
    seed : int
        At least 0.
    purpose : str
        What the numbers are for; two purposes get independent numbers.
    position : int
        At least 0, e.g. the number of samples seen: (seed, position) is all that a run needs to go on.

    Returns
    -------
    numpy.random.Generator
    """
    key = (zlib.crc32(purpose.encode()), position)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def noise(seed, purpose, first, size, arguments):
    """Standard normal eps, shape (num_steps, size, latent_dim), for the images first .. first + size - 1.

    Every image has noise of its own, so that nothing depends on the batch, or on the part of it, that it is in.

    Parameters
    ----------
    seed : int
    purpose : str
    first, size : int
    arguments : dict
        The run's arguments (config.json).
    """
    shape = arguments['num_steps'], arguments['latent_dim']
    return np.stack([generator(seed, purpose, first + i).standard_normal(shape, dtype=np.float32)
                     for i in range(size)], axis=1)


def load(dataset, data_dir, image_shape):
    """Grey-level images of a dataset.

    'mnist': the last sixth of the training file is the validation split (50,000 + 10,000 images). Only the
    two image files are read, raw or .gz. If one of them is missing, all missing MNIST files are downloaded;
    the labels, which DRAW does not need, only if a mirror has them.

    'synthetic': 20,000 + 2,000 + 2,000 synthetic digits, which are not MNIST: the font that Pillow carries,
    deformed at random. They are the same at every call (with one version of Pillow) and are not stored.

    Parameters
    ----------
    dataset : str
        'mnist' or 'synthetic'.
    data_dir : str or path
        Folder of the MNIST files; not used by 'synthetic'.
    image_shape : tuple of int
        (height, width) in pixels, to which images of another shape are resized.

    Returns
    -------
    dict
        For each of SPLITS a uint8 array (n, height * width) of intensities 0..255.

    Raises
    ------
    DataError
    """
    if dataset not in DATASETS:
        raise DataError(f'the dataset must be {" or ".join(DATASETS)}, not {dataset}')
    splits = _load_mnist(Path(data_dir)) if dataset == 'mnist' else _draw_synthetic()
    return {split: _resize(images, image_shape) for split, images in zip(SPLITS, splits)}


def _resize(images, image_shape):
    """(n, any height, any width) -> (n, height * width).

    Pillow's bilinear filter averages when it shrinks (no aliasing) and has no negative weights (no ringing).
    """
    height, width = image_shape
    if len(images) * height * width > _MAX_BYTES:
        raise DataError(f'{len(images)} images of {height}x{width} pixels are more than {_MAX_BYTES} bytes')
    if images.shape[1:] != (height, width):
        source, images = images, np.empty((len(images), height, width), dtype=np.uint8)
        for i, image in enumerate(source):
            images[i] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return images.reshape(-1, height * width)


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


def evaluation_images(intensities, binarization):
    """Binarize once and for all, independent of any seed, so that all runs are compared on the same pixels.

    Parameters
    ----------
    intensities : uint8 array (n, pixels)
    binarization : str
        'dynamic' and 'static' give the same pixels.

    Returns
    -------
    float32 array (n, pixels) of 0 and 1
    """
    rng = generator(0, 'fixed pixels')
    pixels = np.empty(intensities.shape, dtype=np.float32)
    for start in range(0, len(pixels), 1000):  # in parts: the random numbers take 8 bytes a pixel
        pixels[start:start + 1000] = binarize(intensities[start:start + 1000], binarization, rng)
    return pixels


class TrainingStream:
    """The endless stream of training images: every epoch is a fresh permutation of all images.

    An image of the stream is a function of the seed and its number alone. So a run can go on anywhere, and
    workers that share a batch get together what one worker would get.

    Parameters
    ----------
    intensities : uint8 array (n, pixels)
    binarization : str
        'dynamic': pixels drawn anew each time an image is used; 'static': drawn once, the same for every
        seed; 'threshold': not drawn.
    seed : int
    """

    def __init__(self, intensities, binarization, seed):
        self._dynamic = binarization == 'dynamic'
        fixed = None if self._dynamic else evaluation_images(intensities, binarization)
        self._images = intensities if self._dynamic else fixed.astype(np.uint8)
        self._seed = seed
        self._orders = {}

    def batch(self, position, batch_size):
        """Images number position ... position + batch_size - 1; a batch may straddle epochs.

        Parameters
        ----------
        position, batch_size : int

        Returns
        -------
        float32 array (batch_size, pixels) of 0 and 1
        """
        n, pixels = self._images.shape
        numbers = range(position, position + batch_size)
        images = self._images[[self._order(number // n)[number % n] for number in numbers]]
        if not self._dynamic:
            return images.astype(np.float32)
        rng = generator(self._seed, 'dynamic pixels')
        rng.bit_generator.advance(position * pixels)  # past the numbers of all earlier images
        return binarize(images, 'dynamic', rng)

    def _order(self, epoch):
        """Permutation of an epoch. The latest two are kept, for batches that straddle epochs."""
        if epoch not in self._orders:
            if len(self._orders) == 2:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = generator(self._seed, 'order', epoch).permutation(len(self._images))
        return self._orders[epoch]


def _load_mnist(folder):
    """Images of the three splits."""
    if not all(_find(folder, name) for name in IMAGE_FILES):
        _download(folder)
    train_path, test_path = (_find(folder, name) for name in IMAGE_FILES)
    train, test = _read_images(train_path), _read_images(test_path)
    num_train = len(train) - len(train) // 6
    if num_train == len(train):
        raise DataError(f'{train_path} holds {len(train)} images, but training and validation need 6')
    return train[:num_train], train[num_train:], test


def _find(folder, name):
    """Path of an MNIST file, raw before .gz, or None."""
    return next((path for path in (folder / name, folder / f'{name}.gz') if os.path.exists(path)), None)


def _read_images(path):
    """Images of an IDX file, raw or .gz, as uint8 (n, height, width)."""
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as stream:
            return _parse_images(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} cannot be read: {error}') from error


def _parse_images(stream, path):
    header = stream.read(16)
    if len(header) < 16:
        raise DataError(f'{path} holds {len(header)} bytes, but the header of an IDX file of images has 16')
    magic, n, height, width = struct.unpack('>4I', header)
    if magic != _IMAGE_MAGIC:
        raise DataError(f'{path} is no IDX file of images: its magic number is {magic}, not {_IMAGE_MAGIC}')
    size = n * height * width
    promise = f'{path} promises {n} images of {height}x{width} pixels'
    if not 0 < size <= _MAX_BYTES:
        raise DataError(f'{promise}, which is not between 1 and {_MAX_BYTES} bytes')
    pixels = _read_at_most(stream.read, size)
    if len(pixels) != size:
        found = f'only {len(pixels)}' if len(pixels) < size else 'more'
        raise DataError(f'{promise}, which are {size} bytes, but holds {found}')
    return np.frombuffer(pixels, dtype=np.uint8).reshape(n, height, width)


def _read_at_most(read, size):
    """What read(bytes) gives, cut off one byte after size. Takes memory only for what is really there."""
    content = bytearray()
    while len(content) <= size:
        piece = read(min(2 ** 20, size + 1 - len(content)))
        if not piece:
            break
        content += piece
    return content


def _download(folder):
    """Download the MNIST files that are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'the data folder {folder} cannot be made: {error.strerror}') from error
    mirror = os.environ.get('DRAW_MNIST_MIRROR')
    mirrors = [mirror] if mirror else list(MIRRORS)
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    for name in FILES:
        if _find(folder, name):
            continue
        content, failure = _fetch_from_any(mirrors, name, deadline)
        if content:
            try:
                files.write_whole(folder / f'{name}.gz', content)
            except OSError as error:
                raise DataError(f'{folder / name}.gz cannot be written: {error.strerror}') from error
        elif name in IMAGE_FILES:
            raise DataError(f'{folder} does not hold MNIST and the download failed ({failure}): put '
                            f'{", ".join(FILES)} there, raw or .gz, or use --dataset synthetic')


def _fetch_from_any(mirrors, name, deadline):
    """(content of the .gz, None) or (None, last failure). A mirror that fails is removed from the list."""
    failure = None
    while mirrors:
        url = f'{mirrors[0].rstrip("/")}/{name}.gz'
        print(f'downloading {url}', flush=True)
        try:
            return _fetch(url, *FILES[name], deadline=deadline), None
        except (OSError, EOFError, ValueError, zlib.error, http.client.HTTPException) as error:
            failure = f'{url}: {" ".join(str(error).split())}'
            del mirrors[0]
    return None, failure


def _fetch(url, size, sha256, deadline):
    """Content of a .gz that unpacks to a file of this size and checksum."""
    with _open_url(url) as response:
        def read(num_bytes):
            if time.monotonic() > deadline:
                raise TimeoutError(f'not complete after {DOWNLOAD_SECONDS} seconds')
            return response.read1(num_bytes)  # at most one wait; read() would wait for all num_bytes
        content = _read_at_most(read, size + 1024)
    with gzip.open(io.BytesIO(content)) as stream:
        if hashlib.sha256(_read_at_most(stream.read, size)).hexdigest() != sha256:
            raise ValueError('not the original MNIST file (other checksum)')
    return content


def _open_url(url):
    """Response of a server, from a thread, as the time-out of urlopen does not cover the name resolution."""
    outcomes = queue.Queue()

    def work():
        try:
            outcomes.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                outcomes.put(OSError(str(error)))
        except Exception as error:
            outcomes.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        outcome = outcomes.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f'no answer in {ANSWER_SECONDS} seconds') from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _draw_synthetic():
    """Images of the three splits, 28x28 pixels."""
    rng = generator(0, 'synthetic digits')
    n = sum(_SYNTHETIC_COUNTS)
    glyphs = [_draw_glyph(digit, stroke_width) for digit in '0123456789' for stroke_width in (0, 2, 4, 6)]
    kinds = rng.integers(len(glyphs), size=n)
    angles = np.radians(rng.uniform(-12, 12, size=n))
    shears = rng.uniform(-0.15, 0.35, size=n)  # more often to the right, as in handwriting
    x_scales, y_scales = 2 / rng.uniform(0.8, 1.05, size=(2, n))  # a glyph has 2 pixels for one of the image
    shifts = rng.uniform(-1.5, 1.5, size=(n, 2))
    # Pillow wants the way back: the point of the glyph (56x56) for a point of the image (28x28).
    rotations = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]])
    stretches = np.array([[x_scales, shears * x_scales], [np.zeros(n), y_scales]])
    matrices = np.einsum('ijn,jkn->nik', stretches, rotations)
    offsets = 28 - np.einsum('nij,nj->ni', matrices, 14 + shifts)
    images = np.empty((n, 28, 28), dtype=np.uint8)
    for i, (matrix, offset) in enumerate(zip(matrices, offsets)):
        affine = (*matrix[0], offset[0], *matrix[1], offset[1])
        glyph = glyphs[kinds[i]]
        images[i] = glyph.transform((28, 28), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.split(images, np.cumsum(_SYNTHETIC_COUNTS)[:-1])


def _draw_glyph(digit, stroke_width):
    """A digit 40 pixels high in the middle of 56x56, with soft edges; stroke_width in quarter pixels."""
    large = Image.new('L', (320, 320))
    font = ImageFont.load_default(size=224)
    ImageDraw.Draw(large).text((160, 160), digit, fill=255, font=font, anchor='mm', stroke_width=stroke_width)
    left, top, right, bottom = large.getbbox()
    x, y = (left + right) // 2, (top + bottom) // 2
    return large.crop((x - 112, y - 112, x + 112, y + 112)).reduce(4).filter(ImageFilter.GaussianBlur(0.7))
