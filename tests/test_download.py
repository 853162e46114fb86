"""Downloads of MNIST from mirrors on the loopback, bad ones among them."""
import contextlib
import gzip
import hashlib
import http.server
import io
import os
import re
import socket
import threading
import time
import urllib.request

import pytest

from dataset import mnist, stream
from idx import TEST, TRAIN, error_line, idx_bytes, numbered_images, write_idx


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch):
    """No test reaches a real mirror, and no proxy stands before the loopback."""
    monkeypatch.setattr(mnist, 'MIRRORS', ())
    monkeypatch.delenv('DRAW_MNIST_MIRROR', raising=False)
    monkeypatch.setenv('no_proxy', '*')


class Mirror(http.server.ThreadingHTTPServer):
    """A loopback server; `files` maps a name to bytes, or to a function that answers by itself."""

    daemon_threads = True

    def __init__(self, files):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.replace('/mnist/', '', 1)
                self.server.requests.append(name)
                answer = files.get(name)
                if answer is None:
                    self.send_error(404)
                elif callable(answer):
                    answer(self)
                else:
                    self.send_response(200)
                    self.send_header('Content-Length', str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.requests = []
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}/mnist/'
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()


CONTENTS = {TRAIN: idx_bytes(numbered_images(12)), TEST: idx_bytes(numbered_images(3))}
RIGHT_FILES = {f'{name}.gz': gzip.compress(content, 1) for name, content in CONTENTS.items()}


@pytest.fixture
def mirror(monkeypatch):
    """Start mirrors, one for each dictionary of files; `data` uses them and expects CONTENTS."""
    servers = []

    def start(*all_files):
        servers.extend(Mirror(files) for files in all_files)
        monkeypatch.setattr(mnist, 'MIRRORS', tuple(server.url for server in servers))
        return servers

    monkeypatch.setattr(mnist, 'FILES', {
        name: (len(CONTENTS[name]), hashlib.sha256(CONTENTS[name]).hexdigest()) for name in mnist.FILES})
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check_refusal(folder):
    """load fails with the line that says what to do, and leaves no file and no folder."""
    folder = folder / 'new' / 'mnist'
    message = error_line(folder)
    for part in (str(folder), TRAIN, TEST, '--dataset synthetic'):
        assert part in message
    assert 'labels' not in message
    assert not folder.parent.exists()
    return message


def test_canonical_files_are_known():
    assert set(mnist.FILES) == {TRAIN, TEST}
    assert mnist.FILES[TRAIN][0] == 16 + 60000 * 784
    assert mnist.FILES[TEST][0] == 16 + 10000 * 784


