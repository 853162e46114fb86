"""dataset/mnist.py without a network: splits, damaged files, resizing."""
import gzip
import os
import pathlib
import signal
import socket
import struct
import tracemalloc

import numpy as np
import pytest

from dataset import mnist, stream
from dataset import synthetic as synthetic_digits
from idx import TEST, TRAIN, error_line, idx_bytes, numbered_images, write_idx, write_mnist


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch):
    """No test reaches a real mirror, and no proxy stands before the loopback."""
    monkeypatch.setattr(mnist, 'MIRRORS', ())
    monkeypatch.delenv('DRAW_MNIST_MIRROR', raising=False)
    monkeypatch.setenv('no_proxy', '*')


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_last_sixth_of_training_file_is_validation(tmp_path, suffix):
    write_idx(tmp_path / f'{TRAIN}{suffix}', numbered_images(20))
    write_idx(tmp_path / f'{TEST}{suffix}', numbered_images(4) + 100)
    splits = stream.load('mnist', str(tmp_path), (2, 3))
    assert tuple(splits) == stream.SPLITS == ('train', 'validation', 'test')
    for split, numbers in (('train', range(17)), ('validation', range(17, 20)), ('test', range(100, 104))):
        assert splits[split].dtype == np.uint8
        np.testing.assert_array_equal(splits[split], np.repeat(np.array(numbers)[:, None], 6, axis=1))


def test_pixels_are_row_by_row(tmp_path):
    images = np.arange(6 * 6, dtype=np.uint8).reshape(6, 2, 3)
    write_idx(tmp_path / TRAIN, images)
    write_idx(tmp_path / TEST, images[:1])
    splits = stream.load('mnist', tmp_path, (2, 3))
    np.testing.assert_array_equal(splits['train'][1], [6, 7, 8, 9, 10, 11])


def test_raw_file_comes_before_gz(tmp_path):
    write_idx(tmp_path / TRAIN, numbered_images(6))
    write_idx(tmp_path / TEST, numbered_images(1))
    (tmp_path / f'{TEST}.gz').write_bytes(b'broken')
    assert len(stream.load('mnist', tmp_path, (2, 3))['test']) == 1


def test_write_mnist_gives_loadable_images(tmp_path):
    write_mnist(tmp_path)
    assert {f'{TRAIN}.gz', f'{TEST}.gz'} <= {path.name for path in tmp_path.iterdir()}
    splits = stream.load('mnist', tmp_path, (28, 28))
    assert [splits[split].shape for split in stream.SPLITS] == [(100, 784), (20, 784), (30, 784)]
    assert 5 < splits['train'].mean() < 100


GOOD = idx_bytes(numbered_images(12))
HEADER = GOOD[:16]


def promise(n, height=28, width=28):
    return struct.pack('>4I', 2051, n, height, width)


RAW_DAMAGE = {
    'empty': (b'', '0 bytes'),
    'half a header': (GOOD[:7], '7 bytes'),
    'most of a header': (GOOD[:15], '15 bytes'),
    'no pixels': (HEADER, 'only 0'),
    'truncated': (GOOD[:-1], 'only 71'),
    'trailing byte': (GOOD + b'\0', 'more'),
    'labels': (idx_bytes(np.arange(20)), '2049'),
    'other magic': (b'PNG!' + GOOD[4:], str(int.from_bytes(b'PNG!', 'big'))),
    'no images': (promise(0), '0 images'),
    'no width': (promise(12, 2, 0), '2x0'),
    'promises 2^31 images': (promise(2 ** 31) + GOOD, str(2 ** 31)),
    'promises 2^96 bytes': (promise(2 ** 32 - 1, 2 ** 32 - 1, 2 ** 32 - 1) + GOOD, str(2 ** 32 - 1)),
    'promises 1 GiB': (promise(2 ** 30, 1, 1) + GOOD, str(2 ** 30)),
    'longer than promised': (promise(1, 2, 3) + bytes(60 * 2 ** 20), 'more'),
    'too few images': (idx_bytes(numbered_images(5)), '5 images'),
}
GZ_DAMAGE = {
    'empty': (b'', '0 bytes'),
    'not gzip': (GOOD, 'gzip'),
    'truncated gzip': (gzip.compress(GOOD)[:-9], 'ended'),
    'no checksum': (gzip.compress(GOOD)[:-8], 'ended'),
    'wrong checksum': (gzip.compress(GOOD)[:-8] + bytes(4) + gzip.compress(GOOD)[-4:], 'CRC'),
    'bad deflate data': (gzip.compress(GOOD)[:10] + b'\xff' * 50, 'invalid'),
    'bytes after gzip': (gzip.compress(GOOD) + b'x', 'gzip'),
    **{name: (gzip.compress(content), found) for name, (content, found) in RAW_DAMAGE.items() if content},
}


@pytest.mark.parametrize('name, content, found', [
    pytest.param(f'{TRAIN}{suffix}', *damage[case], id=f'{case}{suffix}')
    for suffix, damage in (('', RAW_DAMAGE), ('.gz', GZ_DAMAGE)) for case in damage])
