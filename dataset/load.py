"""Loading a data set by its name or path, and the facts by which a run recognizes its images."""
import os
from pathlib import Path
from typing import NamedTuple

from system import cli

from dataset import mnist
from dataset.formats import PICTURES, by_split, find, read, read_numpy, read_pictures, to_grey
from dataset.images import DataError, resize, sha256
from dataset.noise import generator
from dataset.synthetic import draw_synthetic
from dataset.two_digits import SIDE, TwoDigits

_LABELS = {**mnist.LABELS, 'two_digits': 'two digits of MNIST in each', 'synthetic': 'synthetic digits'}
DATASETS = tuple(_LABELS)
SPLITS = ('train', 'validation', 'test')


class Images(NamedTuple):
    """What `load` returns."""
    splits: dict  # {split: uint8 (n, height * width)}, intensities 0..255; for two_digits, 'train' is a TwoDigits
    shape: tuple  # (height, width), pixels
    facts: dict   # for config.json: dataset (one of DATASETS, or an absolute path), path, height, width, and as
                  # splits {split: {images, sha256}}
    lines: list   # to print: what the images are and, if anything, what was done to them


def dataset_name(text):
    """The name of a data set, or else the absolute path that the text stands for."""
    return text if text in DATASETS else cli.path(text)


def load(dataset, data_dir='data', image_shape=None, splits=SPLITS, transpose=False):
    """Load a data set by its name, or your own images by their path.

    The files of a named data set are verified by SHA-256, and its images keep their order. MNIST is downloaded, but
    only into a folder without other images. Where there is no validation file, the last sixth of the training file is
    used. The images of two_digits and synthetic are drawn, the same at every call; synthetic depends on the version of
    Pillow.

    A path names a folder of PNG or JPEG files, a folder of IDX files such as train-images-idx3-ubyte, one of several
    such files, or an .npy or .npz file. A folder may have train/, validation/ and test/, an .npz file x_train, x_valid
    and x_test, or similar names. Each split is shuffled, always in the same way. A missing test split is then the last
    seventh of the training images, and a missing validation split the last sixth of those that remain.

    Parameters
    ----------
    dataset : str
        One of DATASETS, or a path.
    data_dir : str or path
        Folder of a named data set's files, which may lie in raw/ or MNIST/raw/, or an .npz file of them.
    image_shape : tuple of int, optional
        (height, width) in pixels, to which all images are resized; their own if not given.
    splits : sequence of str
        The splits to return. The files of the others are not needed.
    transpose : bool
        Exchange the rows and columns of your own images; EMNIST needs it.

    Returns
    -------
    Images

    Raises
    ------
    DataError, OSError
        The images are missing, damaged, not those of the named data set, or not intensities.
    """
    name, notes = dataset_name(dataset), set()
    path = None if name == 'synthetic' else Path(cli.path(data_dir) if name in DATASETS else name)
    if transpose and name in DATASETS:
        raise DataError(f'--transpose is for your own images, not for {name}')
    if name == 'synthetic':
        images = draw_synthetic()
    elif name == 'two_digits':
        digits, image_shape = load('mnist', path, splits=splits).splits, tuple(image_shape or (SIDE, SIDE))
        if image_shape != (SIDE, SIDE):
            notes.add(f'resized from {SIDE}x{SIDE}')
        images = {split: TwoDigits(digits[split], split, image_shape) for split in splits}
        images.update({split: drawn[:] for split, drawn in images.items() if split != 'train'})
    elif name in DATASETS:
        images = _read_known(name, path, splits)
    else:
        images = _read_own(path, image_shape, splits, transpose, notes)
    shape = tuple(image_shape or images.get('train', next(iter(images.values()))).shape[1:])
    for split, array in images.items():
        if len(array.shape) == 3 and array.shape[1:] != shape:
            notes.add('resized from {}x{}'.format(*array.shape[1:]))
        if len(array.shape) == 3:
            images[split] = resize(array, shape)
    facts = {'dataset': name, 'path': path and str(path), 'height': shape[0], 'width': shape[1],
             'splits': {split: {'images': len(rows), 'sha256': _checksum(rows)} for split, rows in images.items()}}
    source = f' from {cli.shown(path)}{"/" if os.path.isdir(path) else ""}' if path else ''
    lines = [f'{_count(facts, [split for split in SPLITS if split in images])} images of {shape[0]}x{shape[1]}{source}'
             + (f' ({_LABELS[name]})' if name in DATASETS else '')]
    lines += [f'The images were {_and(sorted(notes))}.'] if notes else []
    return Images({split: images[split] for split in splits}, shape, facts, lines)


