"""One's own images: what is read, what is refused, and how a run knows its images again."""
import errno
import gzip
import io
import os
import types
import zipfile

from system import cli

import numpy as np
import pytest
from PIL import ExifTags, Image

from dataset import images as limits
from dataset.images import DataError
from dataset.load import SPLITS, dataset_name, load, load_of_run, same_images
from idx import TEST, TRAIN, error_line, header, idx_bytes, numbered, numbers, write_idx


def every_number(path, **kwargs):
    """The sorted numbers of all `numbered` images in a path."""
    return sorted(sum(map(numbers, load(str(path), **kwargs).splits.values()), []))


# Where images are found

@pytest.mark.parametrize('train, test', [
    (TRAIN, TEST), (f'{TRAIN}.gz', f'{TEST}.gz'), ('train-images.idx3-ubyte', 't10k-images.idx3-ubyte'),
    ('emnist-letters-train-images-idx3-ubyte.gz', 'emnist-letters-test-images-idx3-ubyte.gz'),
    (f'MNIST/raw/{TRAIN}', f'MNIST/raw/{TEST}.gz')])
def test_idx_files_under_any_usual_name(tmp_path, train, test):
    write_idx(tmp_path / train, numbered(12))
    write_idx(tmp_path / test, numbered(4, first=100))
    for path in tmp_path, tmp_path / train:
        splits = load(str(path)).splits
        assert sorted(numbers(splits['test'])) == [100, 101, 102, 103]
        assert [len(splits[split]) for split in SPLITS] == [10, 2, 4]


def test_several_sets_in_a_folder_are_told_apart_by_a_file(tmp_path):
    for k, name in enumerate(('balanced', 'letters')):
        write_idx(tmp_path / f'emnist-{name}-train-images-idx3-ubyte', numbered(12, first=20 * k))
        write_idx(tmp_path / f'emnist-{name}-test-images-idx3-ubyte', numbered(4, first=100))
    path = tmp_path / 'emnist-letters-train-images-idx3-ubyte'
    assert f'--dataset {tmp_path}/emnist-' in error_line(str(tmp_path))
    assert every_number(path) == [*range(20, 32), 100, 101, 102, 103]


def test_numpy_arrays(tmp_path):
    np.save(tmp_path / 'a.npy', numbered(14))
    np.savez(tmp_path / 'keras.npz', x_train=numbered(12), y_train=np.arange(12), x_test=numbered(4, first=100))
    np.savez_compressed(tmp_path / 'all.npz', X_train=numbered(7), X_valid=numbered(3), X_test=numbered(4) / 255)
    np.savez(tmp_path / 'one.npz', numbered(7)[..., None])
    assert every_number(tmp_path / 'a.npy') == [*range(14)]
    assert [len(load(str(tmp_path / 'keras.npz')).splits[split]) for split in SPLITS] == [10, 2, 4]
    assert [len(load(str(tmp_path / 'all.npz')).splits[split]) for split in SPLITS] == [7, 3, 4]
    assert every_number(tmp_path / 'one.npz') == [*range(7)]


def test_rows_of_square_images_and_bools(tmp_path):
    np.save(tmp_path / 'rows.npy', numbered(7).reshape(7, 784) > 127)
    images = load(str(tmp_path / 'rows.npy'))
    assert images.shape == (28, 28)
    assert np.unique(images.splits['train']).tolist() == [0, 255]
    assert images.lines[1] == 'The images were shuffled and unfolded from rows of 784 pixels.'


def write_pictures(folder, images, suffix='.png'):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f'{i:03}{suffix}')


def test_a_folder_of_pictures(tmp_path):
    write_pictures(tmp_path / 'a', numbered(10))
    write_pictures(tmp_path / 'b' / '2026' / '11' / '29', numbered(4, first=10))
    (tmp_path / 'a' / '.hidden.png').write_bytes(b'')
    write_pictures(tmp_path / '.thumbnails', numbered(3, (4, 4)))
    assert every_number(tmp_path) == [*range(14)]
    assert load(str(tmp_path)).lines[1] == 'The images were shuffled.'
    (tmp_path / 'a' / 'notes.txt').write_text('')
    assert load(str(tmp_path)).lines[1] == 'The images were read without notes.txt and shuffled.'


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """A run without a part of its images would look like any other."""
    for name in 'ab':
        write_pictures(tmp_path / name, numbered(10))
    scan = os.scandir

    def scandir(path):
        if str(path).endswith('b'):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError, match=f'{tmp_path}/b'):
        load(str(tmp_path))