def test_damaged_file_gives_one_line_and_takes_no_memory(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    write_idx(tmp_path / TEST, numbered_images(2))
    tracemalloc.start()
    try:
        message = error_line(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(tmp_path / name) in message
    assert found in message.replace(str(tmp_path), '')
    assert peak < 8 * 2 ** 20


def test_damaged_test_file_is_named(tmp_path):
    write_idx(tmp_path / TRAIN, numbered_images(12))
    (tmp_path / TEST).write_bytes(GOOD[:-1])
    assert str(tmp_path / TEST) in error_line(tmp_path)


def test_split_that_is_not_wanted_is_not_read(tmp_path):
    write_idx(tmp_path / TRAIN, numbered_images(12))
    (tmp_path / f'{TEST}.gz').write_bytes(b'broken')
    splits = stream.load('mnist', tmp_path, (2, 3), ('validation', 'train'))
    assert {split: len(images) for split, images in splits.items()} == {'train': 10, 'validation': 2}
    (tmp_path / TRAIN).rename(tmp_path / TEST)  # and it need not be there
    assert list(stream.load('mnist', tmp_path, (2, 3), ['test'])) == ['test']
    error_line(tmp_path, splits=['validation'])


def bind(path):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


NO_FILES = {
    'folder': lambda path: path.mkdir(),
    'pipe': os.mkfifo,
    'device': lambda path: path.symlink_to('/dev/zero'),
    'link in a circle': lambda path: path.symlink_to(path.name),
    'link to nothing': lambda path: path.symlink_to('nothing'),
    'socket': bind,
}


@pytest.fixture
def alarm():
    """Fail instead of waiting for ever."""
    def fail(*args):
        raise AssertionError('waited for a file')

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('suffix', ['', '.gz'])
@pytest.mark.parametrize('make', list(NO_FILES.values()), ids=list(NO_FILES))
def test_what_is_no_file_is_neither_waited_for_nor_replaced(tmp_path, monkeypatch, alarm, make, suffix):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(pathlib.Path(f'{TRAIN}{suffix}'))
    write_idx(tmp_path / TEST, numbered_images(2))

    def state():  # without the time of access, which reading a link changes
        entry = os.lstat(f'{TRAIN}{suffix}')
        return entry.st_ino, entry.st_mode, entry.st_size, entry.st_mtime_ns

    before = state()
    assert str(tmp_path / f'{TRAIN}{suffix}') in error_line(tmp_path)
    assert state() == before


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, 'Permission denied', str(path))

    write_mnist(tmp_path)
    monkeypatch.setattr(gzip, 'open', refuse)  # root may read all files
    assert error_line(tmp_path) == f'{tmp_path / TRAIN}.gz cannot be read: Permission denied'


def test_unknown_dataset(tmp_path):
    assert 'cifar' in error_line(tmp_path, dataset='cifar')


# Resizing

def load_test_image(folder, image, shape):
    write_idx(folder / TRAIN, np.zeros((6, 1, 1)))
    write_idx(folder / TEST, np.asarray(image)[None])
    return stream.load('mnist', folder, shape)['test'].reshape(shape)


@pytest.mark.parametrize('shape', [(6, 10), (10, 6), (24, 20), (4, 4)])
def test_resize_keeps_orientation(tmp_path, shape):
    top = np.zeros((12, 12))
    top[:6] = 255
    resized = load_test_image(tmp_path, top, shape)
    np.testing.assert_array_equal(resized[0], 255)
    np.testing.assert_array_equal(resized[-1], 0)
    resized = load_test_image(tmp_path, top.T, shape)
    np.testing.assert_array_equal(resized[:, 0], 255)
    np.testing.assert_array_equal(resized[:, -1], 0)


def test_resize_averages_and_keeps_grey_levels(tmp_path):
    checkerboard = np.indices((24, 24)).sum(axis=0) % 2 * 255
    assert np.ptp(load_test_image(tmp_path, checkerboard, (6, 8))[1:-1, 1:-1].astype(int) - 127) <= 2
    np.testing.assert_array_equal(load_test_image(tmp_path, np.full((28, 28), 200), (13, 40)), 200)


def test_size_beyond_the_memory_is_refused_before_images_are_read_or_drawn(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError

    write_mnist(tmp_path)
    for module, name in ((mnist, '_read_at_most'), (synthetic_digits, 'generator')):
        monkeypatch.setattr(module, name, refuse)
    for dataset in stream.DATASETS:
        for splits in (stream.SPLITS, ('test',)):
            line = error_line(tmp_path, dataset, (100000, 100000), splits)
            assert '100000x100000' in line and 'bytes' in line
    assert f'{TEST}.gz: 30 images' in error_line(tmp_path, 'mnist', (10000, 10000), ('test',))
    assert '2000 images' in error_line(tmp_path, 'synthetic', (1000, 1000), ('test',))