def load_of_run(config, splits, dataset=None, data_dir=None, transpose=False):
    """Load the images of a run, or those of another `dataset` in the run's size; otherwise like `load`.

    `config` is what `runs.config.read` returns: the run's 'arguments', and as 'images' the facts of its images, which
    runs of older versions did not record. Raises DataError where the run's images are no longer the same.
    """
    arguments = config['arguments']
    if data_dir and (dataset or arguments.dataset) not in DATASETS:
        raise DataError('--data_dir is for the data sets with a name; for your own images, give --dataset PATH')
    images = load(dataset or arguments.dataset, data_dir or arguments.data_dir,
                  (arguments.input_height, arguments.input_width), splits,
                  transpose if dataset else arguments.transpose)
    if not dataset:
        same_images(config.get('images'), images.facts)
    return images


def same_images(recorded, facts):
    """Raise DataError, with one line that names both, if the facts of a split differ from those that a run recorded."""
    both = [split for split in SPLITS if recorded and split in recorded['splits'] and split in facts['splits']]
    if any(recorded['splits'][split] != facts['splits'][split] for split in both):
        raise DataError('the images of the run were {}; these are {}'.format(*(
            f'{_count(each, both)} images of {each["height"]}x{each["width"]} from {each["path"] or "Pillow"} '
            f'({_LABELS.get(each["dataset"], "own images")}, SHA-256 '
            f'{", ".join(each["splits"][split]["sha256"][:8] for split in both)})' for each in (recorded, facts)))
            + '; to use these, name them with --dataset (to train on them, with --init RUN in place of --resume)')


def _read_known(name, folder, splits):
    if name == 'fixed_mnist':
        return {split: mnist.load_known(name, folder, split) for split in splits}
    files = dict.fromkeys('test' if split == 'test' else 'train' for split in splits)
    images = {split: mnist.load_known(name, folder, split) for split in files}
    if 'train' in images:
        _split_off(images, 'validation', 6)
    return images


def _read_own(path, image_shape, splits, transpose, notes):
    """{split: uint8 (n, height, width)}, with `splits` at least. Adds what is done to the images to the set `notes`."""
    if not os.path.exists(path):
        raise DataError(f'{path} does not exist; --dataset is one of {", ".join(DATASETS)}, or the path of your images')
    if path.suffix.lower() in PICTURES and os.path.isfile(path):
        raise DataError(f'{path} is one picture: give the folder of your pictures')
    if path.suffix.lower() in ('.npy', '.npz'):
        images = {split: to_grey(array, path, notes) for split, array in read_numpy(path, SPLITS).items()}
    elif files := _find_set(path):
        images = {split: to_grey(read(file), file, notes) for split, file in files.items()}
    else:
        names = os.listdir(path) if os.path.isdir(path) else []
        parts = by_split([name for name in names if os.path.isdir(path / name)], path)
        folders = {split: path / part for split, part in parts.items()} or {'train': path}
        if parts:  # there may be others beside them
            notes.add(f'taken from {_and([f"{parts[split]}/" for split in SPLITS if split in parts])}')
        shape = image_shape[::-1] if image_shape and transpose else image_shape
        images = {split: read_pictures(folder, shape, notes) for split, folder in folders.items()}
    if 'train' not in images and not images.keys() >= {*splits}:
        raise DataError(f'{path} has images for {_and([*images])}, but none for training')
    if 'train' in images and len(images['train']) < 7:
        place = 'put them into a folder test/ in it' if os.path.isdir(path) else 'save them as x_test in an .npz file'
        raise DataError(f'{path} has too few images for training: {len(images["train"])}; to use all of them for '
                        f'reconstructions or bounds, {place}')
    notes.update(['shuffled', 'transposed'] if transpose else ['shuffled'])
    for split, array in images.items():
        order = generator(0, 'own images', SPLITS.index(split)).permutation(len(array))
        images[split] = (array.swapaxes(1, 2) if transpose else array)[order]
    for split, part in (('test', 7), ('validation', 6)):
        if split not in images and 'train' in images:
            _split_off(images, split, part)
    return images


def _find_set(path):
    """{split: path} of the only set of IDX or .amat files in a folder, or of the set that a file belongs to."""
    folder = os.path.isdir(path)
    found = find(path if folder else path.parent)
    sets = {key for key, _, file in found if folder or file == path}
    if len(sets) > 1:
        raise DataError(f'{path} has several sets of images; name a file of the one to use: --dataset {found[0][2]}')
    files = {split: file for key, split, file in reversed(found) if key in sets}  # a raw file comes before its .gz
    return files if files or folder else {'train': path}


def _split_off(images, split, part):
    """Move the last 1/part of the training images to another split."""
    number = len(images['train']) // part
    images['train'], images[split] = images['train'][:-number], images['train'][-number:]


def _checksum(rows):
    return sha256(rows[:1000] if isinstance(rows, TwoDigits) else rows)  # drawing all would take a minute


def _count(facts, splits):
    """50,000 training, 10,000 validation and 10,000 test"""
    return _and([f'{facts["splits"][split]["images"]:,} {split.replace("train", "training")}' for split in splits])


def _and(words):
    return f'{", ".join(words[:-1])} and {words[-1]}' if len(words) > 1 else words[0]