def test_download(mirror, tmp_path, capsys):
    server, = mirror(RIGHT_FILES)
    folder = tmp_path / 'new' / 'mnist'
    splits = stream.load('mnist', folder, (2, 3))
    assert [splits[split][0, 0] for split in stream.SPLITS] == [0, 10, 0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == RIGHT_FILES
    assert len(capsys.readouterr().out.splitlines()) == 2
    stream.load('mnist', folder, (2, 3))
    assert len(server.requests) == 2


def test_only_missing_files_are_downloaded(mirror, tmp_path):
    server, = mirror(RIGHT_FILES)
    write_idx(tmp_path / TRAIN, numbered_images(24))
    splits = stream.load('mnist', tmp_path, (2, 3))
    assert (len(splits['train']), len(splits['test'])) == (20, 3)
    assert f'{TRAIN}.gz' not in server.requests
    assert not (tmp_path / f'{TRAIN}.gz').exists()


def cut_short(handler):
    """Promise the whole file, send a half of it."""
    content = RIGHT_FILES[f'{TRAIN}.gz']
    handler.send_response(200)
    handler.send_header('Content-Length', str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:len(content) // 2])


def not_http(handler):
    handler.wfile.write(b'hello\r\n\r\n')


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    write_without_end(handler)


def write_without_end(handler):
    with contextlib.suppress(OSError):  # the client hangs up
        while True:
            handler.wfile.write(b'x' * 1000)
            time.sleep(0.0005)  # so that a client that takes it all does not take all memory


def redirect(to, body=lambda handler: None):
    """An answer that names another address; {url} in it is that of the mirror."""
    def answer(handler):
        handler.send_response(302)
        handler.send_header('Location', to.format(url=handler.server.url))
        handler.end_headers()
        body(handler)
    return answer


BAD_ANSWERS = {
    'not found': None,
    'cut short': cut_short,
    'not http': not_http,
    'truncated': RIGHT_FILES[f'{TRAIN}.gz'][:-5],
    'not gzip': b'<html>sign in first</html>',
    'empty': b'',
    'other images': gzip.compress(idx_bytes(numbered_images(12) + 1)),
    'longer file': gzip.compress(CONTENTS[TRAIN] + b'\0'),
    'bomb': gzip.compress(bytes(10 ** 7)),
    'endless': endless,
    'endless gzip': lambda handler: (handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n' + RIGHT_FILES[f'{TRAIN}.gz'][:20]),
                                     write_without_end(handler)),
    'endless redirect': redirect('{url}nothing', write_without_end),
    'redirect in a circle': redirect(f'{{url}}{TRAIN}.gz'),
    'redirect to a file': redirect('file:///etc/hostname'),
    'redirect to ftp': redirect('ftp://127.0.0.1:9/'),
    'redirect to nowhere': redirect(''),
    'redirect to what is no address': redirect('http://[/'),
}


@pytest.mark.parametrize('answer', list(BAD_ANSWERS.values()), ids=list(BAD_ANSWERS))
def test_bad_answer_leaves_nothing(mirror, tmp_path, monkeypatch, answer):
    mirror({**RIGHT_FILES, f'{TRAIN}.gz': answer})
    assert 'seconds' not in check_refusal(tmp_path)


@pytest.mark.parametrize('answer', list(BAD_ANSWERS.values()), ids=list(BAD_ANSWERS))
def test_second_mirror_helps_and_the_bad_one_is_not_asked_again(mirror, tmp_path, answer):
    bad, good = mirror({**RIGHT_FILES, f'{TRAIN}.gz': answer}, RIGHT_FILES)
    assert len(stream.load('mnist', tmp_path, (2, 3))['test']) == 3
    assert f'{TRAIN}.gz' in bad.requests and f'{TEST}.gz' not in bad.requests
    assert sorted(good.requests) == sorted(RIGHT_FILES)


def test_own_mirror_from_the_environment(mirror, tmp_path, monkeypatch):
    other, own = mirror(RIGHT_FILES, RIGHT_FILES)
    monkeypatch.setenv('DRAW_MNIST_MIRROR', own.url.rstrip('/'))
    stream.load('mnist', tmp_path, (2, 3))
    assert (len(other.requests), len(own.requests)) == (0, 2)


@pytest.mark.parametrize('url', ['nonsense', 'http://', 'gopher://127.0.0.1/', 'http://127.0.0.1:99999/'])
def test_bad_address(tmp_path, monkeypatch, url):
    monkeypatch.setenv('DRAW_MNIST_MIRROR', url)
    check_refusal(tmp_path)


def test_no_network(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))  # bound, not listening: the connection is refused
        monkeypatch.setattr(mnist, 'MIRRORS', (f'http://127.0.0.1:{unused.getsockname()[1]}/',) * 3)
        check_refusal(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(mnist, 'PIECE_SECONDS', 0.3)


def test_server_that_never_answers(tmp_path, monkeypatch, impatient):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        monkeypatch.setattr(mnist, 'MIRRORS', (f'http://127.0.0.1:{silent.getsockname()[1]}/',))
        assert re.search('timed out|0.3 seconds', check_refusal(tmp_path))


def test_name_resolution_that_never_ends(tmp_path, monkeypatch, impatient):
    release = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: release.wait(5))
    monkeypatch.setattr(mnist, 'MIRRORS', ('http://mirror.invalid/',))
    assert '0.3 seconds' in check_refusal(tmp_path)
    assert not release.is_set()
    release.set()


@pytest.mark.parametrize('before', [b'', b'HTTP/1.0 200 OK\r\n\r\n'], ids=['header', 'file'])
def test_server_that_drips(mirror, tmp_path, impatient, before):
    sent = []

    def drip(handler):
        handler.wfile.write(before)
        for byte in [b'x'] * 200:
            sent.append(byte)
            with contextlib.suppress(OSError):
                handler.wfile.write(byte)
            time.sleep(0.05)

    mirror({**RIGHT_FILES, f'{TRAIN}.gz': drip})
    assert '0.3 seconds' in check_refusal(tmp_path)
    assert len(sent) < 200


def test_large_file_in_pieces(mirror, tmp_path, monkeypatch):
    """A file of several pieces, each in time."""
    monkeypatch.setattr(mnist, 'PIECE_BYTES', 40)
    assert len(RIGHT_FILES[f'{TRAIN}.gz']) > 40
    mirror(RIGHT_FILES)
    assert len(stream.load('mnist', tmp_path, (2, 3))['test']) == 3


def test_redirect_is_followed(mirror, tmp_path):
    server, = mirror({**RIGHT_FILES, f'{TRAIN}.gz': redirect('{url}moved', write_without_end),
                      'moved': RIGHT_FILES[f'{TRAIN}.gz']})
    assert len(stream.load('mnist', tmp_path, (2, 3))['test']) == 3
    assert server.requests == [f'{TRAIN}.gz', 'moved', f'{TEST}.gz']


def test_no_redirect_from_https_to_http():
    request = urllib.request.Request('https://127.0.0.1/a')
    with pytest.raises(ValueError, match='another scheme, http://127.0.0.1/b'):
        mnist._Redirects().redirect_request(request, io.BytesIO(), 302, '', {}, 'http://127.0.0.1/b')


@pytest.mark.parametrize('step', ['fsync', 'replace'])
@pytest.mark.parametrize('raised, seen', [(KeyboardInterrupt, KeyboardInterrupt),
                                          (OSError(28, 'No space left on device'), mnist.DataError)])
def test_interrupted_write_leaves_nothing(mirror, tmp_path, monkeypatch, step, raised, seen):
    def fail(*args):
        raise raised

    mirror(RIGHT_FILES)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(seen) as caught:
        stream.load('mnist', tmp_path, (2, 3))
    assert list(tmp_path.iterdir()) == []
    if seen is mnist.DataError:
        assert str(tmp_path / f'{TRAIN}.gz') in str(caught.value)


@pytest.mark.parametrize('below', ['', 'sub/folder'])
def test_data_folder_is_a_file(mirror, tmp_path, below):
    server, = mirror(RIGHT_FILES)
    (tmp_path / 'file').write_text('kept')
    assert str(tmp_path / 'file') in error_line(tmp_path / 'file' / below)
    assert (tmp_path / 'file').read_text() == 'kept'
    assert server.requests == []


@pytest.mark.parametrize('name', ['\ud800', 'a\0b', 'x' * 300, 'circle'], ids=ascii)
def test_folder_that_cannot_be(mirror, tmp_path, monkeypatch, name):
    server, = mirror(RIGHT_FILES)
    monkeypatch.chdir(tmp_path)
    os.symlink('circle', 'circle')
    for folder in (name, f'{name}/below'):
        assert repr(folder) in error_line(folder)
    assert server.requests == []
    assert os.listdir() == ['circle']


def test_folder_that_cannot_be_written_to(mirror, tmp_path, monkeypatch):
    server, = mirror(RIGHT_FILES)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
    assert f'{tmp_path} is not a folder that can be written to' in error_line(tmp_path / 'data')
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []
