"""Reading images: IDX files (the format of MNIST), .npy and .npz, binarized_mnist_*.amat, PNG and JPEG."""
import contextlib
import gzip
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataset.images import DataError, check_size, resize

PICTURES = '.png', '.jpg', '.jpeg'
_FILE = re.compile(r'(.*)(train|valid|t10k|test)(?:[-_.]images?[-_.](?:idx3?[-_.])?(?:ubyte|idx3?)(?:\.gz)?|\.amat)')
_SPLIT = re.compile(r'(?:x_)?(train|val|test)(?:id|idation|ing)?(?:_images)?', re.IGNORECASE)
_SPLITS = {'train': 'train', 'val': 'validation', 'valid': 'validation', 'test': 'test', 't10k': 'test'}


def find(folder):
    """[(set, split, path)] of the IDX and .amat files of images in a folder, in its raw/ and in its */raw/."""
    places = filter(Path.is_dir, (folder, folder / 'raw', *sorted(folder.glob('*/raw'))))
    matches = [(_FILE.fullmatch(path.name), path) for place in places for path in sorted(place.iterdir())]
    return [(path.parent / match[1], _SPLITS[match[2]], path) for match, path in matches if match]


def by_split(names, source):
    """{split: name} of those names, of arrays or of folders, that stand for a split: x_train, Validation, testing."""
    found = {}
    for name in sorted(names):
        match = _SPLIT.fullmatch(name)
        other = match and found.setdefault(_SPLITS[match[1].lower()], name)
        if match and other != name:
            raise DataError(f'{source} has both {other} and {name}: keep one of them')
    return found


