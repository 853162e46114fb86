"""dataset/: splits, damaged files, resizing, binarization, training stream, synthetic digits, downloads."""
import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request

import numpy as np
import pytest

from dataset import mnist, stream
from dataset import synthetic as synthetic_digits
from dataset.noise import generator
from idx import idx_bytes, write_idx, write_mnist

TRAIN, TEST = 'train-images-idx3-ubyte', 't10k-images-idx3-ubyte'


def numbered_images(n, shape=(2, 3)):
    """Image i is filled with intensity i."""
    return np.arange(n, dtype=np.uint8).reshape(-1, 1, 1) * np.ones(shape, dtype=np.uint8)


def error_line(folder, dataset='mnist', image_shape=(2, 3), splits=stream.SPLITS):
    """The message of the DataError that load raises; it is one printable line."""
    with pytest.raises(mnist.DataError) as caught:
        stream.load(dataset, folder, image_shape, splits)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch):
    """No test reaches a real mirror, and no proxy stands before the loopback."""
    monkeypatch.setattr(mnist, 'MIRRORS', ())
    monkeypatch.delenv('DRAW_MNIST_MIRROR', raising=False)
    monkeypatch.setenv('no_proxy', '*')


# Reading MNIST files

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
    before = os.lstat(f'{TRAIN}{suffix}')
    assert str(tmp_path / f'{TRAIN}{suffix}') in error_line(tmp_path)
    assert os.lstat(f'{TRAIN}{suffix}') == before


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


# Randomness and binarization

def first_numbers(*args):
    return tuple(generator(*args).random(4))


def test_generator_is_a_function_of_its_arguments():
    arguments = [(0, 'noise', 0), (1, 'noise', 0), (0, 'noise', 1), (0, 'order', 0), (2 ** 32, 'noise', 0),
                 (0, 'noise', 2 ** 32), (1, 'noise', 1), (2 ** 32 - 1, 'noise', 10 ** 12)]
    assert len({first_numbers(*args) for args in arguments}) == len(arguments)
    assert all(first_numbers(*args) == first_numbers(*args) for args in arguments)
    assert first_numbers(5, 'noise') == first_numbers(5, 'noise', 0)


def test_generator_is_the_same_in_another_process():
    root = pathlib.Path(stream.__file__).parents[1]
    code = 'from dataset.noise import generator; print(*generator(3, "noise", 7).integers(2 ** 40, size=3))'
    outputs = {subprocess.check_output([sys.executable, '-B', '-c', code], cwd=root, text=True, timeout=60,
                                       env={**os.environ, 'PYTHONHASHSEED': hash_seed})
               for hash_seed in ('1', '2')}
    assert len(outputs) == 1


def test_first_numbers_of_neighbours_are_independent():
    for arguments in (lambda i: (i, 'noise', 0), lambda i: (0, 'noise', i)):
        numbers = np.array([generator(*arguments(i)).random() for i in range(2000)])
        assert abs(numbers.mean() - 0.5) < 5 * 0.289 / 2000 ** 0.5
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 5 / 2000 ** 0.5


@pytest.mark.parametrize('binarization', ['dynamic', 'static'])
def test_bernoulli_with_the_intensity_as_mean(binarization):
    n = 4000
    intensities = np.tile(np.arange(256, dtype=np.uint8), (n, 1))
    pixels = stream.binarize(intensities, binarization, np.random.default_rng(0))
    assert pixels.dtype == np.float32
    assert pixels.shape == intensities.shape
    assert set(np.unique(pixels)) == {0, 1}
    p = np.arange(256) / 255
    assert np.all(abs(pixels.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / n))  # exact for p = 0 and p = 1
    assert abs((pixels.mean(axis=0) - p).mean()) < 5 * np.sqrt((p * (1 - p)).mean() / n / 256)


def test_threshold():
    pixels = stream.binarize(np.array([[0, 1, 127], [128, 200, 255]], dtype=np.uint8), 'threshold', None)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, [[0, 0, 0], [1, 1, 1]])


def test_unknown_binarization():
    images = np.zeros((1, 4), dtype=np.uint8)
    for call in (lambda: stream.binarize(images, 'otsu', None), lambda: stream.evaluation_images(images, 'otsu'),
                 lambda: stream.TrainingStream(images, 'otsu', 0)):
        with pytest.raises(ValueError, match='otsu'):
            call()


def test_evaluation_images_are_fixed():
    intensities = np.random.default_rng(0).integers(256, size=(2500, 20), dtype=np.uint8)
    first = stream.evaluation_images(intensities, 'dynamic')
    stream.TrainingStream(intensities, 'dynamic', seed=8).batch(0, 10)
    np.random.seed(8)
    np.testing.assert_array_equal(stream.evaluation_images(intensities, 'dynamic'), first)
    np.testing.assert_array_equal(stream.evaluation_images(intensities, 'static'), first)
    np.testing.assert_array_equal(stream.evaluation_images(intensities[:7], 'static'), first[:7])
    assert first.dtype == np.float32
    assert abs(first.mean() - intensities.mean() / 255) < 5 * 0.5 / first.size ** 0.5
    np.testing.assert_array_equal(stream.evaluation_images(intensities, 'threshold'), intensities >= 128)


def test_every_evaluation_image_has_its_own_random_numbers():
    pixels = stream.evaluation_images(np.full((2500, 64), 128, dtype=np.uint8), 'static')
    assert len(np.unique(pixels, axis=0)) == 2500


# Training stream

