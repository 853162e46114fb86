"""The data sets with a name: what a name says is true, and where MNIST comes from."""
import contextlib
import gzip
import http.server
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dataset import mnist, two_digits
from dataset.images import DataError, sha256
from dataset.load import SPLITS, load
from dataset.stream import BINARIZATIONS, TrainingStream, evaluation_images
from idx import TEST, TRAIN, error_line, idx_bytes, numbered, numbers, write_idx

IMAGES = {'train': numbered(24), 'test': numbered(5, first=100)}
FILES = {f'{name}.gz': gzip.compress(idx_bytes(images)) for name, images in zip((TRAIN, TEST), IMAGES.values())}
TRAINING = 'train', 'validation'


@pytest.fixture
def small(monkeypatch):
    """Let the small IMAGES be MNIST."""
    monkeypatch.setitem(mnist.CHECKSUMS, 'mnist', {split: sha256(images) for split, images in IMAGES.items()})


def test_last_sixth_of_the_training_file_is_validation(small, tmp_path):
    write_idx(tmp_path / 'MNIST/raw' / TRAIN, IMAGES['train'])
    write_idx(tmp_path / 'MNIST/raw' / f'{TEST}.gz', IMAGES['test'])
    images = load('mnist', tmp_path)
    assert {split: numbers(rows) for split, rows in images.splits.items()} == {
        'train': [*range(20)], 'validation': [*range(20, 24)], 'test': [*range(100, 105)]}
    assert all(rows.dtype == np.uint8 for rows in images.splits.values()) and images.shape == (28, 28)
    assert images.lines == [f'20 training, 4 validation and 5 test images of 28x28 from {tmp_path}/ (MNIST)']


def test_the_checksum_decides_and_not_the_suffix(small, tmp_path):
    (tmp_path / TRAIN).write_bytes(gzip.compress(idx_bytes(IMAGES['train'])))
    (tmp_path / f'{TEST}.gz').write_bytes(idx_bytes(IMAGES['test']))
    write_idx(tmp_path / 'FashionMNIST/raw' / TRAIN, IMAGES['train'][::-1])
    write_idx(tmp_path / 'FashionMNIST/raw' / TEST, IMAGES['test'][::-1])
    assert numbers(load('mnist', tmp_path).splits['test']) == [*range(100, 105)]


def test_training_does_not_need_the_test_file(small, tmp_path):
    write_idx(tmp_path / TRAIN, IMAGES['train'])
    (tmp_path / TEST).write_bytes(b'broken')
    images = load('mnist', tmp_path, splits=('train', 'validation'))
    assert list(images.splits) == ['train', 'validation']
    (tmp_path / TEST).unlink()
    (tmp_path / TRAIN).rename(tmp_path / 'train')
    write_idx(tmp_path / TEST, IMAGES['test'])
    assert list(load('mnist', tmp_path, splits=['test']).splits) == ['test']


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'kmnist'])
def test_other_images_under_a_name_are_refused(tmp_path, name):
    write_idx(tmp_path / TRAIN, IMAGES['train'])
    line = error_line(name, tmp_path)
    assert line.startswith(f"{tmp_path / TRAIN}: these are not {mnist.LABELS[name]}'s files; ")
    assert line.endswith('for your own images: --dataset PATH')


@pytest.mark.parametrize('name, expected', [
    ('fashion_mnist', f'{TRAIN}.gz'), ('kmnist', f'{TRAIN}.gz'), ('fixed_mnist', 'binarized_mnist_train.amat')])
def test_what_is_expected_is_said_and_only_mnist_is_downloaded(tmp_path, name, expected):
    assert expected in error_line(name, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_kmnist_is_known_by_its_compressed_file(tmp_path, monkeypatch):
    write_idx(tmp_path / f'{TEST}.gz', IMAGES['test'])
    checksum = sha256(np.fromfile(tmp_path / f'{TEST}.gz', np.uint8))
    monkeypatch.setitem(mnist.CHECKSUMS, 'kmnist', {'test': checksum})
    assert len(load('kmnist', tmp_path, splits=['test']).splits['test']) == 5


# Downloads from mirrors on the loopback

class Mirror(http.server.ThreadingHTTPServer):
    """A loopback server; `files` maps a name to bytes, or to a function that answers by itself."""

    daemon_threads = True

    def __init__(self, files):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.replace('/mnist/', '', 1)
                self.server.requests.append(name)
                answer = files.get(name) or type(self).send_error
                if callable(answer):
                    answer(self)
                else:
                    self.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n' + answer)

            def send_error(self):
                self.wfile.write(b'HTTP/1.0 404 Not Found\r\n\r\n')

            def log_message(self, *args):
                pass

        self.requests = []
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}/mnist/'
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()