@contextlib.contextmanager
def _reading(path):
    """Turn whatever a damaged file raises in the body into a DataError of one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # parsers raise nearly anything
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
        raise DataError(f'{path} cannot be read: {reason:.200}') from error


def read(path):
    """The array of images in an IDX or .amat file."""
    with _reading(path), open(path, 'rb') as file:
        return (parse_amat if path.suffix == '.amat' else parse_idx)(file, path)


def parse_idx(file, source):
    """The bytes of an IDX file, compressed or not, as an array; `file` is open for reading in binary."""
    content = file.read()
    if content[:2] == b'\x1f\x8b':
        content = gzip.decompress(content)
    if content[:4] != b'\0\0\x08\3':  # three axes of uint8
        raise DataError(f'{source} is not an IDX file of images: it begins with {content[:4]!r}')
    shape = np.frombuffer(content[4:16], '>u4').tolist()
    if len(content) != 16 + math.prod(shape):
        raise DataError(f'{source} promises {math.prod(shape):,} bytes of pixels, but holds {len(content) - 16:,}')
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def parse_amat(file, source):
    """bool (n, 784) from lines of 784 numbers 0 or 1."""
    text = np.fromfile(file, np.uint8)
    digits = text[text > ord(' ')] - ord('0')
    if digits.size % 784 or digits.max(initial=0) > 1:
        raise DataError(f'{source} does not hold lines of 784 numbers 0 or 1')
    return digits.reshape(-1, 784).astype(bool)


def read_numpy(path, splits):
    """{split: array} of an .npy file (for training) or of an .npz file with names such as x_train and x_test."""
    with _reading(path), open(path, 'rb') as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {'train': content}
        with content:
            names = by_split(content.files, path)
            if not names and len(content.files) != 1:
                raise DataError(f'{path} has the arrays {", ".join(content.files)}; expected x_train and, optionally, '
                                'x_valid and x_test')
            names = {split: name for split, name in (names or {'train': content.files[0]}).items() if split in splits}
            return {split: np.asarray(content[name]) for split, name in names.items()}  # bytes, if it is no array


def _pictures(folder):
    """The paths of the PNG and JPEG files in a folder and below it, and those of all others; hidden ones count as
    neither. Raises OSError for a folder that cannot be read."""
    def fail(error):
        raise error

    paths = []
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:], here = [name for name in folders if name[0] != '.'], os.path.realpath(place)
        for name in folders:
            target = os.path.realpath(os.path.join(place, name))
            if os.path.commonpath([here, target]) == target:
                raise DataError(f'{os.path.join(place, name)} is a link to a folder that it is in')
        paths += [Path(place, name) for name in names if name[0] != '.']
    paths.sort(key=lambda path: (len(path.parts), path))  # runs recognize their images by this order
    return [[path for path in paths if (path.suffix.lower() in PICTURES) == wanted] for wanted in (True, False)]


def read_pictures(folder, image_shape, notes):
    """uint8 (n, height, width) of the PNG and JPEG files in a folder and below it.

    They must all have the same size, unless `image_shape` is given. Adds what is done to them to the set `notes`.
    """
    paths, others = _pictures(folder)
    if not paths:
        raise DataError(f'{folder} has neither PNG or JPEG files nor IDX files such as train-images-idx3-ubyte')
    if others:
        name = others[0].name
        notes.add(f'read without {f"{len(others):,} other files (such as {name})" if len(others) > 1 else name}')
    images, sizes, low, high, transparent = None, set(), 255, 0, False
    for i, path in enumerate(paths):
        with _reading(path), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # palettes with transparency, which a note mentions
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path, formats=('PNG', 'JPEG')) as file:
                picture = ImageOps.exif_transpose(file)  # a camera may store it sideways
                if picture.mode.startswith('I'):  # 16 bits, which convert('L') would cut off at 255
                    grey = (np.asarray(picture) // 257).astype(np.uint8)
                else:
                    grey = np.asarray(picture.convert('L'))
                    if picture.mode not in ('1', 'L', 'LA'):
                        notes.add('converted to grey')
                    if picture.has_transparency_data and picture.convert('RGBA').getextrema()[3][0] < 255:
                        transparent = True
        sizes.add('x'.join(map(str, grey.shape)))
        if len(sizes) > 1 and not image_shape:
            raise DataError(f'{folder} has images of {" and of ".join(sorted(sizes))}: choose one size with '
                            '--input_height and --input_width')
        if images is None:
            check_size(folder, (len(paths), *(image_shape or grey.shape)))
            images = np.empty((len(paths), *(image_shape or grey.shape)), np.uint8)
        images[i] = resize(grey[None], images.shape[1:]).reshape(images.shape[1:])
        low, high = min(low, grey.min()), max(high, grey.max())
    if transparent:
        notes.add('stripped of their transparency')
        if high < 128:
            raise DataError(f'{folder} has images that are dark without their transparency; paint white on black '
                            'instead')
    _check_range(folder, low, high, 255)
    if sizes != {'x'.join(map(str, images.shape[1:]))}:
        notes.add(f'resized from {sizes.pop() if len(sizes) == 1 else f"{len(sizes)} sizes"}')
    return images


def to_grey(array, source, notes):
    """uint8 (n, height, width), intensities 0..255, from an array of images as files hold them.

    Floats and bools are from 0 to 1, rows of k * k numbers are square images, and colours are on the last axis. Adds
    what is done to the images to the set `notes`.
    """
    if array.ndim == 2 and array.size and math.isqrt(array.shape[1]) ** 2 == array.shape[1]:
        notes.add(f'unfolded from rows of {array.shape[1]} pixels')
        array = array.reshape(len(array), math.isqrt(array.shape[1]), -1)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    colour = array.ndim == 4 and array.shape[3] in (3, 4)
    if not (array.ndim == 3 or colour) or not array.size or array.dtype.kind not in 'buif':
        raise DataError(f'{source} holds {array.dtype} in the shape {array.shape}; expected images in the shape '
                        '(n, height, width), or (n, height, width, 3) with colour')
    if colour and array.shape[3] == 4:
        notes.add('stripped of their transparency')
        array = array[..., :3]
    largest = 1 if array.dtype.kind in 'bf' else 255
    _check_range(source, array.min(), array.max(), largest)
    if array.dtype == np.uint8 and not colour:
        return array
    if colour:
        notes.add('converted to grey')
    grey = np.empty(array.shape[:3], np.uint8)
    for start in range(0, len(array), 1000):  # in parts, to save memory
        part = array[start:start + 1000]
        part = part @ (0.299, 0.587, 0.114) if colour else part  # Pillow's weights
        grey[start:start + 1000] = np.rint(part * (255. / largest))
    return grey


def _check_range(source, low, high, largest):
    """Raise DataError if pixels from `low` to `high` cannot be intensities from 0 to `largest`."""
    if not 0 <= low < high <= largest or largest == 255 and high < 128:
        raise DataError(f'{source} has pixels from {low} to {high}; expected integers from 0 to 255 with a maximum of '
                        'at least 128, or floats from 0 to 1, and not all the same')
