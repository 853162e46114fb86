"""Files of a run that a stranger made: each ends in one line, or does no harm.

test_fuzz.py damages the same files at random.
"""
import json
import os
import shutil
import struct
from pathlib import Path

from system import cli

import numpy as np
import pytest
from mxboard.proto.event_pb2 import Event
from mxboard.proto.summary_pb2 import Summary
from mxboard.record_writer import masked_crc32c

import evaluate
import sample
import train_mnist
from commands import assert_one_line, new_folder, only_folder, refusal, script
from runs import storage
from runs.log import read_scalars

BOUNDS = ('reconstruction', 'kl', 'importance_weighted')
SIZES = ['-s', '2', '-u', '4', '-l', '2', '-b', '8', '-t', '16', '-f', '8', '-v', '8']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = new_folder(tmp_path_factory)
    assert train_mnist.main([*SIZES, '--data_dir', str(folder / 'data'), '--logdir', str(folder / 'results')]) == 0
    return only_folder(folder / 'results')


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run that a test may damage."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, 'run'))


# config.json

@pytest.mark.parametrize('validation', [
    {'samples_seen': 16}, {'samples_seen': 16, 'bound': 'x'}, {'samples_seen': 16, 'bound': None},
    {'samples_seen': 16, 'bound': 10 ** 400}, {'samples_seen': 16, 'bound': [1.]}, {}, [], None, 'text'], ids=str)
def test_validation_that_is_none(run, capsys, validation):
    storage.write_config(run, {**storage.read_config(run), 'validation': validation})
    assert 'run/config.json' in refusal(capsys, train_mnist.main, '--resume', run)


LONG = ['9' * 5000, '\n' * 100000, '\ud800' * 100000, {'a': ['x'] * 100000}, 10 ** 4000]


@pytest.mark.parametrize('value', LONG, ids=range(len(LONG)))
@pytest.mark.parametrize('name', ['num_train_samples', 'seed', 'num_steps', 'binarization'])
def test_long_value_makes_no_long_line(run, capsys, name, value):
    config = storage.read_config(run)
    storage.write_config(run, {**config, 'arguments': {**config['arguments'], name: value}})
    assert len(refusal(capsys, train_mnist.main, '--resume', run)) < 10 * cli._LONGEST


@pytest.mark.parametrize('text', ['[' * 900 + ']' * 900, '[' * 10 ** 5, '{"a":' * 900 + '1' + '}' * 900, '"\\ud800"'])
def test_more_than_a_run_has(run, capsys, text):
    """It is kept as it is, or refused."""
    path = run / 'config.json'
    path.write_text(path.read_text().replace('{', f'{{"more": {text},', 1))
    try:
        assert train_mnist.main(['--resume', str(run), '-t', '24']) == 0
    except SystemExit as stop:
        assert stop.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    else:
        assert f'"more": {text[0]}' in path.read_text()


def test_text_for_the_threads_is_no_control_sequence(run, capsys):
    storage.write_config(run, {**storage.read_config(run), 'threads': '1\n\x1b[31m'})
    assert train_mnist.main(['--resume', str(run), '-t', '24']) == 0
    out = capsys.readouterr().out
    assert 'Note: CPU' in out and '\x1b' not in out


@pytest.mark.parametrize('content', [
    '{"arguments": []}', '{"arguments": null}', '{"arguments": {"cpu_contexts": Infinity}}', '[]', None], ids=str)
def test_config_that_is_read_before_mxnet_is_imported(run, content):
    """For the number of threads, by a program of its own; None is a pipe."""
    (run / 'config.json').unlink()
    (run / 'config.json').write_text(content) if content else os.mkfifo(run / 'config.json')
    done = script('train_mnist.py', '--resume', run)
    assert_one_line(done.stdout, done.stderr)
    assert done.returncode == 2 and 'run/config.json' in done.stderr


# Event files

def event(**what):
    content = Event(**what).SerializeToString()
    length = struct.pack('<Q', len(content))
    return b''.join([length, struct.pack('<I', masked_crc32c(length)), content,
                     struct.pack('<I', masked_crc32c(content))])


def test_events_with_any_numbers(run):
    """The curves are drawn from what can be drawn; a warning of matplotlib would fail here."""
    numbers = [float('nan'), float('inf'), -float('inf'), 3e38, -3e38, 1e-45, 0.]
    for split in ('train', 'validation'):
        records = [event(step=step, summary=Summary(value=[Summary.Value(tag=f'x/{tag}', simple_value=number)]))
                   for tag in ('bound', 'reconstruction', 'kl', '', '/', '\u202e') for number in numbers
                   for step in (-2 ** 63, -1, 0, 1, 2 ** 53 + 1, 2 ** 63 - 1)]
        (run / split / 'events.out.tfevents.000007').write_bytes(b''.join(records) + b'torn')
    assert len(read_scalars(run)['train']['bound']) >= 6
    (run / 'curves.png').unlink()
    assert train_mnist.main(['--resume', str(run), '-t', '24']) == 0
    assert (run / 'curves.png').exists()


