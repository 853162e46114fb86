"""The MNIST files: reading, checking and downloading them."""
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

from system import files

import numpy as np

from dataset.images import DataError, check_size, resize

IMAGE_FILES = TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'
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

_IMAGE_MAGIC = 2051  # IDX: unsigned bytes in three dimensions


def load_mnist(folder, image_shape, splits):
    """{split: uint8 (n, height * width)}. Only the files that hold these splits are read."""
    names = [TRAIN] * ('train' in splits or 'validation' in splits) + [TEST] * ('test' in splits)
    if not all(_find(folder, name) for name in names):
        _download(folder)
    images = {}
    for name in names:
        path = _find(folder, name)
        content = _read_images(path, image_shape)
        if name == TEST:
            images['test'] = content
            continue
        num_train = len(content) - len(content) // 6
        if num_train == len(content):
            raise DataError(f'{path} holds {len(content)} images, but training and validation need 6')
        images['train'], images['validation'] = content[:num_train], content[num_train:]
    return {split: resize(images[split], image_shape) for split in splits}


def _find(folder, name):
    """Path of an MNIST file, raw before .gz, or None. A broken link is found too, as it must not be replaced."""
    return next((path for path in (folder / name, folder / f'{name}.gz') if os.path.lexists(path)), None)


def _read_images(path, image_shape):
    """Images of an IDX file, raw or .gz, as uint8 (n, height, width), unless they are too many for `image_shape`."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise DataError(f'{path} is not a file')
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as stream:
            return _parse_images(stream, path, image_shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error


def _parse_images(stream, path, image_shape):
    header = stream.read(16)
    if len(header) < 16:
        raise DataError(f'{path} holds {len(header)} bytes, but the header of an IDX file of images has 16')
    magic, n, height, width = struct.unpack('>4I', header)
    if magic != _IMAGE_MAGIC:
        raise DataError(f'{path} is no IDX file of images: its magic number is {magic}, not {_IMAGE_MAGIC}')
    promise, size = f'{path} promises {n} images of {height}x{width} pixels', n * height * width
    if not size:
        raise DataError(f'{promise}, which are none')
    for shape in ((height, width), image_shape):
        check_size(path, n, shape)
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