@pytest.fixture
def mirror(small, monkeypatch):
    """Start mirrors, one for each dictionary of files."""
    servers = []

    def start(*all_files):
        servers.extend(Mirror(files) for files in all_files)
        monkeypatch.setattr(mnist, 'MIRRORS', tuple(server.url for server in servers))
        return servers

    monkeypatch.delenv('DRAW_MNIST_MIRROR')
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_only_what_is_needed_is_downloaded(mirror, tmp_path, capsys):
    server, = mirror(FILES)
    folder = tmp_path / 'new' / 'mnist'
    assert numbers(load('mnist', folder, splits=TRAINING).splits['validation']) == [*range(20, 24)]
    assert server.requests == [f'{TRAIN}.gz']
    assert capsys.readouterr().out == f'downloading {server.url}{TRAIN}.gz to {folder}/\n'
    load('mnist', folder)
    load('mnist', folder)
    assert server.requests == [*FILES]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


OWN = {
    **dict.fromkeys([TRAIN, f'{TEST}.gz', 'train-images.idx3-ubyte', 'emnist-letters-train-images-idx3-ubyte.gz',
                     f'MNIST/raw/{TRAIN}'], lambda path: write_idx(path, numbered(6))),
    'digit.png': lambda path: Image.new('L', (28, 28)).save(path),
    'images.npy': lambda path: np.save(path, numbered(6)),
}


@pytest.mark.parametrize('name', OWN)
@pytest.mark.parametrize('splits', [TRAINING, ['test']], ids=['train', 'test'])
def test_nothing_is_downloaded_beside_other_images(mirror, tmp_path, name, splits):
    server, = mirror(FILES)
    OWN[name](tmp_path / name)
    line = error_line('mnist', tmp_path, splits=splits)
    assert line.startswith(f"{tmp_path / name}: these are not MNIST's files; ")
    assert server.requests == []


def endless(handler):
    handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n')
    with contextlib.suppress(OSError):  # the client hangs up
        while True:
            handler.wfile.write(b'x' * 10000)


BAD_ANSWERS = {
    'not found': None,
    'not http': lambda handler: handler.wfile.write(b'hello\r\n\r\n'),
    'not gzip': b'<html>sign in first</html>',
    'truncated': FILES[f'{TRAIN}.gz'][:-5],
    'other images': gzip.compress(idx_bytes(numbered(24, first=1))),
    'bomb': gzip.compress(idx_bytes(numbered(24)) + bytes(10 ** 7)),
    'endless': endless,
    'silent': lambda handler: time.sleep(3),
    'redirect': lambda handler: handler.wfile.write(b'HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n'),
}


