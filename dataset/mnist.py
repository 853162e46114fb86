"""The data sets that are known by their checksums: MNIST, Fashion-MNIST, KMNIST and the fixed binarization of MNIST."""
import io
import os

from system import cli, files

import numpy as np
import requests

from dataset.formats import PICTURES, find, parse_idx, read, read_numpy
from dataset.images import DataError, sha256

LABELS = {'mnist': 'MNIST', 'fashion_mnist': 'Fashion-MNIST', 'kmnist': 'KMNIST',
          'fixed_mnist': 'fixed binarized MNIST'}
# SHA-256 of all pixels of a file; KMNIST: of the .gz file, as only that is published.
CHECKSUMS = {
    'mnist': {'train': '741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757',
              'test': '6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161'},
    'fashion_mnist': {'train': '2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012',
                      'test': 'c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a'},
    'kmnist': {'train': '51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4',
               'test': 'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5'},
    'fixed_mnist': {'train': 'ea273910483323d4976d93ea94462ed72c0982c13e75c192944362010642c9af',
                    'validation': 'a5d1888f93755b50d4f53c8a1469450bf62303b614864291bd5945faa60788cd',
                    'test': 'a5856e8b2c3c02aeef98c756d8a62e519f620c9e203c86bb9bfff6c6e58d0844'}}
FILES = {'train': 'train-images-idx3-ubyte.gz', 'test': 't10k-images-idx3-ubyte.gz'}
MIRRORS = (  # the environment variable DRAW_MNIST_MIRROR replaces them
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/mnist/')
_IMAGES = *PICTURES, '.npy', '.npz'
_TIMEOUT = 15  # seconds, to connect and for each piece
_MAX_DOWNLOAD = 2 ** 25  # bytes


def load_known(name, folder, split):
    """uint8 (n, 28, 28): the images of a 'train' or 'test' file, or of fixed_mnist's 'validation'. Raises DataError."""
    images = _recognize(name, folder, split)
    if images is not None:
        return images
    found = sorted(find(folder), key=lambda each: each[1] != split)
    there = [path for *_, path in found] + [path for path in folder.glob('*.*') if path.suffix.lower() in _IMAGES]
    if name == 'mnist' and (not there or split not in [kind for _, kind, _ in found] and any(
            _recognize(name, folder, kind) is not None for kind in FILES)):  # only MNIST's other file may be there
        return _download(folder, split)
    if there:
        raise DataError(f"{there[0]}: these are not {LABELS[name]}'s files; name their folder with --data_dir; "
                        'for your own images: --dataset PATH')
    expected = 'binarized_mnist_train.amat, _valid and _test, or an .npz' if name == 'fixed_mnist' else FILES[split]
    raise DataError(f'{LABELS[name]} is not in {folder}: put {expected} there, or name its folder with --data_dir')


def _recognize(name, folder, split):
    """The images with the checksum of a split, or None if no file in a folder has them."""
    paths = [path for _, kind, path in find(folder) if kind == split]
    for path in paths + ([folder] if folder.suffix == '.npz' else sorted(folder.glob('*.npz'))):
        try:
            array = read_numpy(path, [split]).get(split, np.zeros(0)) if path.suffix == '.npz' else read(path)
        except DataError:
            if path.suffix != '.npz':
                raise
            continue  # it may hold anything
        if array.dtype.kind in 'bf':  # 0 and 1
            with np.errstate(invalid='ignore'):
                array = (array * 255).astype(np.uint8)
        if sha256(np.fromfile(path, np.uint8) if name == 'kmnist' else array) == CHECKSUMS[name][split]:
            return array.reshape(-1, 28, 28)
    return None


def _download(folder, split):
    """Put MNIST's file of a split into a folder, and return its images."""
    place = folder if folder.suffix == '.npz' else next(filter(os.path.exists, (folder, *folder.parents)))
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f'MNIST is not in {folder}, and {place} is not a folder that can be written to; name the '
                        'folder of its files with --data_dir')
    own = os.environ.get('DRAW_MNIST_MIRROR')
    for mirror in [own] if own else MIRRORS:
        url, content = f'{mirror.rstrip("/")}/{FILES[split]}', bytearray()
        cli.say(f'downloading {url} to {cli.shown(folder)}/')
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
                response.raise_for_status()
                for piece in response.raw.stream(2 ** 18, decode_content=False):
                    content += piece
                    if len(content) > _MAX_DOWNLOAD:
                        raise ValueError(f'more than {_MAX_DOWNLOAD:,} bytes')
            images = parse_idx(io.BytesIO(content), 'the answer')
            if sha256(images) != CHECKSUMS['mnist'][split]:
                raise ValueError("not MNIST's file: its checksum differs")
        except Exception as error:  # a server can cause any of them
            failure = f'{url}: {" ".join(str(error).split())[-200:]}'  # the cause comes last
        else:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_whole(folder / FILES[split], content)
            return images
    raise DataError(f'MNIST is not in {folder} and cannot be downloaded: put {FILES["train"]} and {FILES["test"]} '
                    f'there, name their folder with --data_dir, or use --dataset synthetic ({failure})')