@pytest.mark.parametrize('train, test', [('train', 'test'), ('Training', 'testing')])
def test_a_folder_for_each_split(tmp_path, train, test):
    write_pictures(tmp_path / train, numbered(12), '.JPEG')
    write_pictures(tmp_path / test / 'class' / 'of', numbered(5, first=100))
    write_pictures(tmp_path / 'cars', numbered(5))
    images = load(str(tmp_path))
    splits = images.splits
    assert [len(splits[split]) for split in SPLITS] == [10, 2, 5]
    assert sorted(numbers(splits['test'])) == [*range(100, 105)]
    assert images.lines[1] == f'The images were shuffled and taken from {train}/ and {test}/.'


def test_palettes_with_transparency_give_no_warning(tmp_path):
    for i, image in enumerate(numbered(7)):
        Image.fromarray(image).convert('P').save(tmp_path / f'{i}.png', transparency=b'\x00\x10')
    assert every_number(tmp_path) == [*range(7)]
    assert load(str(tmp_path)).lines[1] == (
        'The images were converted to grey, shuffled and stripped of their transparency.')


def test_black_drawings_on_a_transparent_ground(tmp_path):
    for i, image in enumerate(numbered(7)):
        Image.fromarray(np.dstack([0 * image] * 3 + [image])).save(tmp_path / f'{i}.png')
    assert 'dark without their transparency' in error_line(str(tmp_path))


def test_one_picture_or_few(tmp_path):
    write_pictures(tmp_path, numbered(6))
    assert 'give the folder of your pictures' in error_line(str(tmp_path / '000.png'))
    assert 'put them into a folder test/' in error_line(str(tmp_path))
    np.save(tmp_path / 'few.npy', numbered(6))
    assert 'save them as x_test' in error_line(str(tmp_path / 'few.npy'))


def test_pictures_of_16_bits_keep_their_intensities(tmp_path):
    write_pictures(tmp_path, numbered(7).astype(np.uint16) * 257)
    assert every_number(tmp_path) == [*range(7)]


def test_photos_are_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored on its side, to be turned clockwise
    for i, image in enumerate(numbered(7, (4, 6))):
        Image.fromarray(np.rot90(image)).save(tmp_path / f'{i}.png', exif=exif)
    assert every_number(tmp_path) == [*range(7)]
    assert load(str(tmp_path)).shape == (4, 6)


def test_colour_becomes_grey_with_a_line(tmp_path):
    colour = np.zeros((7, 5, 6, 3), np.uint8)
    colour[:, 0, 0], colour[:, 0, 1] = (255, 0, 0), 255
    write_pictures(tmp_path / 'png', colour)
    np.save(tmp_path / 'array.npy', colour)
    for path in ('png', 'array.npy'):
        images = load(str(tmp_path / path))
        assert set(images.splits['train'][:, 0]) == {76}  # 0.299 * 255
        assert images.lines[1] == 'The images were converted to grey and shuffled.'


def test_transpose(tmp_path):
    write_idx(tmp_path / TRAIN, numbered(7, (4, 6)))
    write_pictures(tmp_path / 'png', numbered(7, (4, 6)))
    for path in (tmp_path, tmp_path / 'png'):
        images = load(str(path), transpose=True)
        assert images.shape == (6, 4)
        assert (images.splits['train'][:, 4] == 255).all()  # pixel 1 of row 0 is pixel 0 of row 1
        assert images.lines[1] == 'The images were shuffled and transposed.'
    resized = [load(str(path), image_shape=(12, 8), transpose=True) for path in (tmp_path, tmp_path / 'png')]
    np.testing.assert_allclose(*(images.splits['train'].astype(int) for images in resized), atol=2)
    assert '--transpose' in error_line('mnist', transpose=True)


# Sizes

