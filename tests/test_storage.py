"""A run's folder: config.json, the folder itself, and whole files."""
import concurrent.futures
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from system import files

import mxnet as mx
import pytest

from params import ARGUMENTS, refusal
from runs import storage

ROOT = Path(__file__).resolve().parent.parent


def test_config_round_trip(tmp_path):
    config = {'arguments': {**ARGUMENTS, 'learning_rate': 1e-3, 'logdir': 'r\u00e9sultats "1"'}, 'samples_seen': 7}
    storage.write_config(tmp_path, config)
    assert os.listdir(tmp_path) == ['config.json']
    assert storage.read_config(tmp_path) == config == json.loads((tmp_path / 'config.json').read_text())


def test_versions_are_those_installed():
    versions = storage.versions()
    assert versions['python'] == '.'.join(map(str, sys.version_info[:3]))
    for name in ('mxnet', 'numpy', 'mxboard', 'pillow'):
        assert versions[name] == metadata.version(name)


def test_folder_or_config_missing(tmp_path):
    assert str(tmp_path) in refusal(storage.load_net, tmp_path, mx.cpu())
    assert str(tmp_path / 'nothing') in refusal(storage.load_net, tmp_path / 'nothing', mx.cpu())
    (tmp_path / 'file').write_text('{}')
    assert str(tmp_path / 'file') in refusal(storage.load_net, tmp_path / 'file', mx.cpu())


def without(key):
    return {name: value for name, value in ARGUMENTS.items() if name != key}


@pytest.mark.parametrize('content', [
    b'', b'{', b'{"arguments": ', b'\xff\xfe\x00', b'null', b'3', b'"text"', b'[]', b'{}',
    b'{"arguments": null}', b'{"arguments": []}', b'{"arguments": "text"}', b'{"arguments": {}}',
    b'[' * 100000, b'{"arguments": ' + b'9' * 10000 + b'}', b' ' * (2 ** 20 + 1) + b'{}'],
    ids=lambda content: f'{content[:16]!r}')
def test_damaged_config(tmp_path, content):
    (tmp_path / 'config.json').write_bytes(content)
    assert str(tmp_path / 'config.json') in refusal(storage.load_net, tmp_path, mx.cpu())


@pytest.mark.parametrize('key', ARGUMENTS)
def test_config_without_an_argument(tmp_path, key):
    storage.write_config(tmp_path, {'arguments': without(key)})
    message = refusal(storage.load_net, tmp_path, mx.cpu())
    assert str(tmp_path / 'config.json') in message and key in message


@pytest.mark.parametrize('key', sorted(key for key, value in ARGUMENTS.items() if type(value) is int))
def test_config_with_a_wrong_size(tmp_path, key):
    for size in (0, -1, 1.5, '3', None, True, [3], float('nan'), 2 ** 16 + 1, 10 ** 30):
        storage.write_config(tmp_path, {'arguments': {**ARGUMENTS, key: size}})
        assert str(tmp_path / 'config.json') in refusal(storage.load_net, tmp_path, mx.cpu()), size


@pytest.mark.parametrize('change', [
    {'arguments': {**ARGUMENTS, 'data_dir': '\ud800'}}, {'arguments': {**ARGUMENTS, 'data_dir': 'a\0b'}},
    {'arguments': {**ARGUMENTS, 'data_dir': 3}}, {'arguments': {**ARGUMENTS, 'data_dir': None}}, {'resumed': {}},
    {'resumed': None}, {'resumed': 'text'}, {'validation': []}, {'validation': None}], ids=str)
def test_config_with_a_value_of_another_kind(tmp_path, change):
    storage.write_config(tmp_path, {'arguments': ARGUMENTS, **change})
    assert str(tmp_path / 'config.json') in refusal(storage.read_config, tmp_path)


def test_config_with_a_window_larger_than_the_image(tmp_path):
    storage.write_config(tmp_path, {'arguments': {**ARGUMENTS, 'write_size': 4}})
    assert str(tmp_path / 'config.json') in refusal(storage.load_net, tmp_path, mx.cpu())


LOAD_WITH_LITTLE_MEMORY = '''
import resource, sys
from runs import storage
import mxnet as mx
mx.nd.ones(1).asnumpy()
pages = int(open('/proc/self/statm').read().split()[0])
limit = pages * resource.getpagesize() + 2 ** 29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    storage.load_net(sys.argv[1], [mx.cpu()])
except storage.RunError as error:
    print('refused:', error)
'''


@pytest.mark.parametrize('sizes', [
    {'num_recurrent_units': 2 ** 14}, {'num_recurrent_units': 2 ** 16},
    {'input_height': 2 ** 16, 'input_width': 2 ** 16}])
def test_config_of_a_huge_network_takes_no_memory(saved, sizes):
    folder, _ = saved
    storage.write_config(folder, {'arguments': {**ARGUMENTS, 'attention': False, **sizes}})
    result = subprocess.run([sys.executable, '-c', LOAD_WITH_LITTLE_MEMORY, str(folder)], capture_output=True,
                            text=True, timeout=60, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0 and result.stdout.startswith('refused: '), result.stderr[-2000:]


# Folders

def test_folders_are_unique_at_the_same_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.time, 'strftime', lambda layout: '20200102-030405')
    (tmp_path / 'logs').mkdir()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: storage.create(str(tmp_path / 'logs'), 'attention', {}), range(40)))
    assert len(set(folders)) == 40
    assert sorted(map(os.path.basename, folders)) == sorted(os.listdir(tmp_path / 'logs'))
    for folder in folders:
        assert os.listdir(folder) == ['config.json']
        assert re.fullmatch(r'20200102-030405-attention(-\d+)?', os.path.basename(folder))


