"""Files that are damaged or hostile: mutations of each kind end in one line, or do no harm.

A hundred of each kind, and a thousand with `pytest -m exhaustive`.
"""
import io
import json
import os
import resource
import shutil
import struct
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

import sample
import train_mnist
from idx import write_mnist
from params import pack, sign, unpack
from runs import storage

SIZES = ['-s', '2', '-u', '4', '-l', '2', '-b', '8', '-t', '8', '-v', '4']
NUMBERS = [struct.pack(layout, number) for layout in ('<Q', '<I', '>I')
           for number in (0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1)] + [b'\xff' * 8, struct.pack('<Q', 2 ** 63)]


CHANGES = [  # of content; at and length are anywhere in it, byte is any, number is one of NUMBERS
    lambda content, at, length, byte, number: content[:at],
    lambda content, at, length, byte, number: content[at:],
    lambda content, at, length, byte, number: content[:at] + byte + content[at + 1:],
    lambda content, at, length, byte, number: content[:at] + number + content[at + len(number):],
    lambda content, at, length, byte, number: content[:at % 64] + number + content[at % 64 + len(number):],
    lambda content, at, length, byte, number: content[:at] + byte * (length % 64) + content[at:],
    lambda content, at, length, byte, number: content[:at] + content[at + length % 64:],
    lambda content, at, length, byte, number: content[:at] + content[length:] + content[at:length],
    lambda content, at, length, byte, number: np.random.default_rng(at).bytes(length),
    lambda content, at, length, byte, number: content.replace(content[at:at + 1], byte, 3)]


def mutate(content, rng):
    """One to three random changes of the bytes."""
    for _ in range(rng.integers(1, 4)):
        at, length = (int(rng.integers(len(content) + 1)) for _ in range(2))
        change = CHANGES[rng.integers(len(CHANGES))]
        content = change(content, at, length, rng.bytes(1), NUMBERS[rng.integers(len(NUMBERS))])
    return content


@pytest.fixture(params=[100, pytest.param(1000, marks=pytest.mark.exhaustive)])
def mutations(request):
    """How many of each kind."""
    return request.param


@pytest.fixture(autouse=True)
def no_memory_is_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A folder with MNIST files and two runs, with attention and without."""
    folder = tmp_path_factory.mktemp('fuzz')
    (folder / 'data').mkdir()
    write_mnist(folder / 'data', num_train=60, num_test=10)
    for name, flags in (('attention', ['--attention']), ('plain', [])):
        argv = [*SIZES, *flags, '--data_dir', str(folder / 'data'), '--logdir', str(folder / 'logs')]
        assert train_mnist.main(argv) == 0
        run, = (folder / 'logs').iterdir()
        os.rename(run, folder / name)
    return folder


@pytest.fixture
def run(runs, tmp_path, monkeypatch):
    for work in ('train', 'finish'):  # what comes before is under test
        monkeypatch.setattr(train_mnist, work, lambda *args: None)
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / 'attention', 'run')
    return Path('run')


def ends_well(main, *argv):
    """Run a script; whether it refused, which must be with one line and exit code 2."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*map(str, argv)])
    except SystemExit as stop:
        code = stop.code
    if code in (None, 0):
        return False
    err = err.getvalue()
    assert code == 2 and err.count('\n') == 1 and err.strip().isprintable(), (code, err)
    return True


def paint(folder):
    return ends_well(sample.main, folder, '-n', '1', '-o', 'out', '--scale', '1')


def resume(folder):
    return ends_well(train_mnist.main, '--resume', folder, '-t', '16')


@pytest.mark.parametrize('name, script', [('best.safetensors', paint), ('checkpoint.safetensors', resume)])
@pytest.mark.parametrize('signed', [False, True])
def test_parameter_files(run, mutations, name, script, signed):
    """With the checksum made right again what is behind it is reached."""
    rng, path = np.random.default_rng(0), run / name
    whole, refused = path.read_bytes(), 0
    for k in range(mutations):
        content = mutate(whole, rng)
        path.write_bytes(content)
        if signed:
            sign(path)
        refused += (answer := script(run))
        assert answer or signed or content == whole, k
    assert refused > 0.8 * mutations


ODD = [0, 1, 2, -1, 8, 2 ** 31, 2 ** 53, 2 ** 62, 2 ** 63, 2 ** 64 - 1, 2 ** 64, 10 ** 400, 1.5, 1e308, float('nan'),
       float('inf'), None, True, 'F32', 'F16', 'BF16', 'F64', 'I8', 'text', '\n', '\ud800', '\0', '', [], [[]], {},
       {'a': {}}, [0], [0, 0], [1, 1], [2 ** 63, 2], [2 ** 32, 2 ** 32], [-1, 4], [0, 2 ** 63], list(range(99))]


