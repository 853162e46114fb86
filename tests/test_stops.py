"""What ends a run, a signal or a failure, costs nothing that it had reached: it continues to the same end."""
import errno
import itertools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from system import devices

import mxnet as mx
import numpy as np
import pytest

import train_mnist
from commands import TIME_OUT, python, started
from conftest import ROOT
from networks import assert_equal
from pictures import paint, plot
from runs import config, params
from runs.log import Log
from runs.run import Run
from runs.training import Training
from small_runs import (
    ARGV,
    assert_no_run,
    assert_same_end,
    at_call,
    checkpoint_of,
    code_of,
    config_of,
    contents,
    ending,
    fail_with,
    new_folder,
    one_line,
    only_folder,
    resume,
    send,
    train,
)

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
ATTENTION = [*ARGV, '--attention']

pytestmark = pytest.mark.usefixtures('workplace', 'no_figures')


@pytest.fixture(scope='module')
def attentive(tmp_path_factory):
    """A finished run of ATTENTION."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(new_folder(tmp_path_factory))
        return Path.cwd() / train('--attention')


def words_after(text, line):
    """The arguments of the command at the end of a line, which can be typed in this folder."""
    python, script, *argv = shlex.split(line.partition(text)[2])
    assert os.path.samefile(shutil.which(python), sys.executable) and os.path.samefile(script, ROOT / 'train_mnist.py')
    return argv


def assert_continues(line, whole):
    """The command at the end of a line continues the run to the same end."""
    assert code_of(train_mnist.main, *words_after('Continue with: ', line)) == 0
    assert_same_end(only_folder(), whole)


def assert_nothing_is_lost(code, line, whole):
    """A run that fails before its first step leaves no folder; a later one continues to the same end."""
    if code == 2:
        return assert_no_run()
    assert code == 1 and not list(only_folder().rglob('*.tmp'))
    assert_continues(line, whole)


# Stopped by a signal

PHASES = {'first step': (Training, 'update', 1), 'step before a validation': (Training, 'update', 2),
          'later step': (Training, 'update', 3), 'last step': (Training, 'update', 6),
          'validation': (Training, 'validate', 1), 'pictures': (Log, 'pictures', 2),
          'checkpoint': (Run, 'save_checkpoint', 3), 'best': (params, 'save', 3),
          'final validation': (Training, 'validate', 4)}


@pytest.mark.parametrize('phase, end', [*zip(PHASES, itertools.cycle([(INT, 130), (TERM, 0), (HUP, 0)]))])
def test_run_that_a_signal_stops_continues_exactly(attentive, monkeypatch, capsys, phase, end):
    number, expected = end
    code, out, err = ending(monkeypatch, capsys, *PHASES[phase], send(number), argv=ATTENTION)
    assert code == expected and not err
    line = out.splitlines()[-1]
    seen = checkpoint_of(only_folder())[1]['samples_seen']
    assert f'Stopped after {seen} training samples. ' in line and 'validation' not in config_of(only_folder())
    assert_continues(line, attentive)


@pytest.mark.parametrize('flags', [['--gpu'], ['--gpus', '0,1']], ids=str)
def test_the_command_that_continues_names_the_gpus(monkeypatch, capsys, flags):
    monkeypatch.setattr(devices, 'contexts', lambda args: [mx.cpu()])
    _, out, _ = ending(monkeypatch, capsys, *PHASES['later step'], send(TERM), argv=[*ARGV, *flags])
    assert words_after('Continue with: ', out.splitlines()[-1]) == ['--resume', str(only_folder()), *flags]


@pytest.mark.parametrize('where', [*[*PHASES.values()][1:], (paint, 'write_gifs', 1)], ids=str)
def test_second_signal_ends_at_once(finished, monkeypatch, capsys, where):
    code, out, err = ending(monkeypatch, capsys, *where, send(TERM, INT))
    assert code == 130 and not err
    assert_continues(out.splitlines()[-1], finished)


@pytest.mark.parametrize('where, numbers', [
    ((paint, 'write_gifs', 1), [TERM]), ((plot, 'png', 1), [TERM, INT, HUP]), ((Log, 'close', 1), [TERM, INT, HUP])],
    ids=str)
def test_signals_at_the_very_end_stop_nothing(finished, monkeypatch, capsys, where, numbers):
    handlers = [signal.getsignal(number) for number in (INT, TERM, HUP)]
    code, out, _ = ending(monkeypatch, capsys, *where, send(*numbers))
    assert code == 0 and 'Negative variational bound' in out
    assert_same_end(only_folder(), finished)
    assert [signal.getsignal(number) for number in (INT, TERM, HUP)] == handlers


@pytest.mark.parametrize('owner, name', [
    (train_mnist, 'load'), (params, 'build_net'), (Run, 'begin'), (Training, 'update')])
def test_second_signal_before_the_first_step_leaves_nothing(monkeypatch, capsys, owner, name):
    code, out, err = ending(monkeypatch, capsys, owner, name, 1, send(INT, INT))
    assert code == 130 and not err and 'Continue' not in out
    assert owner == train_mnist or out.splitlines()[-1] == 'Stopped before the first step.'
    assert_no_run()


def test_second_signal_in_the_first_moments_of_a_resumed_run(run, monkeypatch, capsys):
    before = contents(run)
    with monkeypatch.context() as patch:
        at_call(patch, params, 'build_net', 1, send(INT, INT))
        assert resume(run, '-t', '64') == 130
    assert words_after('Continue with: ', capsys.readouterr().out) == ['--resume', str(run)]
    assert contents(run) == before


def test_hangup_is_ignored_under_nohup(finished, monkeypatch, capsys):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        assert ending(monkeypatch, capsys, *PHASES['later step'], send(HUP))[0] == 0
        assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)
    assert_same_end(only_folder(), finished)


def test_ctrl_c_of_a_process():
    with started('train_mnist.py', *ARGV, '-t', '1e9', '-f', '1e6', '--log_freq', '1e6') as process:
        try:
            assert any('Run folder' in line for line in process.stdout)
            process.send_signal(INT)
            out, err = process.communicate(timeout=TIME_OUT)
        finally:
            process.kill()
    assert process.returncode == 130 and not err
    seen = checkpoint_of(only_folder())[1]['samples_seen']
    line = f'Stopped after {seen:,} training samples. Continue with: '
    assert words_after(line, out) == ['--resume', str(only_folder())]


def test_run_that_is_killed_at_random_moments_continues_exactly():
    """It loses at most what follows the last checkpoint, never refuses to resume, and ends the same."""
    done = python(ROOT / 'tests' / 'kill.py', '10')
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result['refusals'] == 0 and result['codes'] == [0, 0], Path('output.txt').read_text()[-2000:]
    assert 0 <= max(result['lost']) <= 16  # the checkpoint's interval, and the step after which it was due
    assert result['moments'] == sorted(result['moments']) and result['moments'][-1] > 80
    assert_same_end(result['run'], result['whole'])


# Stopped by a failure

def no_room(name, number):
    """What fails, as on a full disk, when a file is about to get this name for the nth time."""
    times = itertools.count(1)

    def fail(source, destination):
        if str(destination).endswith(name) and next(times) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    return fail


@pytest.mark.parametrize('name, number', [
    ('config.json', 1), ('curves.csv', 1), ('kl_per_step.csv', 1), ('best.safetensors', 1), ('best.safetensors', 3),
    ('checkpoint.safetensors', 1), ('checkpoint.safetensors', 6), ('config.json', 2)])
def test_full_disk_at_any_whole_file(finished, monkeypatch, capsys, name, number):
    code, _, err = ending(monkeypatch, capsys, os, 'replace', None, no_room(name, number))
    assert f'{name}: No space left on device' in one_line(err)
    assert_nothing_is_lost(code, err, finished)


@pytest.mark.parametrize('room, file', [(1000, 'config.json'), (5000, 'checkpoint.safetensors'), (13000, '')])
def test_full_disk_while_a_file_grows(attentive, capsys, room, file):
    """A limit on the size of a file stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        code = code_of(train_mnist.main, *ATTENTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = one_line(capsys.readouterr().err)
    assert file in line and 'File too large' in line
    assert_nothing_is_lost(code, line, attentive)


@pytest.mark.parametrize('disturbance, told', [
    ((os, 'replace', None, no_room('sample_3.gif', 1)), 'the samples were not written'),
    ((os, 'replace', None, no_room('curves.png', 1)), 'was not drawn'),
    ((Log, 'result', 1, lambda *_: (only_folder() / 'samples').touch()), 'the samples were not written')],
    ids=['no room for a sample', 'no room for the curves', 'samples is a file'])
def test_pictures_that_cannot_be_written_keep_no_run_from_finishing(finished, monkeypatch, capsys, disturbance, told):
    code, out, _ = ending(monkeypatch, capsys, *disturbance)
    note, = (line for line in out.splitlines() if line.startswith('Note: '))
    assert code == 0 and told in note
    assert config_of(only_folder())['validation'] == config_of(finished)['validation']


@pytest.mark.parametrize('error', [MemoryError('Unable to allocate 9 GiB'),
                                   mx.MXNetError('Traceback:\n  [bt] x\nMXNetError: no such engine')], ids=type)
@pytest.mark.parametrize('step', [1, 4])
def test_what_mxnet_or_the_system_refuses_is_said(finished, monkeypatch, capsys, error, step):
    code, _, err = ending(monkeypatch, capsys, Training, 'update', step, fail_with(error))
    assert str(error).splitlines()[-1] in one_line(err) and code == (2 if step == 1 else 1)
    assert_nothing_is_lost(code, err, finished)


@pytest.mark.parametrize('step', [1, 4])
def test_bug_is_shown_as_such(finished, monkeypatch, capsys, step):
    with pytest.raises(ZeroDivisionError):
        ending(monkeypatch, capsys, Training, 'update', step, fail_with(ZeroDivisionError()))
    if step == 1:
        return assert_no_run()
    assert resume(only_folder()) == 0
    assert_same_end(only_folder(), finished)


def test_bound_that_is_not_finite_touches_no_parameter(finished, monkeypatch, capsys):
    found = []

    def spoil(training, losses):
        found.append((training, params.arrays_of(training.net)))
        losses[0][0][:] = np.nan

    code, _, err = ending(monkeypatch, capsys, Training, 'update', 4, spoil)
    line = one_line(err)
    assert code == 1 and 'not finite after 24 training samples' in line
    training, before = found[0]
    assert_equal(params.arrays_of(training.net), before)
    argv = words_after('start from them with: ', line)
    assert argv == ['--init', str(only_folder()), '-r', '0.001']
    assert config.parse_args(argv).learning_rate == 0.001
    assert resume(only_folder()) == 0  # it was not the run's fault here
    assert_same_end(only_folder(), finished)


@pytest.mark.parametrize('step', [1, 2])
def test_gradient_that_is_not_finite_before_the_first_validation(monkeypatch, capsys, step):
    """There are no best parameters to keep; before the first step there is no run either."""
    def spoil(training, losses):
        training.net.h_dec_0.grad()[:] = np.inf

    code, _, err = ending(monkeypatch, capsys, Training, 'update', step, spoil)
    line = one_line(err)
    assert f'not finite after {8 * (step - 1)} training samples' in line
    if step == 1:
        assert code == 2
        return assert_no_run()
    assert code == 1 and line.endswith('Try a smaller learning rate: -r 0.001')


def test_folder_that_is_deleted(monkeypatch, capsys):
    code, _, err = ending(monkeypatch, capsys, *PHASES['later step'], lambda *_: shutil.rmtree('results'))
    assert code == 1 and 'No such file' in one_line(err)


def test_working_folder_that_is_deleted(finished, tmp_path, monkeypatch, capsys):
    """The run lies elsewhere, and can continue."""
    def leave(*_):
        os.mkdir('gone')
        os.chdir('gone')
        os.rmdir('../gone')
        os.kill(os.getpid(), TERM)

    code, out, err = ending(monkeypatch, capsys, *PHASES['later step'], leave)
    os.chdir(tmp_path)
    assert code == 0 and not err
    assert words_after('Continue with: ', out.splitlines()[-1]) == ['--resume', str(tmp_path / only_folder())]
    assert resume(only_folder()) == 0
    assert_same_end(only_folder(), finished)


@pytest.mark.parametrize('streams', ['2>&1 | head -1', '> /dev/full 2>&1', '<&- >&- 2>&-'])
def test_output_that_nobody_reads_ends_no_run(finished, streams):
    line = shlex.join([sys.executable, str(ROOT / 'train_mnist.py'), *ARGV])
    done = subprocess.run(['bash', '-c', f'set -o pipefail; {line} {streams}'], stdout=subprocess.DEVNULL,
                          timeout=TIME_OUT)
    assert done.returncode == 0
    assert_same_end(only_folder(), finished)
