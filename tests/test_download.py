"""Downloads of MNIST from mirrors on the loopback, bad ones among them."""
import contextlib
import gzip
import http.server
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dataset import mnist
from dataset.images import sha256
from dataset.load import load
from idx import TEST, TRAIN, error_line, idx_bytes, numbered, numbers, write_idx

IMAGES = {'train': numbered(12), 'test': numbered(3, first=100)}
FILES = {f'{name}.gz': gzip.compress(idx_bytes(images)) for name, images in zip((TRAIN, TEST), IMAGES.values())}
TRAINING = 'train', 'validation'


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
def mirror(monkeypatch):
    """Start mirrors, one for each dictionary of files; IMAGES are to be MNIST."""
    servers = []

    def start(*all_files):
        servers.extend(Mirror(files) for files in all_files)
        monkeypatch.setattr(mnist, 'MIRRORS', tuple(server.url for server in servers))
        return servers

    monkeypatch.delenv('DRAW_MNIST_MIRROR')
    monkeypatch.setitem(mnist.CHECKSUMS, 'mnist', {split: sha256(images) for split, images in IMAGES.items()})
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_only_what_is_needed_is_downloaded(mirror, tmp_path, capsys):
    server, = mirror(FILES)
    folder = tmp_path / 'new' / 'mnist'
    assert numbers(load('mnist', folder, splits=TRAINING).splits['validation']) == [10, 11]
    assert server.requests == [f'{TRAIN}.gz']
    assert capsys.readouterr().out == f'downloading {server.url}{TRAIN}.gz\n'
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
    assert f"{tmp_path / name}: these are not MNIST's files; for your own images: --dataset PATH" == error_line(
        'mnist', tmp_path, splits=splits)
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
    'other images': gzip.compress(idx_bytes(numbered(12, first=1))),
    'bomb': gzip.compress(idx_bytes(numbered(12)) + bytes(10 ** 7)),
    'endless': endless,
    'silent': lambda handler: time.sleep(3),
    'redirect': lambda handler: handler.wfile.write(b'HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n'),
}


@pytest.mark.parametrize('answer', BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_leaves_nothing_and_the_next_mirror_is_asked(mirror, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(mnist, '_TIMEOUT', 0.5)
    monkeypatch.setattr(mnist, '_MAX_DOWNLOAD', 10 ** 6)
    bad, = mirror({f'{TRAIN}.gz': answer})
    line = error_line('mnist', tmp_path / 'new')
    for part in (str(tmp_path / 'new'), TRAIN, TEST, '--dataset synthetic', f'{bad.url}{TRAIN}.gz: '):
        assert part in line
    assert ('timed out' in line) == (answer == BAD_ANSWERS['silent'])
    assert not (tmp_path / 'new').exists()
    mirror(FILES)
    assert len(load('mnist', tmp_path / 'new').splits['test']) == 3


def test_own_mirror_from_the_environment(mirror, tmp_path, monkeypatch):
    other, own = mirror(FILES, FILES)
    monkeypatch.setenv('DRAW_MNIST_MIRROR', own.url.rstrip('/'))
    load('mnist', tmp_path)
    assert (other.requests, own.requests) == ([], [*FILES])


@pytest.mark.parametrize('url', ['nonsense', 'gopher://127.0.0.1/', 'http://127.0.0.1:99999/', 'http://127.0.0.1:9/'])
def test_an_address_that_does_not_answer(tmp_path, monkeypatch, url):
    monkeypatch.setenv('DRAW_MNIST_MIRROR', url)
    assert f'{url.rstrip("/")}/{TRAIN}.gz: ' in error_line('mnist', tmp_path / 'new')
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    assert f'{tmp_path} is not a folder that can be written to' in error_line('mnist', tmp_path / 'data')
    assert server.requests == []
    assert os.listdir(tmp_path) == ['file']