def test_images_keep_their_size_and_resizing_is_said(tmp_path, monkeypatch):
    write_idx(tmp_path / 'data' / TRAIN, numbered(70, (16, 12)))
    monkeypatch.chdir(tmp_path)
    images = load('data')
    assert images.shape == (16, 12)
    assert images.lines == ['50 training, 10 validation and 10 test images of 16x12 from data/',
                            'The images were shuffled.']
    images = load('data', image_shape=(28, 28), splits=['validation'])
    assert images.splits['validation'].shape == (10, 784)
    assert images.lines == ['50 training, 10 validation and 10 test images of 28x28 from data/',
                            'The images were resized from 16x12 and shuffled.']


def test_pictures_of_several_sizes_need_a_size(tmp_path):
    write_pictures(tmp_path / 'a', numbered(4, (8, 9)))
    write_pictures(tmp_path / 'b', numbered(4, (9, 8)))
    assert 'images of 8x9 and of 9x8: choose one size with --input_height' in error_line(str(tmp_path))
    assert load(str(tmp_path), image_shape=(8, 8)).lines[1] == 'The images were resized from 2 sizes and shuffled.'


def test_training_images_give_the_size(tmp_path):
    write_pictures(tmp_path / 'test', numbered(3, (9, 8)))
    write_pictures(tmp_path / 'train', numbered(12, (8, 9)))
    np.savez(tmp_path / 'a.npz', x_test=numbered(3, (9, 8)), x_train=numbered(12, (8, 9)))
    for path in tmp_path, tmp_path / 'a.npz':
        images = load(str(path))
        assert images.shape == (8, 9) and images.lines[1].startswith('The images were resized from 9x8')


@pytest.mark.parametrize('shape', [(6, 10), (24, 20), (4, 4)])
def test_resizing_averages_and_keeps_orientation(tmp_path, shape):
    halves = np.zeros((7, 12, 12), np.uint8)
    halves[:, :6] = 255
    np.save(tmp_path / 'halves.npy', halves)
    np.save(tmp_path / 'checkerboard.npy', np.indices((7, 24, 24))[1:].sum(axis=0) % 2 * 255)
    resized = load(str(tmp_path / 'halves.npy'), image_shape=shape).splits['train'].reshape(-1, *shape)
    assert (resized[:, 0] == 255).all() and (resized[:, -1] == 0).all()
    grey = load(str(tmp_path / 'checkerboard.npy'), image_shape=(6, 8)).splits['train'].reshape(-1, 6, 8)
    assert np.ptp(grey[:, 1:-1, 1:-1].astype(int) - 127) <= 2


# The split

def test_test_images_alone_can_be_evaluated(tmp_path):
    write_pictures(tmp_path / 'test', numbered(3))
    assert sorted(numbers(load(str(tmp_path), splits=['test']).splits['test'])) == [0, 1, 2]
    assert 'images for test, but none for training' in error_line(str(tmp_path), splits=['validation'])


def test_two_names_for_one_split_are_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', x_train=numbered(12), x_valid=numbered(3), x_val=numbered(2))
    for name in ('train', 'test', 'testing'):
        write_pictures(tmp_path / name, numbered(7))
    assert 'has both x_val and x_valid: keep one' in error_line(str(tmp_path / 'a.npz'))
    assert 'has both test and testing: keep one' in error_line(str(tmp_path))


def test_files_sorted_by_class_give_mixed_splits(tmp_path):
    images = numbered(10).repeat(70, axis=0)
    write_idx(tmp_path / TRAIN, images)
    splits = load(str(tmp_path)).splits
    assert [len(splits[split]) for split in SPLITS] == [500, 100, 100]
    write_idx(tmp_path / TEST, images)
    for rows in (*splits.values(), load(str(tmp_path)).splits['test']):
        assert set(numbers(rows[:60])) == {*range(10)}  # the first images alone show every class


def test_the_permutation_is_fixed(tmp_path):
    np.save(tmp_path / 'a.npy', numbered(70))
    np.random.seed(4)
    first = load(str(tmp_path / 'a.npy'))
    assert load(str(tmp_path / 'a.npy'), splits=['test', 'train']).facts == first.facts
    assert numbers(first.splits['train']) != sorted(numbers(first.splits['train']))
    assert numbers(first.splits['test'])[:5] == [49, 67, 51, 62, 66]  # as old runs had them