BITS = 2 ** np.arange(6)
CODED = ((np.arange(50)[:, None] & BITS > 0) * 255).astype(np.uint8)  # 50 images that tell their number


def numbers_of(pixels):
    return (pixels @ BITS).astype(int).tolist()


@pytest.mark.parametrize('binarization', stream.BINARIZATIONS)
def test_every_epoch_is_another_permutation(binarization):
    batches = stream.TrainingStream(CODED, binarization, seed=1)
    epochs = [numbers_of(batches.batch(50 * epoch, 50)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(50)) not in epochs
    others = [numbers_of(stream.TrainingStream(CODED, binarization, seed=seed).batch(0, 50)) for seed in (2, 3)]
    assert epochs[0] not in others
    assert others[0] != others[1]


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(256, size=(10, 30), dtype=np.uint8)


@pytest.mark.parametrize('binarization', stream.BINARIZATIONS)
def test_random_access_equals_sequential_access(grey, binarization):
    whole = stream.TrainingStream(grey, binarization, seed=4).batch(0, 57)  # straddles five borders
    assert whole.shape == (57, 30)
    assert whole.dtype == np.float32
    assert set(np.unique(whole)) == {0, 1}
    batches = stream.TrainingStream(grey, binarization, seed=4)
    for position, batch_size in ((40, 17), (8, 4), (0, 1), (19, 25), (33, 7), (33, 7)):
        batch = batches.batch(position, batch_size)
        np.testing.assert_array_equal(batch, whole[position:position + batch_size])


def test_far_position_needs_no_history(grey):
    batches = stream.TrainingStream(grey, 'dynamic', seed=4)
    far = 10 ** 12 + 3
    np.testing.assert_array_equal(batches.batch(far, 9), stream.TrainingStream(grey, 'dynamic', 4).batch(far, 9))


def test_stream_keeps_no_more_than_two_permutations(grey):
    batches = stream.TrainingStream(grey, 'static', seed=4)
    for position in range(0, 200, 7):
        batches.batch(position, 7)
    assert batches._order.cache_info().currsize == 2


def test_an_epoch_is_permuted_once(grey, monkeypatch):
    calls = []
    original = stream.generator
    monkeypatch.setattr(stream, 'generator', lambda *args: calls.append(args) or original(*args))
    batches = stream.TrainingStream(grey, 'dynamic', seed=4)
    for position in range(0, 30, 5):
        batches.batch(position, 5)
    assert [args[2] for args in calls if args[1] == 'order'] == [0, 1, 2]


def test_dynamic_draws_anew_and_depends_on_the_seed():
    one = np.full((1, 200), 128, dtype=np.uint8)
    epochs = stream.TrainingStream(one, 'dynamic', seed=0).batch(0, 50)
    assert len(np.unique(epochs, axis=0)) == 50
    assert abs(epochs.mean() - 128 / 255) < 5 * 0.5 / epochs.size ** 0.5
    assert np.any(epochs != stream.TrainingStream(one, 'dynamic', seed=1).batch(0, 50))


def test_static_is_drawn_once_for_all_seeds(grey):
    def images(seed, epoch):
        return sorted(map(tuple, stream.TrainingStream(grey, 'static', seed).batch(10 * epoch, 10)))
    assert images(0, 0) == images(0, 1) == images(7, 3)
    assert images(0, 0) == sorted(map(tuple, stream.evaluation_images(grey, 'static')))


def test_threshold_stream(grey):
    batch = stream.TrainingStream(grey, 'threshold', seed=0).batch(0, 10)
    assert sorted(map(tuple, batch)) == sorted(map(tuple, (grey > 127.5).astype(np.float32)))


# Synthetic digits

@pytest.fixture(scope='module')
def synthetic():
    return stream.load('synthetic', '/nonexistent/folder', (28, 28))


def test_synthetic_shapes(synthetic):
    assert {split: images.shape for split, images in synthetic.items()} == {
        'train': (20000, 784), 'validation': (2000, 784), 'test': (2000, 784)}
    assert all(images.dtype == np.uint8 for images in synthetic.values())


def test_synthetic_is_deterministic(synthetic):
    np.random.seed(99)
    again = stream.load('synthetic', '', (28, 28), ('test', 'validation'))
    assert list(again) == ['test', 'validation']
    assert all(np.array_equal(images, synthetic[split]) for split, images in again.items())


def test_synthetic_images_all_differ(synthetic):
    assert len({image.tobytes() for images in synthetic.values() for image in images}) == 24000


def test_synthetic_digits_are_centred_and_as_large_as_mnist(synthetic):
    images = synthetic['test'].reshape(-1, 28, 28)
    ink = images > 127
    for axis in (1, 2):
        profile = ink.any(axis=axis)
        first, last = profile.argmax(axis=1), 27 - profile[:, ::-1].argmax(axis=1)
        assert abs((first + last).mean() / 2 - 13.5) < 0.5
        assert 13 < (last - first + 1).mean() < 21
        assert np.all(abs((first + last) / 2 - 13.5) < 5)
    assert 0.08 < ink.mean() < 0.2
    assert images[:, [0, -1]].mean() < 1  # black at the border
    assert (images == 255).any()


def test_synthetic_in_another_shape(synthetic):
    images = stream.load('synthetic', '', (14, 20), ['validation'])
    assert images['validation'].shape == (2000, 280)
    shrunk = synthetic['validation'].mean()
    assert abs(images['validation'].mean() - shrunk) < 0.02 * shrunk


# Downloads

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