@pytest.mark.parametrize('answer', BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_leaves_nothing_and_the_next_mirror_is_asked(mirror, tmp_path, monkeypatch, answer):
    is_silent = answer == BAD_ANSWERS['silent']
    monkeypatch.setattr(mnist, '_MAX_DOWNLOAD', 10 ** 6)
    bad, = mirror({f'{TRAIN}.gz': answer})
    with monkeypatch.context() as patch:
        patch.setattr(mnist, '_TIMEOUT', 0.5 if is_silent else mnist._TIMEOUT)
        line = error_line('mnist', tmp_path / 'new')
    for part in (str(tmp_path / 'new'), TRAIN, TEST, '--dataset synthetic', f'{bad.url}{TRAIN}.gz: '):
        assert part in line
    assert ('timed out' in line) == is_silent
    assert not (tmp_path / 'new').exists()
    mirror(FILES)
    assert len(load('mnist', tmp_path / 'new').splits['test']) == 5


def test_own_mirror_from_the_environment(mirror, tmp_path, monkeypatch):
    other, own = mirror(FILES, FILES)
    monkeypatch.setenv('DRAW_MNIST_MIRROR', own.url.rstrip('/'))
    load('mnist', tmp_path)
    assert (other.requests, own.requests) == ([], [*FILES])


@pytest.mark.parametrize('raised', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_an_interrupted_write_leaves_nothing(mirror, tmp_path, monkeypatch, raised):
    def fail(*args):
        raise raised

    mirror(FILES)
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(type(raised)):
        load('mnist', tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(mirror, tmp_path, monkeypatch):
    server, = mirror(FILES)
    (tmp_path / 'file').write_text('kept')
    assert f'{tmp_path}/file is not a folder' in error_line('mnist', tmp_path / 'file')
    assert f'{tmp_path}/file is not a folder' in error_line('mnist', tmp_path / 'file' / 'below')
    assert f'{tmp_path}/mistyped.npz is not a folder' in error_line('mnist', tmp_path / 'mistyped.npz')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    assert f'{tmp_path} is not a folder that can be written to' in error_line('mnist', tmp_path / 'data')
    assert server.requests == []
    assert os.listdir(tmp_path) == ['file']


# Fixed binarization

@pytest.fixture
def fixed(monkeypatch):
    """{split: float32 (n, 784) of 0 and 1}, which stand for the fixed binarization."""
    rng = np.random.default_rng(0)
    rows = {split: (rng.random((n, 784)) < 0.5).astype(np.float32) for split, n in zip(SPLITS, (7, 3, 2))}
    monkeypatch.setitem(mnist.CHECKSUMS, 'fixed_mnist', {
        split: sha256((255 * images).astype(np.uint8)) for split, images in rows.items()})
    return rows


def write_amat(folder, rows):
    for split, images in rows.items():
        lines = [' '.join(map(str, image)) for image in images.astype(int)]
        (folder / f'binarized_mnist_{split.replace("ation", "")[:5]}.amat').write_text('\n'.join(lines) + '\n')


def write_npz(folder, rows):
    np.savez_compressed(folder / 'fixed.npz', **{f'X_{split.replace("ation", "")}': rows[split] for split in rows})


@pytest.mark.parametrize('write, below', [(write_amat, ''), (write_npz, ''), (write_npz, 'fixed.npz')])
def test_fixed_binarization(tmp_path, fixed, write, below):
    write(tmp_path, fixed)
    images = load('fixed_mnist', tmp_path / below)
    for split, rows in fixed.items():
        np.testing.assert_array_equal(images.splits[split], 255 * rows)
        for binarization in BINARIZATIONS:
            np.testing.assert_array_equal(evaluation_images(images.splits[split], binarization), rows)
    batch = TrainingStream(images.splits['train'], 'dynamic', seed=5).batch(7, 7)
    assert sorted(map(bytes, batch)) == sorted(map(bytes, fixed['train']))


def test_another_binarization_is_refused(tmp_path, fixed):
    write_npz(tmp_path, {split: 1 - rows for split, rows in fixed.items()})
    assert "not fixed binarized MNIST's files" in error_line('fixed_mnist', tmp_path)
    write_amat(tmp_path, fixed)
    (tmp_path / 'binarized_mnist_train.amat').write_text('0 1 2\n')
    assert 'binarized_mnist_train.amat does not hold lines of 784' in error_line('fixed_mnist', tmp_path)


# Two digits

@pytest.fixture
def digits(small, tmp_path, monkeypatch):
    """A folder with MNIST's two files: full squares of one intensity."""
    images = np.full((24, 28, 28), 200, np.uint8)
    images[20:] = 60
    monkeypatch.setitem(mnist.CHECKSUMS, 'mnist', {'train': sha256(images), 'test': sha256(images[:5] + 1)})
    monkeypatch.setattr(two_digits, '_NUMBER', {'train': 1000000, 'validation': 500, 'test': 500})
    write_idx(tmp_path / TRAIN, images)
    write_idx(tmp_path / TEST, images[:5] + 1)
    return tmp_path


def test_two_digits_are_added_and_clipped(digits):
    images = load('two_digits', digits)
    assert images.shape == (60, 60)
    assert [images.splits[split].shape for split in SPLITS] == [(1000000, 3600), (500, 3600), (500, 3600)]
    for split, intensity in (('train', 200), ('validation', 60), ('test', 201)):  # of this split's digits alone
        rows = images.splits[split][:200].astype(int)
        assert set(np.unique(rows)) == {0, intensity, min(2 * intensity, 255)}
        assert np.all((rows > 0).sum(axis=1) + (rows > intensity).sum(axis=1) == 2 * 784)
        assert len(set(map(bytes, rows))) == 200
        places = rows.reshape(-1, 60, 60).any(axis=0)
        assert places[[0, 30, 59, 30], [30, 0, 30, 59]].all()  # up to every border


def test_two_digits_of_a_row_depend_on_its_number_alone(digits):
    train = load('two_digits', digits, splits=['train']).splits['train']
    np.testing.assert_array_equal(train[[7, 999999, 3]], np.concatenate([train[7:8], train[999999:], train[3:4]]))
    batches = [TrainingStream(train, binarization, seed=1) for binarization in BINARIZATIONS]
    validation = load('two_digits', digits, splits=['validation']).splits['validation']
    assert np.any((train[:3] > 0) != (validation[:3] > 0))
    with pytest.raises(DataError, match='two_digits: an array of 1000000x60x60 takes more than'):
        train[:]
    for stream in batches:
        np.testing.assert_array_equal(stream.batch(999990, 20)[5:], stream.batch(999995, 15))
    resized = load('two_digits', digits, (30, 40), ['train'])
    assert resized.splits['train'][:2].shape == (2, 1200)
    assert resized.lines[1] == 'The images were resized from 60x60.'


# Synthetic digits

def test_synthetic_digits_are_what_they_were():
    """Runs are resumed and compared on the same pixels; these checksums are from before the data sets had checksums."""
    synthetic = load('synthetic')
    assert {split: facts['sha256'][:16] for split, facts in synthetic.facts['splits'].items()} == {
        'train': '9981e035cbf34a47', 'validation': 'f349615c1f8f9356', 'test': '306d80ee21ff4458'}
    assert synthetic.facts['path'] is None
    assert synthetic.lines == ['20,000 training, 2,000 validation and 2,000 test images of 28x28 (synthetic digits)']
    np.random.seed(99)
    again = load('synthetic', splits=['validation']).splits['validation']
    np.testing.assert_array_equal(again, synthetic.splits['validation'])
