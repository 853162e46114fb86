"""The MNIST files of images: reading, checking and downloading them. DRAW needs no labels."""
import gzip
import hashlib
import io
import os
import queue
import struct
import threading
import urllib.parse
import urllib.request
import zlib

from system import files

import numpy as np

from dataset.images import DataError, check_size, resize

TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'
# Bytes and SHA-256 of the files as they are after decompression: compressed they differ between mirrors.
FILES = {
    TRAIN: (47040016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    TEST: (7840016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
}
# The environment variable DRAW_MNIST_MIRROR names another one, to be used instead.
MIRRORS = (
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/mnist/',
)
# A mirror is given up when a piece takes longer, so three mirrors that do not answer take 45 seconds.
PIECE_BYTES = 2 ** 18
PIECE_SECONDS = 15  # the first with all that comes before it: name resolution, connection, redirects

_IMAGE_MAGIC = 2051  # IDX: unsigned bytes in three dimensions


def load_mnist(folder, image_shape, splits):
    """{split: uint8 (n, height * width)}. Only the files that hold these splits are read."""
    names = {TEST if split == 'test' else TRAIN for split in splits}
    if not all(_find(folder, name) for name in names):
        _download(folder)
    images = {}
    if TRAIN in names:
        path = _find(folder, TRAIN)
        both = _read_images(path, image_shape)
        num_validation = len(both) // 6
        if not num_validation:
            raise DataError(f'{path} holds {len(both)} images, but training and validation need 6')
        images['train'], images['validation'] = both[:-num_validation], both[-num_validation:]
    if TEST in names:
        images['test'] = _read_images(_find(folder, TEST), image_shape)
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
    pixels = _read_at_most(stream, size)
    if len(pixels) != size:
        found = f'only {len(pixels)}' if len(pixels) < size else 'more'
        raise DataError(f'{promise}, which are {size} bytes, but holds {found}')
    return np.frombuffer(pixels, dtype=np.uint8).reshape(n, height, width)


def _read_at_most(stream, size):
    """Content of a stream, cut off one byte after size. Takes memory only for what is really there."""
    content = bytearray()
    while piece := stream.read(min(2 ** 20, size + 1 - len(content))):
        content += piece
    return content


def _download(folder):
    """Download the files that are missing. A mirror is left at its first failure."""
    failure = _why_unfit(folder)
    own = os.environ.get('DRAW_MNIST_MIRROR')
    mirrors = [] if failure else [own] if own else list(MIRRORS)
    for name in FILES:
        while not _find(folder, name):
            if not mirrors:
                raise DataError(f'MNIST is not in {str(folder)!r} and cannot be downloaded to it ({failure}): put '
                                f'{" and ".join(FILES)} there, raw or .gz, or train with --dataset synthetic')
            url = f'{mirrors[0].rstrip("/")}/{name}.gz'
            print(f'downloading {url}', flush=True)
            content, failure = _fetch(url, *FILES[name])
            if failure:
                failure = f'{url}: {failure}'
                del mirrors[0]
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                files.write_whole(folder / f'{name}.gz', content)
            except OSError as error:
                raise DataError(f'{folder / name}.gz cannot be written: {error.strerror}') from error


def _why_unfit(folder):
    """Why no file can be put into a folder, or None. The folder need not exist, and is not made."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return getattr(error, 'strerror', None) or error
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    fit = os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
    return None if fit else f'{there} is not a folder that can be written to'


def _fetch(url, size, sha256):
    """(content of a .gz that unpacks to a file of this size and checksum, None) or (None, what failed).

    A thread does it, since no time-out of a socket covers the name resolution or a server that drips.
    """
    news = queue.Queue()

    def work():
        try:
            content = bytearray()
            with urllib.request.build_opener(_Redirects).open(url, timeout=PIECE_SECONDS) as response:
                while len(content) <= size and (piece := response.read(PIECE_BYTES)):
                    content += piece
                    news.put(None)
            with gzip.open(io.BytesIO(content)) as stream:
                if hashlib.sha256(_read_at_most(stream, size)).hexdigest() != sha256:
                    raise ValueError('not the original MNIST file (other checksum)')
            news.put((content, None))
        except Exception as error:  # a server can provoke any
            news.put((None, f'{" ".join(str(error).split()):.200}' or type(error).__name__))

    threading.Thread(target=work, daemon=True).start()
    try:
        while not (outcome := news.get(timeout=PIECE_SECONDS)):
            pass
    except queue.Empty:
        return None, f'less than {PIECE_BYTES // 1024} KiB in {PIECE_SECONDS} seconds'
    return outcome


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects within one scheme. Their bodies are not read, as urllib would take an endless one into memory."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()
        if urllib.parse.urlsplit(newurl).scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise ValueError(f'a redirect to another scheme, {newurl}')
        return super().redirect_request(req, fp, code, msg, headers, newurl)
