"""Trainings that end hard: killed at any moment, with a full disk, or with another training in the same folder."""
import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import sample
import train_mnist
from commands import (
    ROOT,
    TIME_OUT,
    assert_same_curves,
    assert_same_files,
    before_step,
    command,
    only_folder,
    refusal,
    resume,
    samples_seen,
    train,
)
from runs import storage

pytestmark = pytest.mark.usefixtures('no_figures')


@pytest.mark.parametrize('kills', [8, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments(workplace, kills):
    """SIGKILL: nothing is refused, at most one interval is lost, and the end is the same."""
    done = subprocess.run([sys.executable, ROOT / 'tests' / 'kill.py', '.', str(kills)], capture_output=True, text=True,
                          timeout=TIME_OUT + 10 * kills)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result['refusals'] == 0 and result['codes'] == [0, 0], Path('output.txt').read_text()[-2000:]
    assert result['largest_loss'] <= 16 + 8  # one interval, and the step before whose end the checkpoint was due
    assert all(result['same'].values())
    assert result['moments'] == sorted(result['moments']) and result['moments'][-1] >= 8 * kills
    assert not list(Path(result['run']).glob('*.tmp'))
    assert_same_curves(result['run'], result['whole'])


# A full disk: a limit on the size of a file stands for it

def assert_told(err, what, folder):
    line = err.splitlines()[-1]
    assert what in line and f'--resume {folder}' in line and 'Traceback' not in err and 'Exception' not in err


def test_full_disk(run):
    """The event file grows into it."""
    def set_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = subprocess.run(command('train_mnist.py', '--resume', run, '-t', '1e6', '-f', '1e6'), capture_output=True,
                          text=True, timeout=TIME_OUT, preexec_fn=set_limit)
    assert done.returncode == 1
    assert_told(done.stderr, 'File too large', run)
    assert samples_seen(run) == 64 and not list(run.glob('*.tmp'))
    assert resume(run, '-t', '80', '-f', '64') == 0
    assert_same_files(run, train('-t', '80', logdir='whole'), ['last.safetensors'])


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('room', [-3000, -1, 0])
def test_full_disk_during_a_checkpoint(run, capsys, room):
    path = run / 'checkpoint.safetensors'
    before = path.read_bytes()
    with largest_file(len(before) + room):
        # Some digits of the metadata grow, and the file with them.
        code = resume(run, '-t', '1e5', '-f', '1e5', '--log_freq', '1e5', '--checkpoint_freq', '32')
    assert code == 1
    assert_told(capsys.readouterr().err, path.name, run)
    assert path.read_bytes() == before and not list(run.glob('*.tmp'))
    assert resume(run, '-t', '80', '-f', '64') == 0


# Two trainings of one folder

def test_folder_in_use_is_refused(run, capsys):
    with storage.lock(run):
        assert f'{run} is in use' in refusal(capsys, train_mnist.main, '--resume', run, '-t', '80')
        sample.main([str(run), '-n', '1', '-o', 'out'])  # looking is allowed
    assert resume(run, '-t', '80') == 0


def test_training_holds_its_folder(workplace, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, lambda training: held.append(is_held(only_folder('results'))))
        held = []
        folder = train('-t', '32')
    assert held == [True, True] and not is_held(folder)


def is_held(folder):
    try:
        with storage.lock(folder):
            return False
    except storage.RunError:
        return True
