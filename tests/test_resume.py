"""Runs that survive: exact resume, signals, crashes, full disks, two trainings of one folder."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mxnet import gluon, nd

import sample
import train_mnist
from runs import storage
from runs.arguments import MAY_CHANGE
from runs.log import read_kl_per_step, read_scalars
from test_run_folder import pack, unpack

ROOT = Path(__file__).resolve().parent.parent
TIME_OUT = 300
ARGV = ['-s', '3', '-u', '8', '-l', '4', '-b', '16', '-f', '64', '-v', '20', '--log_freq', '16', '--kl_warmup', '1',
        '-r', '0.01', '--lr_decay', '0']
FILES = ('last.safetensors', 'best.safetensors')


def train(*argv, logdir='results'):
    assert train_mnist.main([*ARGV, '--logdir', logdir, *argv]) == 0
    return only_folder(logdir)


def only_folder(logdir):
    folder, = (path for path in Path(logdir).iterdir() if not path.name.startswith('.'))
    return folder


def resume(folder, *argv):
    return train_mnist.main(['--resume', str(folder), *argv])


def refusal(capsys, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_mnist.main([*map(str, argv)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and 'Traceback' not in err
    return err


def checkpoint(folder):
    net = storage.build_net(storage.read_config(folder)['arguments'])
    return storage.load_checkpoint(folder, 'checkpoint', net)


def assert_same_files(left, right, names=FILES):
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def assert_same_curves(left, right):
    """All but the speed."""
    curves = [read_scalars(left), read_scalars(right)]
    for split, found in curves[1].items():
        assert curves[0][split].keys() == found.keys()
        for name in found.keys() - {'samples_per_second'}:
            np.testing.assert_array_equal(curves[0][split][name], found[name], err_msg=f'{split} {name}')
    for a, b in zip(read_kl_per_step(left), read_kl_per_step(right)):
        np.testing.assert_array_equal(a, b)


class Killed(BaseException):
    """Ends a training where SIGKILL would, without the process."""


def stop_after(monkeypatch, seen):
    """The next training ends without a word after the step that reaches `seen`."""
    step = train_mnist.Training.step

    def stepped(training, x):
        if training.seen >= seen:
            raise Killed
        return step(training, x)

    monkeypatch.setattr(train_mnist.Training, 'step', stepped)


# Resume

@pytest.mark.parametrize('seen', [0, 16, 48, 64, 80, 176])
@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_resumed_run_ends_as_one_that_was_never_stopped(workplace, monkeypatch, attention, seen):
    argv = ['-t', '192', '--checkpoint_freq', '32', '--lr_decay', '0.5', *attention]
    whole = train(*argv, logdir='whole')
    with monkeypatch.context() as patch:
        stop_after(patch, seen)
        with pytest.raises(Killed):
            train(*argv)
    stopped = only_folder('results')
    assert os.path.exists(stopped / 'checkpoint.safetensors') == (seen >= 32)
    assert resume(stopped) == 0
    assert_same_files(stopped, whole, [*FILES, 'sample_0.gif'])
    for left, right in zip(checkpoint(stopped)[0], checkpoint(whole)[0]):  # Adam's moments too
        for name, array in left.items():
            np.testing.assert_array_equal(array, right[name], err_msg=name)
    configs = [storage.read_config(folder) for folder in (stopped, whole)]
    assert configs[0]['validation'] == configs[1]['validation']
    assert configs[0]['resumed'] == [{'command': f'train_mnist.py --resume {stopped}',
                                      'samples_seen': seen // 32 * 32}]


def test_longer_run_by_resume(workplace):
    """The number of samples may change, and the learning rate is the new one from then on."""
    whole, short = (train('-t', t, logdir=f'results of {t}') for t in ('256', '128'))
    other = Path(shutil.copytree(short, 'other'))
    assert resume(short, '-t', '256') == 0
    assert_same_files(short, whole)
    assert storage.read_config(short)['arguments']['num_train_samples'] == 256
    assert resume(other, '-t', '256', '-r', '0.02') == 0
    assert (other / 'last.safetensors').read_bytes() != (whole / 'last.safetensors').read_bytes()
    assert storage.read_config(other)['arguments']['learning_rate'] == 0.02


def test_resume_of_a_finished_run_changes_nothing(workplace):
    folder = train('-t', '64')
    copy = Path(shutil.copytree(folder, 'copy'))
    assert resume(folder) == 0
    assert_same_files(folder, copy, [*FILES, 'sample_9.gif'])


@pytest.mark.parametrize('argv', [
    ['--seed', '1'], ['-b', '32'], ['--attention'], ['-s', '4'], ['-u', '9'], ['-l', '5'], ['--binarization', 'static'],
    ['--dataset', 'synthetic'], ['--kl_warmup', '7'], ['--clip_norm', '9'], ['--logdir', 'elsewhere'], ['-v', '3']],
    ids=' '.join)
def test_contradicting_flag(workplace, capsys, argv):
    folder = train('-t', '32')
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    err = refusal(capsys, '--resume', folder, *argv)
    assert 'contradicts' in err and str(folder) in err
    assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_same_value_is_no_contradiction(workplace):
    folder = train('-t', '32')
    assert resume(folder, *ARGV) == 0


def test_help_names_what_may_change(capsys):
    with pytest.raises(SystemExit):
        train_mnist.main(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert ', '.join(MAY_CHANGE) in text


def test_config_changed_behind_the_run_is_refused(workplace, capsys):
    folder = train('-t', '32')
    text = (folder / 'config.json').read_text()
    (folder / 'config.json').write_text(text.replace('"seed": 0', '"seed": 3'))
    assert 'seed' in refusal(capsys, '--resume', folder)


@pytest.mark.parametrize('name', ['sync_timeout', 'num_train_samples', 'learning_rate', 'seed', 'logdir', 'dataset'])
def test_null_in_the_place_of_an_argument(workplace, capsys, name):
    folder = train('-t', '32')
    config = storage.read_config(folder)
    storage.write_config(folder, {**config, 'arguments': {**config['arguments'], name: None}})
    assert 'config.json' in refusal(capsys, '--resume', folder)


@pytest.mark.parametrize('name', ['nowhere', 'data', 'data/train-images-idx3-ubyte.gz'])
def test_resume_of_what_is_no_run(workplace, capsys, name):
    assert name in refusal(capsys, '--resume', name)


def test_best_parameters_are_missed_before_work_starts(workplace, capsys):
    folder = train('-t', '64')
    (folder / 'best.safetensors').unlink()
    assert 'best.safetensors' in refusal(capsys, '--resume', folder, '-t', '128')


GOOD = {'samples_seen': 64, 'num_updates': 4, 'best_bound': 90.5, 'seconds': 1.5, 'arguments': {}}
FLOATS = (True, '1', [], {}, 3, 10 ** 400, float('nan'), float('-inf'))
BAD_METADATA = [
    *({key: value} for key in ('samples_seen', 'num_updates') for value in (
        0, -1, 2 ** 53, 2 ** 63, 10 ** 400, 1., float('inf'), float('nan'), True, '1', None, [1], {})),
    *({'best_bound': value} for value in (*FLOATS, float('inf'))),
    *({'seconds': value} for value in (*FLOATS, float('inf'), None, -1., 1e11, 1e308)),
    *({'arguments': value} for value in (None, 3, [], 'text'))]


@pytest.mark.parametrize('change', BAD_METADATA, ids=lambda change: str(change)[:40])
def test_metadata_out_of_range(change):
    with pytest.raises(storage.RunError, match=f'its {next(iter(change))} is') as caught:
        storage.check_metadata('checkpoint', {**GOOD, **change})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_metadata_in_range():
    largest = {'samples_seen': 2 ** 53 - 1, 'num_updates': 2 ** 53 - 1, 'best_bound': None, 'seconds': 0.}
    for change in ({}, largest, {'best_bound': -1e308}):
        storage.check_metadata('checkpoint', {**GOOD, **change})
    for name in GOOD:
        with pytest.raises(storage.RunError, match=name):
            storage.check_metadata('checkpoint', {key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize('change', [{'samples_seen': 2 ** 62}, {'num_updates': 10 ** 400}, {'seconds': 1e300}],
                         ids=lambda change: next(iter(change)))
def test_checkpoint_with_a_valid_checksum_and_odd_metadata(workplace, capsys, change):
    folder = train('-t', '32')
    path = folder / 'checkpoint.safetensors'
    header, numbers = unpack(path)
    pack(path, [('__metadata__', {'draw': json.dumps({**json.loads(header[0][1]['draw']), **change})}), *header[1:]],
         numbers)
    err = refusal(capsys, '--resume', folder)
    assert 'checkpoint.safetensors' in err and next(iter(change)) in err


@pytest.mark.parametrize('constant', ['NaN', 'Infinity', '-Infinity'])
def test_checkpoint_with_numbers_that_json_does_not_have(workplace, capsys, constant):
    folder = train('-t', '32')
    header, numbers = unpack(folder / 'checkpoint.safetensors')
    text = re.sub(r'("seconds": )[^,]+', rf'\g<1>{constant}', header[0][1]['draw'])
    assert f'"seconds": {constant},' in text
    pack(folder / 'checkpoint.safetensors', [('__metadata__', {'draw': text}), *header[1:]], numbers)
    assert constant in refusal(capsys, '--resume', folder)


def test_checkpoint_before_the_first_validation(workplace, monkeypatch):
    """There is no best bound yet, which JSON calls null."""
    argv = ['-t', '128', '-f', '128', '--checkpoint_freq', '32']
    whole = train(*argv, logdir='whole')
    with monkeypatch.context() as patch:
        stop_after(patch, 64)
        with pytest.raises(Killed):
            train(*argv)
    folder = only_folder('results')
    assert checkpoint(folder)[1]['best_bound'] is None and not (folder / 'best.safetensors').exists()
    assert resume(folder) == 0
    assert_same_files(folder, whole)


RESUME_WITH_LITTLE_MEMORY = '''
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from system import devices
import mxnet as mx
import train_mnist
mx.nd.ones(1).asnumpy()
pages = int(open('/proc/self/statm').read().split()[0])
limit = pages * resource.getpagesize() + 2 ** 29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(train_mnist.main())
'''


@pytest.mark.parametrize('size', [2 ** 14, 2 ** 16])
def test_config_of_a_huge_network_takes_no_memory(workplace, size):
    folder = train('-t', '32')
    config = storage.read_config(folder)
    config['arguments']['num_recurrent_units'] = size
    storage.write_config(folder, config)
    done = subprocess.run([sys.executable, '-c', RESUME_WITH_LITTLE_MEMORY, ROOT, '--resume', folder],
                          capture_output=True, text=True, timeout=TIME_OUT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr[-2000:]
    assert 'does not fit the config.json' in done.stderr


def test_run_of_an_earlier_version(workplace, capsys):
    folder = train('-t', '32')
    for path in folder.glob('*.safetensors'):
        path.rename(path.with_suffix('.params'))
    before = sorted(os.listdir(folder))
    assert 'the format of earlier versions' in refusal(capsys, '--resume', folder)
    assert sorted(os.listdir(folder)) == before


# Crashes

def test_killed_50_times(workplace):
    """SIGKILL at random moments: nothing is refused, at most one interval is lost, and the end is the same."""
    done = subprocess.run([sys.executable, ROOT / 'tests' / 'kill.py', '.', '50'], capture_output=True, text=True,
                          timeout=TIME_OUT)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result['refusals'] == 0 and result['codes'] == [0, 0], Path('output.txt').read_text()[-2000:]
    assert result['largest_loss'] <= 16 + 8  # one interval, and the step before whose end the checkpoint was due
    assert all(result['same'].values())
    assert result['moments'] == sorted(result['moments']) and result['moments'][-1] > 100
    assert not list(Path(result['run']).glob('*.tmp'))
    assert_same_curves(result['run'], result['whole'])


def process(*argv, limit=None):
    def set_limit():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen([sys.executable, str(ROOT / 'train_mnist.py'), *map(str, argv)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=set_limit)


def test_full_disk(workplace):
    """A limit on the size of a file stands for the full disk; here the event file grows into it."""
    folder = train('-t', '64')
    training = process('--resume', folder, '-t', '1e6', '-f', '1e6', '--checkpoint_freq', '1e5', limit=20000)
    _, err = training.communicate(timeout=TIME_OUT)
    assert training.returncode == 1 and 'Traceback' not in err and 'Exception' not in err
    assert 'File too large' in err.splitlines()[-1] and f'--resume {folder}' in err.splitlines()[-1]
    seen = checkpoint(folder)[1]['samples_seen']
    assert seen >= 64 and not list(folder.glob('*.tmp'))
    assert resume(folder, '-t', str(seen + 64)) == 0
    whole = train('-t', str(seen + 64), logdir='whole')
    assert_same_files(folder, whole, ['last.safetensors'])


@pytest.mark.parametrize('room', [0, 100, 3000])
def test_full_disk_during_a_checkpoint(workplace, room):
    folder = train('-t', '64')
    before = (folder / 'checkpoint.safetensors').read_bytes()
    training = process('--resume', folder, '-t', '1e6', '-f', '1e6', '--log_freq', '1e6', '--checkpoint_freq', '32',
                       limit=len(before) - 3000 + room)
    _, err = training.communicate(timeout=TIME_OUT)
    assert training.returncode == 1 and 'Traceback' not in err
    assert 'checkpoint.safetensors' in err.splitlines()[-1] and '--resume' in err.splitlines()[-1]
    assert (folder / 'checkpoint.safetensors').read_bytes() == before and not list(folder.glob('*.tmp'))
    assert resume(folder, '-t', '80') == 0


def test_second_signal_ends_at_once(workplace):
    training = process(*ARGV, '-t', '1e7')
    for line in training.stdout:
        if 'validation bound' in line:
            break
    for _ in range(2):
        training.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    out, err = training.communicate(timeout=TIME_OUT)
    assert training.returncode in (0, 130, -signal.SIGTERM) and 'Traceback' not in err
    assert '--resume' in out or training.returncode == -signal.SIGTERM  # which came after the message was due
    assert resume(only_folder('results'), '-t', '64') == 0


# Two trainings of one folder

def test_folder_in_use_is_refused(workplace, capsys):
    training = process(*ARGV, '-t', '1e7')
    try:
        for line in training.stdout:
            if 'validation bound' in line:
                break
        assert 'in use' in refusal(capsys, '--resume', only_folder('results'))
        sample.main([str(only_folder('results')), '-n', '1', '-o', 'out'])  # looking is allowed
    finally:
        training.kill()
        training.communicate()
    assert resume(only_folder('results'), '-t', '64') == 0


# Numbers going bad

@pytest.mark.parametrize('number', [np.nan, np.inf])
@pytest.mark.parametrize('where', ['bound', 'gradient'])
def test_number_that_is_not_finite_touches_nothing(workplace, capsys, monkeypatch, where, number):
    folder = train('-t', '64')
    training, step = [], train_mnist.Training.step

    def spoiled(self, x):
        training[:] = [self, {name: parameter.data().asnumpy() for name, parameter in
                              storage.parameters(self.net).items()}]
        if self.seen == 96:
            if where == 'bound':
                x = x + number
            else:
                monkeypatch.setattr(gluon.utils, 'clip_global_norm',
                                    lambda *args, **kwargs: nd.array([number]))
        return step(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(train_mnist.Training, 'step', spoiled)
        assert resume(folder, '-t', '192') == 1
    net, before = training[0].net, training[1]
    for name, parameter in storage.parameters(net).items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[name], err_msg=name)
    err = capsys.readouterr().err.splitlines()[-1]
    assert 'not finite' in err and '--learning_rate' in err and f'--resume {folder}' in err
    assert checkpoint(folder)[1]['samples_seen'] == 64
    assert storage.read_config(folder)['samples_seen'] == 96