# What are no intensities

@pytest.mark.parametrize('low, high, dtype', [
    (0, 1, np.uint8), (0, 16, np.uint8), (255, 255, np.uint8), (0, 0, np.uint8), (0, 65535, np.uint16), (-1, 1, float),
    (0, 255, float), (-128, 127, np.int8), (0, np.nan, float), (0, 0, bool)])
def test_pixels_that_cannot_be_intensities(tmp_path, low, high, dtype):
    images = np.full((7, 3, 3), low, dtype)
    images[3, 1, 1] = high
    np.save(tmp_path / 'a.npy', images)
    line = error_line(str(tmp_path / 'a.npy'))
    assert f'{tmp_path}/a.npy has pixels from ' in line
    assert 'expected integers from 0 to 255' in line


def test_pictures_and_idx_files_of_zeros_and_ones(tmp_path):
    write_pictures(tmp_path / 'png', numbered(7) // 255)
    write_idx(tmp_path / 'idx' / TRAIN, numbered(7) // 255)
    for name in ('png', 'idx'):
        assert 'has pixels from 0 to 1; expected' in error_line(str(tmp_path / name))


@pytest.mark.parametrize('shape', [(7,), (7, 3), (7, 2, 3, 5), (7, 3, 4, 5, 3), (0, 3, 3)])
def test_arrays_that_are_no_images(tmp_path, shape):
    np.save(tmp_path / 'a.npy', np.zeros(shape))
    assert f'in the shape {shape}; expected images' in error_line(str(tmp_path / 'a.npy'))


# Damaged files

GOOD = idx_bytes(numbered(14))
DAMAGED = {
    'empty': b'', 'half a header': GOOD[:10], 'truncated': GOOD[:-1], 'longer': GOOD + b'\0', 'png': b'\x89PNG' + GOOD,
    'labels': idx_bytes(np.ones(9)), '255 dimensions': b'\0\0\x08\xff' + bytes(range(256)) * 4,
    'signed': b'\0\0\x09\3' + GOOD[4:], 'no images': header(0, 28, 28), 'too few': idx_bytes(numbered(6)),
    'promises much': header(2 ** 20, 28, 28) + GOOD, 'promises more': header(*3 * [2 ** 32 - 1]) + GOOD,
    'truncated gzip': gzip.compress(GOOD)[:-9],
    'wrong checksum': gzip.compress(GOOD)[:-8] + bytes(8), 'bad gzip': gzip.compress(GOOD)[:10] + b'\xff' * 50}


@pytest.mark.parametrize('content', DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_idx_file_is_one_line(tmp_path, content):
    (tmp_path / TRAIN).write_bytes(content)
    assert len(error_line(str(tmp_path))) < 500


def npy_header(length):
    """The header of an .npy file that promises so many images of one pixel."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': (length, 1, 1)})
    return file.getvalue()


def cut_short(path):
    write_pictures(path.parent, numbered(1))
    path.write_bytes((path.parent / '000.png').read_bytes()[:50])


NO_IMAGES = {  # how to make a file, and what is said of it
    'pickled.npz': (lambda path: np.savez(path, x_train=np.array([{}], dtype=object)), 'Object arrays cannot'),
    'pickled.npy': (lambda path: np.save(path, np.array([{}], dtype=object)), 'Object arrays cannot'),
    'notes.npz': (lambda path: zipfile.ZipFile(path, 'w').writestr('notes', 'hello'), 'holds |S5 in the shape ()'),
    'flat.npy': (lambda path: np.save(path, np.zeros((7, 0))), 'in the shape (7, 0)'),
    'text.npy': (lambda path: path.write_text('0 1 2'), 'cannot be read'),
    'text.npz': (lambda path: path.write_text('0 1 2'), 'cannot be read'),
    'names.npz': (lambda path: np.savez(path, images=numbered(7), labels=np.arange(7)), 'expected x_train and'),
    'test.npz': (lambda path: np.savez(path, x_test=numbered(7)), 'images for test, but none for training'),
    'shape.npy': (lambda path: path.write_bytes(npy_header(2 ** 50)), 'cannot be read'),
    'text.png': (lambda path: path.write_text('0 1 2'), 'cannot identify image'),
    'cut.png': (cut_short, 'cannot be read'),
    'large.png': (lambda path: Image.new('1', (9500, 9500)).save(path), 'exceeds limit'),
    'loop.png': (lambda path: path.symlink_to('.'), 'is a link to a folder that it is in'),
    'link.png': (lambda path: path.symlink_to(path.name), 'Too many levels of symbolic links'),
    'nothing.npy': (lambda path: path.symlink_to('nothing'), 'does not exist'),
}


@pytest.mark.parametrize('name', NO_IMAGES)
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    make, said = NO_IMAGES[name]
    make(tmp_path / name)
    line = error_line(str(tmp_path if name.endswith('.png') else tmp_path / name))
    assert str(tmp_path / name) in line
    assert said in line


def test_a_path_without_images(tmp_path):
    assert 'mnits does not exist; --dataset is one of mnist, fashion_mnist,' in error_line('mnits')
    assert 'neither PNG or JPEG files nor IDX files' in error_line(str(tmp_path))


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_BYTES', 10 ** 4)
    np.save(tmp_path / 'a.npy', numbered(7))
    write_pictures(tmp_path / 'png', numbered(7, (4, 4)))
    load(str(tmp_path / 'a.npy'))
    for name in ('a.npy', 'png'):
        assert 'takes more than 10,000 bytes' in error_line(str(tmp_path / name), image_shape=(1000, 1000))


# A run and its images

def test_paths_are_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert dataset_name('mnist') == 'mnist'
    assert dataset_name('./mnist') == cli.path('~/mnist') == cli.path('mnist') == str(tmp_path / 'mnist')


def arguments(dataset, shape, transpose):
    return types.SimpleNamespace(dataset=dataset, data_dir=cli.path('data'), input_height=shape[0],
                                 input_width=shape[1], transpose=transpose)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """That of a run that was trained, from another folder, on the images in own/, transposed."""
    write_idx(tmp_path / 'own' / TRAIN, numbered(70, (4, 3)))
    monkeypatch.chdir(tmp_path)
    images = load('own', splits=('train', 'validation'), transpose=True)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    return {'arguments': arguments(images.facts['dataset'], (3, 4), True), 'images': images.facts}


def test_a_run_finds_its_images_from_another_folder(config, tmp_path):
    assert config['images']['dataset'] == config['images']['path'] == str(tmp_path / 'own')
    assert {split: facts['images'] for split, facts in config['images']['splits'].items()} == {
        'train': 50, 'validation': 10, 'test': 10}
    images = load_of_run(config, ['test'])
    assert images.facts == config['images']
    assert list(images.splits) == ['test']


def test_other_images_than_those_of_a_run_are_refused(config, tmp_path):
    write_idx(tmp_path / 'own' / TRAIN, numbered(70, (4, 3), first=1))
    write_idx(tmp_path / 'other' / TRAIN, numbered(14))
    with pytest.raises(DataError) as caught:
        load_of_run(config, ['test'])
    assert str(caught.value).count(f'50 training, 10 validation and 10 test images of 3x4 from {tmp_path}/own (') == 2
    assert str(caught.value).isprintable()
    images = load_of_run(config, ['test'], dataset=str(tmp_path / 'other'))
    assert images.splits['test'].shape == (2, 12)
    with pytest.raises(DataError, match='give --dataset PATH'):
        load_of_run(config, ['test'], data_dir=tmp_path / 'other')
    with pytest.raises(DataError, match='own.*other'):
        same_images(config['images'], images.facts)


def test_moved_images_are_the_same(config, tmp_path):
    (tmp_path / 'own').rename(tmp_path / 'moved')
    same_images(config['images'], load(str(tmp_path / 'moved'), splits=['test'], transpose=True).facts)


def test_an_old_run_has_no_facts():
    config = {'arguments': arguments('synthetic', (28, 28), False)}
    assert load_of_run(config, ['test']).splits['test'].shape == (2000, 784)
