"""Faults in the middle of a training: signals by phase, system calls that fail, no memory, output nobody reads."""
import builtins
import errno
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mxnet import MXNetError

import evaluate
import train_mnist
from commands import TIME_OUT, assert_no_run, command, new_folder, only_folder, refusal
from pictures import paint
from runs import log, storage
from runs.training import Training

SIZES = ['-s', '2', '-u', '4', '-l', '2', '-b', '8', '-t', '48', '-f', '16', '-v', '8', '--checkpoint_freq', '8']
SAME = ['last.safetensors', 'best.safetensors', os.path.join('samples', 'sample_9.gif')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that nothing befell, beside data/."""
    folder = new_folder(tmp_path_factory)
    assert train_mnist.main([*SIZES, '--data_dir', str(folder / 'data'), '--logdir', str(folder / 'whole')]) == 0
    return only_folder(folder / 'whole')


@pytest.fixture
def argv(whole, tmp_path, monkeypatch):
    """The command of that run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return [*SIZES, '--data_dir', str(whole.parent.parent / 'data')]


def at_call(patch, owner, name, number, action):
    """Have `action` done before call `number` of a function."""
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    patch.setattr(owner, name, counted)


def ending(argv):
    try:
        return train_mnist.main(argv)
    except SystemExit as stop:
        return stop.code


def assert_goes_on_to_the_same_end(whole):
    """Nothing is half-written, and the run, if there is one, goes on as if nothing had been."""
    runs = list(Path('results').iterdir()) if os.path.isdir('results') else []
    assert not [run for run in runs if run.name.startswith('.')]
    for run in runs:
        assert not list(run.rglob('*.tmp'))
        assert train_mnist.main(['--resume', str(run)]) == 0
        for name in SAME:
            assert (run / name).read_bytes() == (whole / name).read_bytes(), name
        left, right = (storage.read_config(folder)['validation'] for folder in (run, whole))
        assert left == right
    return runs


# Signals

PHASES = {'first step': (Training, 'step', 1), 'step that a validation follows': (Training, 'step', 2),
          'last step': (Training, 'step', 6), 'validation': (Training, 'validate', 1),
          'pictures': (log.Log, 'pictures', 2), 'checkpoint': (Training, 'save_checkpoint', 3),
          'final validation': (Training, 'validate', 4), 'GIFs': (paint, 'write_gifs', 1)}


@pytest.mark.parametrize('phase', PHASES)
def test_signal_in_any_phase(whole, argv, monkeypatch, capsys, phase):
    with monkeypatch.context() as patch:
        at_call(patch, *PHASES[phase], lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert ending(argv) == 0
    out, err = capsys.readouterr()
    assert not err and ('--resume' in out) == (phase != 'GIFs')
    assert assert_goes_on_to_the_same_end(whole)


@pytest.mark.parametrize('phase', ['validation', 'checkpoint', 'final validation', 'GIFs'])
def test_second_signal_in_any_phase(whole, argv, monkeypatch, capsys, phase):
    with monkeypatch.context() as patch:
        at_call(patch, *PHASES[phase], lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
        assert ending(argv) == 130
    out, err = capsys.readouterr()
    assert not err and '--resume' in out
    assert assert_goes_on_to_the_same_end(whole)
    assert 'is complete' not in capsys.readouterr().out


# System calls

CALLS = [(os, 'rename', 1), (os, 'fsync', 2), (os, 'fsync', 12), (os, 'replace', 1), (os, 'replace', 9),
         (os, 'replace', 24), (os, 'makedirs', 4), (builtins, 'open', 60)]


@pytest.mark.parametrize('owner, name, number', CALLS, ids=[f'{name} {number}' for _, name, number in CALLS])
def test_system_call_that_fails(whole, argv, monkeypatch, capsys, owner, name, number):
    def fail():
        failed.append(name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'somewhere')

    failed = []
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, number, fail)
        code = ending(argv)
    assert failed and code in (1, 2)
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and 'No space left on device' in err
    assert assert_goes_on_to_the_same_end(whole) or code == 2


def test_file_system_without_locks(argv, monkeypatch, capsys):
    def fail(*args):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(storage.fcntl, 'flock', fail)
    err = refusal(capsys, train_mnist.main, *argv)
    assert 'results' in err and 'cannot be locked' in err
    assert_no_run()


@pytest.mark.parametrize('error', [MemoryError('Unable to allocate 9 GiB'), MXNetError('Stack:\n  no memory')],
                         ids=type)
@pytest.mark.parametrize('step', [1, 4])
def test_no_memory(whole, argv, monkeypatch, capsys, error, step):
    def fail():
        raise error

    with monkeypatch.context() as patch:
        at_call(patch, Training, 'step', step, fail)
        assert ending(argv) == (2 if step == 1 else 1)
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and str(error).splitlines()[-1].strip() in err
    assert bool(assert_goes_on_to_the_same_end(whole)) == (step > 1)


def test_no_memory_to_evaluate(whole, argv, monkeypatch, capsys):
    def fail(*args):
        raise MemoryError('Unable to allocate 9 GiB')

    monkeypatch.setattr(evaluate.stream, 'evaluation_images', fail)
    assert 'Unable to allocate 9 GiB' in refusal(capsys, evaluate.main, whole)


# Folders

def test_command_to_go_on_where_the_name_begins_with_a_dash(whole, argv, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_call(patch, Training, 'step', 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert ending([*argv, '--logdir=-dash']) == 0
    words = shlex.split(capsys.readouterr().out.partition('Go on with: ')[2])
    assert words[1].endswith('train_mnist.py')
    assert train_mnist.main(words[2:]) == 0
    assert (only_folder('./-dash') / SAME[1]).read_bytes() == (whole / SAME[1]).read_bytes()


def test_folder_that_is_gone(argv, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_call(patch, Training, 'step', 3, lambda: shutil.rmtree('results'))
        assert ending(argv) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and 'No such file' in err


# Output

@pytest.mark.parametrize('streams', ['2>&1 | head -1', '> /dev/full 2>&1', '<&- >&- 2>&-'])
def test_output_that_nobody_reads_ends_no_training(whole, argv, streams):
    line = f'{shlex.join(command("train_mnist.py", *argv))} {streams}'
    done = subprocess.run(['bash', '-c', f'set -o pipefail; {line}'], timeout=TIME_OUT)
    assert done.returncode == 0
    run = only_folder('results')
    assert storage.read_config(run)['validation'] == storage.read_config(whole)['validation']
    assert (run / SAME[0]).read_bytes() == (whole / SAME[0]).read_bytes()