@pytest.mark.parametrize('replace', [
    lambda path: path.write_bytes(b'mine'), lambda path: path.symlink_to(path.name), os.mkfifo],
    ids=['file', 'loop', 'pipe'])
@pytest.mark.parametrize('name', ['train', 'samples'])
def test_what_is_no_folder(run, capsys, name, replace):
    shutil.rmtree(run / name)
    replace(run / name)
    try:
        assert train_mnist.main(['--resume', str(run), '-t', '24']) == 1
    except SystemExit as stop:
        assert stop.code == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and name in err


# Evaluations

@pytest.fixture
def part(run, monkeypatch):
    """What an evaluation of 20 images that was stopped after the first 8 left in the run's folder."""
    monkeypatch.setattr(evaluate.cli, 'Stop', StopsAtOnce)
    with monkeypatch.context() as patch:
        patch.setattr(StopsAtOnce, 'signal', 15)
        assert evaluate.main([str(run), '-n', '20', '-b', '8', '-k', '1']) == 0
    path, = (run / 'evaluations').glob('*.part')
    return path


class StopsAtOnce:
    signal = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def result(run, *argv):
    assert evaluate.main([str(run), '-n', '20', '-k', '1', *argv]) == 0
    path, = (run / 'evaluations').glob('*.json')
    numbers = json.loads(path.read_text())
    path.unlink()
    return numbers


@pytest.mark.parametrize('batch_size', ['1', '3', '20', '1000'])
def test_batch_size_may_change_when_an_evaluation_goes_on(run, part, batch_size):
    resumed, whole = result(run, '--resume', '-b', batch_size), result(run)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert resumed[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


def change(path, **bounds):
    content = json.loads(path.read_text())
    content['bounds'].update(bounds)
    path.write_text(json.dumps(content))


BAD_PARTS = {
    'pipe': lambda path: (path.unlink(), os.mkfifo(path)),
    'endless': lambda path: (path.unlink(), path.symlink_to('/dev/zero')),
    'loop': lambda path: (path.unlink(), path.symlink_to(path.name)),
    'folder': lambda path: (path.unlink(), path.mkdir()),
    'large': lambda path: path.write_bytes(path.read_bytes() + b' ' * 2 ** 22),
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_bytes(b'\xff\xfe'),
    'nested': lambda path: path.write_text('[' * 10 ** 5),
    'list': lambda path: path.write_text('[1]'),
    'no bounds': lambda path: path.write_text('{"bounds": 1}'),
    'too many': lambda path: change(path, **dict.fromkeys(BOUNDS, [1.] * 21)),
    'huge': lambda path: change(path, kl=[10 ** 400] * 8),
    'large number': lambda path: change(path, kl=[1e308] * 8),
    'nan': lambda path: change(path, kl=[float('nan')] * 8),
    'other length': lambda path: change(path, kl=[1.]),
    'no numbers': lambda path: change(path, kl=['x'] * 8),
    'two dimensions': lambda path: change(path, **dict.fromkeys(BOUNDS, [[1.]])),
    'other settings': lambda path: path.write_text(path.read_text().replace('"draws": 1', '"draws": 2'))}


@pytest.mark.parametrize('damage', BAD_PARTS.values(), ids=BAD_PARTS)
def test_part_of_an_evaluation_that_is_none(run, part, capsys, damage):
    damage(part)
    assert '.part' in refusal(capsys, evaluate.main, run, '-n', '20', '-k', '1', '--resume')
    assert not list((run / 'evaluations').glob('*.json'))


# Models to start from

@pytest.mark.parametrize('damage', [
    lambda run: shutil.rmtree(run), lambda run: (run / 'best.safetensors').write_bytes(b'\0' * 100),
    lambda run: ((run / 'best.safetensors').unlink(), os.mkfifo(run / 'best.safetensors')),
    lambda run: ((run / 'config.json').unlink(), (run / 'config.json').symlink_to('/dev/zero')),
    lambda run: (run / 'config.json').write_text('{"arguments": []}')], ids=range(5))
def test_hostile_model_to_start_from(trained, run, capsys, damage):
    damage(run)
    argv = [*SIZES, '--data_dir', trained.parent.parent / 'data', '--init', run]
    assert 'run' in refusal(capsys, train_mnist.main, *argv)
    assert not os.listdir('results')


def test_numbers_at_the_end_of_float32(run, capsys):
    """They are finite, and what follows from them is not."""
    config = storage.read_config(run)
    net, _, _ = storage.load_net(run, [train_mnist.mx.cpu()])
    for parameter in storage.parameters(net).values():
        parameter.set_data(train_mnist.mx.nd.full(parameter.shape, np.float32(1e38)))
    storage.save_params(run, 'best', net)
    assert 'not finite' in refusal(capsys, sample.main, run, '-n', '1')
    assert 'not finite' in refusal(capsys, evaluate.main, run, '-n', '4')
    assert storage.read_config(run) == config and not (run / 'evaluations').exists()