def change_at_random(value, rng):
    """A JSON value with one change somewhere in it."""
    odd = ODD[rng.integers(len(ODD))]
    if not value or not isinstance(value, (dict, list)) or rng.random() < 0.1:
        return value + int(rng.integers(-8, 9)) if type(value) is int and rng.random() < 0.5 else odd
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, other = (keys[rng.integers(len(keys))] for _ in range(2))
    changed = value.copy()
    changed[key] = value[other] if rng.random() < 0.2 else change_at_random(value[key], rng)
    return changed


def change_header(header, rng):
    """The header of a parameter file, where an array is another, has another name, stands twice, or not at all."""
    at, other = (int(k) for k in rng.integers(len(header), size=2))
    key, value = header[at]
    kind = rng.integers(5)
    if kind == 0:
        return [*header[:other], header[at], *header[other:]]
    if kind == 1:
        return [*header[:at], *header[at + 1:]]
    if kind == 2:
        key = [header[other][0], f'{key} ', '', '\ud800', 'x' * 10000][rng.integers(5)]
    else:
        value = header[other][1] if kind == 3 else change_at_random(value, rng)
    return [*header[:at], (key, value), *header[at + 1:]]


@pytest.mark.parametrize('name, script', [('best.safetensors', paint), ('checkpoint.safetensors', resume)])
def test_headers_of_parameter_files(run, mutations, name, script):
    """The checksum is right, and the header is JSON: other types, shapes, places, names and metadata."""
    rng, path = np.random.default_rng(6), run / name
    whole, numbers = unpack(path)
    metadata, refused = json.loads(whole[0][1]['draw']), 0
    for k in range(mutations):
        header = whole
        if k % 3 == 0:
            header = [('__metadata__', {'draw': json.dumps(change_at_random(metadata, rng))}), *whole[1:]]
        else:
            for _ in range(rng.integers(1, 4)):
                header = change_header(header, rng)
        pack(path, header, numbers[:-4] if rng.random() < 0.05 else numbers)
        refused += script(run)
    assert refused > 0.8 * mutations


@pytest.mark.parametrize('script', [paint, resume])
def test_config(run, mutations, script):
    rng, path = np.random.default_rng(1), run / 'config.json'
    whole = path.read_bytes()
    refused = 0
    for _ in range(mutations):
        path.write_bytes(mutate(whole, rng))
        refused += script(run)
    assert refused > 0.5 * mutations


WORDS = [b'0', b'-1', b'1.5', b'1e999', b'NaN', b'null', b'true', b'[]', b'{}', b'"text"', b'"\\n"', b'65536', b'65537',
         b'99999999999999999999', b'"mnist"', b'"--gpu"', b'"../../../etc/passwd"']


@pytest.mark.parametrize('script', [paint, resume])
def test_config_with_other_values(run, mutations, script):
    """The text stays JSON: other values for the keys."""
    rng, path = np.random.default_rng(2), run / 'config.json'
    lines = path.read_bytes().split(b'\n')
    for _ in range(mutations):
        changed = list(lines)
        for _ in range(rng.integers(1, 3)):
            at = rng.integers(len(lines))
            key, colon, _ = changed[at].partition(b': ')
            word = WORDS[rng.integers(len(WORDS))]
            if colon and not changed[at].endswith((b'{', b'[')):
                changed[at] = key + colon + word + (b',' if changed[at].endswith(b',') else b'')
        path.write_bytes(b'\n'.join(changed))
        script(run)


DAMAGES = [  # of the free path in a run folder; content is that of another file, plain the same file of the other run
    lambda path, content, plain: None,
    lambda path, content, plain: path.write_bytes(content),
    lambda path, content, plain: path.mkdir(),
    lambda path, content, plain: os.mkfifo(path),
    lambda path, content, plain: path.symlink_to('/dev/zero'),
    lambda path, content, plain: path.symlink_to(path.name),
    lambda path, content, plain: path.write_bytes(b''),
    lambda path, content, plain: shutil.copy(plain, path) if plain.is_file() else None]


def test_run_folders(runs, run, mutations):
    """Files that are missing, swapped, of the other run, links, folders or pipes."""
    rng, refused = np.random.default_rng(5), 0
    names = ['config.json', 'train', 'validation', *(f'{name}.safetensors' for name in ('best', 'last', 'checkpoint'))]
    for _ in range(mutations // 2):  # for each of two scripts
        shutil.rmtree(run)
        shutil.copytree(runs / 'attention', run)
        path, other = (run / names[k] for k in rng.choice(len(names), 2, replace=False))
        content = other.read_bytes() if other.is_file() else b''
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        DAMAGES[rng.integers(len(DAMAGES))](path, content, runs / 'plain' / path.name)
        for script in (paint, resume):
            refused += script(run)
    assert refused > 0.2 * mutations


def test_a_fuzzed_network_is_still_whole(runs):
    """The runs under test are good ones."""
    for name in ('attention', 'plain'):
        storage.load_net(runs / name, [mx.cpu()])