def test_folder_is_never_an_existing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.time, 'strftime', lambda layout: '20200102-030405')
    first = storage.create(str(tmp_path), 'attention', {})
    Path(first, 'config.json').write_text('mine')
    (tmp_path / '20200102-030405-attention-2').write_text('a file')
    third = storage.create(str(tmp_path), 'attention', {})
    assert third.endswith('-attention-3') and Path(first, 'config.json').read_text() == 'mine'
    assert not [name for name in os.listdir(tmp_path) if name.startswith('.')]


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    storage.check_writable(str(tmp_path / 'a' / 'b'))
    assert os.listdir(tmp_path / 'a' / 'b') == []
    (tmp_path / 'a' / 'b' / 'run').mkdir()
    storage.check_writable(str(tmp_path / 'a' / 'b'))
    assert os.listdir(tmp_path / 'a' / 'b') == ['run']


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'logs', Path('/proc/self/logs')):
        assert str(folder) in refusal(storage.check_writable, str(folder))
    assert (tmp_path / 'file').read_text() == 'mine'


def test_folder_without_room(tmp_path, monkeypatch):
    def full(**kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(storage.tempfile, 'TemporaryFile', full)
    message = refusal(storage.check_writable, str(tmp_path))
    assert str(tmp_path) in message and 'No space left' in message


# Whole files

def half_written(error):
    def write(path):
        Path(path).write_bytes(b'half of ')
        raise error

    return write


@pytest.mark.parametrize('error', [OSError('disk full'), ValueError('bug'), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize('old', [b'old', None])
def test_failure_in_the_middle_leaves_the_old_file(tmp_path, error, old):
    path = tmp_path / 'file'
    if old:
        path.write_bytes(old)
    with pytest.raises(type(error)):
        files.write_whole(path, half_written(error))
    assert os.listdir(tmp_path) == (['file'] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_failure_at_the_end_leaves_the_old_file(tmp_path, monkeypatch, function):
    def fail(*args):
        raise OSError(5, 'Input/output error')

    (tmp_path / 'file').write_bytes(b'old')
    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(OSError, match='Input/output error'):
        files.write_whole(tmp_path / 'file', b'new')
    assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').read_bytes() == b'old'


def test_failed_save_leaves_the_old_parameters(saved, monkeypatch):
    folder, net = saved
    old = (folder / 'last.safetensors').read_bytes()

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='last.safetensors'):
        storage.save_params(folder, 'last', net)
    assert (folder / 'last.safetensors').read_bytes() == old
    assert sorted(os.listdir(folder)) == ['config.json', 'last.safetensors']


SAVE_WITH_LITTLE_ROOM = '''
import os, resource, sys
from runs import storage
from params import make_net
folder = sys.argv[1]
path = os.path.join(folder, 'large.safetensors')
storage.save_params(folder, 'large', make_net(num_recurrent_units=40))
size = os.path.getsize(path)
old = open(path, 'rb').read()
for limit in (size // 2, size - 1, 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        storage.save_params(folder, 'large', make_net(seed=2, num_recurrent_units=40))
    except (storage.RunError, OSError) as error:
        print('refused' if path in str(error) and str(error).isprintable() else str(error))
    print('kept' if open(path, 'rb').read() == old else f'replaced by {os.path.getsize(path)} of {size} bytes')
'''


def test_file_that_does_not_fit_on_the_disk_leaves_the_old_parameters(tmp_path):
    """As with a full disk, the write fails at once, or only when the last buffer is written."""
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    result = subprocess.run([sys.executable, '-c', SAVE_WITH_LITTLE_ROOM, str(tmp_path)], capture_output=True,
                            text=True, timeout=60, env={**os.environ, 'PYTHONPATH': path})
    assert result.stdout.splitlines() == ['refused', 'kept'] * 3, result.stderr[-2000:]
    assert os.listdir(tmp_path) == ['large.safetensors']


@pytest.mark.parametrize('content', [b'new', lambda path: Path(path).write_bytes(b'new')], ids=['bytes', 'callable'])
def test_file_gets_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch, content):
    path, order, seen = tmp_path / 'file', [], []
    path.write_bytes(b'old')

    def fsync(descriptor, original=os.fsync):
        order.append('fsync')
        seen.append((path.read_bytes(), os.fstat(descriptor).st_size))
        original(descriptor)

    def replace(source, destination, original=os.replace):
        order.append('replace')
        assert os.path.dirname(source) == str(tmp_path)
        original(source, destination)

    monkeypatch.setattr(files.os, 'fsync', fsync)
    monkeypatch.setattr(files.os, 'replace', replace)
    files.write_whole(path, content)
    assert order == ['fsync', 'replace'] and seen == [(b'old', 3)]
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['file']


def test_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / 'file').mkdir()
    with pytest.raises(OSError):
        files.write_whole(tmp_path / 'file', b'new')
    assert os.listdir(tmp_path) == ['file']
