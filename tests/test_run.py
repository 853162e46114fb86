"""A run's life: it begins, fills its folder, and continues exactly, whatever ended it."""
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

import sample
import train_mnist
from commands import TIME_OUT, python, started
from conftest import ROOT
from dataset.load import load
from networks import assert_equal
from pictures import paint, plot
from runs import config, params
from runs import run as runs_run
from runs.log import Log
from runs.run import Run, create, lock
from runs.training import Training
from small_runs import (
    ARGV,
    assert_same_end,
    at_call,
    checkpoint_of,
    code_of,
    config_of,
    contents,
    fail_with,
    fails,
    new_folder,
    one_line,
    only_folder,
    refusal,
    resume,
    send,
    train,
    write_images,
)

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
ATTENTION = [*ARGV, '--attention']

pytestmark = pytest.mark.usefixtures('workplace')


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing a figure takes longer than training for it."""
    monkeypatch.setattr(plot, 'figure', lambda table: None)
    monkeypatch.setattr(plot, 'png', lambda figure: b'a figure')


@pytest.fixture(scope='module')
def attentive(tmp_path_factory):
    """A finished run of ATTENTION."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(new_folder(tmp_path_factory))
        return Path.cwd() / train('--attention')


def ending(monkeypatch, capsys, *disturbance, argv=ARGV):
    """Train a run, disturbed by `at_call` with these arguments. Returns the exit code and what was printed."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_call(patch, *disturbance)
        code = code_of(train_mnist.main, *argv)
    return (code, *capsys.readouterr())


def words_after(text, line):
    """The arguments of the command at the end of a line, which can be typed in this folder."""
    python, script, *argv = shlex.split(line.partition(text)[2])
    assert python == 'python' and os.path.samefile(script, ROOT / 'train_mnist.py')
    return argv


def assert_continues(line, whole):
    """The command at the end of a line continues the run to the same end."""
    assert code_of(train_mnist.main, *words_after('Continue with: ', line)) == 0
    assert_same_end(only_folder(), whole)


def assert_no_run():
    assert not os.path.exists('results') or os.listdir('results') == []


def assert_nothing_is_lost(code, line, whole):
    """A run that fails before its first step leaves no folder; a later one continues to the same end."""
    if code == 2:
        return assert_no_run()
    assert code == 1 and not list(only_folder().rglob('*.tmp'))
    assert_continues(line, whole)


# A run from beginning to end

def test_folder_of_a_complete_run(finished):
    assert sorted(os.listdir(finished)) == sorted([
        'best.safetensors', 'checkpoint.safetensors', 'config.json', 'curves.csv', 'curves.png', 'kl_per_step.csv',
        'samples', 'train', 'validation'])
    assert sorted(os.listdir(finished / 'samples')) == [f'sample_{i}.gif' for i in range(10)]
    content, args = config_of(finished), config.parse_args(ARGV)
    stored = vars(config.read(finished)['arguments'])
    changed = {'input_height': 5, 'input_width': 7, 'dataset': stored['dataset'], 'logdir': stored['logdir'],
               'data_dir': stored['data_dir']}  # paths were made absolute in another folder
    assert stored == {**vars(args), **changed}
    assert content['command'] == shlex.join(['train_mnist.py', *ARGV, '--logdir', 'results'])
    assert content['images']['splits']['train']['images'] == 50 and content['versions']['mxnet'] == mx.__version__
    result = content['validation']
    assert result['num_images'] == 10 and result['samples_seen'] == 48 and result['unit'] == 'nats'
    assert result['bound'] == pytest.approx(result['reconstruction'] + result['kl']) and 0 < result['bound'] < 24.26
    # 35 log 2 = 24.26 nats without training


def test_same_command_trains_the_same_run(finished):
    assert_same_end(train(), finished)
    other = train('--seed', '1', logdir='other')
    assert (other / params.BEST).read_bytes() != (finished / params.BEST).read_bytes()


def test_run_ends_with_its_best_parameters(monkeypatch):
    """They need not be its last. Their bound is over all validation images, with pixels as in training."""
    validations, bounds = [], iter([6., 5., 7., 8.])

    def validate(training, images, on_batch=None):
        validations.append((images, params.arrays_of(training.net)))
        return next(bounds), 1., np.ones(2)

    monkeypatch.setattr(Training, 'validate', validate)
    folder = train('-v', '7', '--binarization', 'threshold')
    assert [len(images) for images, _ in validations] == [7, 7, 7, 10] and config_of(folder)['validation']['bound'] == 8
    grey = load('images.npy', splits=['validation']).splits['validation']
    np.testing.assert_array_equal(validations[-1][0], grey > 127)
    _, (_, lowest), (_, last), (_, final) = validations
    best = params.arrays_of(params.load_net(str(folder)))
    assert_equal(best, lowest)
    assert_equal(best, final)
    assert any((best[name] != last[name]).any() for name in best)
    assert checkpoint_of(folder)[1]['best_bound'] == 5
    assert code_of(sample.main, folder, '-o', 'out') in (None, 0)
    assert contents('out') == contents(folder / 'samples')


def test_no_checkpoint_is_ahead_of_its_log(monkeypatch):
    calls = []
    for owner, name in (Log, 'sync'), (Log, 'bound'), (params, 'save'):
        at_call(monkeypatch, owner, name, None, lambda *args, name=name: calls.append(name))
    train('-t', '16')
    assert calls == ['bound', 'sync', 'save', 'bound', 'bound', 'sync', 'save', 'save']


def test_folders_have_names_of_their_own(monkeypatch):
    monkeypatch.setattr(runs_run.time, 'strftime', lambda layout: 'now')
    args = config.parse_args(['--logdir', 'logs'])
    os.makedirs('logs/now-no_attention-2')
    assert [os.path.basename(create(args)) for _ in range(3)] == [f'now-no_attention{k}' for k in ('', '-3', '-4')]
    assert os.path.basename(create(config.parse_args(['--logdir', 'logs', '--name', 'mine']))) == 'now-mine'


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


# Resumed

def test_complete_run_says_so_and_changes_nothing(run, capsys):
    before = contents(run)
    assert resume(run) == resume(run, '-t', '32') == 0  # a run does not get shorter
    out, err = capsys.readouterr()
    assert not err
    assert out.splitlines()[-1] == f'{run} is complete. To train further, give a larger --num_train_samples.'
    assert contents(run) == before


def test_larger_number_of_samples_trains_on():
    whole = train('-t', '96', '--lr_decay', '0', logdir='whole')
    folder = train('--lr_decay', '0')
    assert resume(folder, '-t', '96') == 0
    assert config_of(folder)['resumed_with'] == f'train_mnist.py --resume {folder} -t 96'
    assert_same_end(folder, whole)


@pytest.mark.parametrize('val_freq', ['16', '1e6'])
def test_run_that_has_seen_enough_already_ends(monkeypatch, capsys, val_freq):
    """It validates first if it never did."""
    ending(monkeypatch, capsys, *PHASES['last step'], send(TERM), argv=[*ARGV, '-t', '1e6', '-f', val_freq])
    assert resume(only_folder(), '-t', '40') == 0
    assert config_of(only_folder())['validation']['samples_seen'] == 48


def test_validation_that_is_worse_leaves_the_best_parameters(run, monkeypatch):
    best = (run / params.BEST).read_bytes()
    monkeypatch.setattr(Training, 'validate', lambda *_: (1e4, 1e4, np.zeros(2)))
    assert resume(run, '-t', '96') == 0
    assert (run / params.BEST).read_bytes() == best
    assert checkpoint_of(run)[1]['best_bound'] < 24


def test_run_in_use_is_refused(run, monkeypatch, capsys):
    with lock(run):
        assert f'{run} is in use' in refusal(capsys, train_mnist.main, '--resume', run, '-t', '64')
        assert params.load_run(run)  # looking is allowed
    told = []
    ending(monkeypatch, capsys, *PHASES['later step'],
           lambda *_: told.append(fails(lock(only_folder('other')).__enter__)), argv=[*ARGV, '--logdir', 'other'])
    assert 'is in use' in told[0]


def test_file_system_without_locks(run, monkeypatch, capsys):
    monkeypatch.setattr(runs_run.fcntl, 'flock', fail_with(OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))))
    assert 'cannot be locked: Operation not supported' in refusal(capsys, train_mnist.main, '--resume', run)
    shutil.rmtree(run)
    assert 'cannot be locked' in refusal(capsys, train_mnist.main, *ARGV)
    assert_no_run()


def lose_best_parameters(run):
    """Which the latest checkpoint does not have either."""
    arrays, state = checkpoint_of(run)
    params.save(run / params.CHECKPOINT, arrays, {**state, 'is_best': False})
    (run / params.BEST).unlink()


REFUSED = {
    'other images': (lambda run: write_images('own.npy', seed=1), 'these are'),
    'no run': (shutil.rmtree, 'is not the folder of a run'),
    'no best parameters': (lose_best_parameters, params.BEST),
    'no checkpoint': (lambda run: (run / params.CHECKPOINT).unlink(), 'has no checkpoint.safetensors: start a new run'),
    'damaged checkpoint': (lambda run: os.truncate(run / params.CHECKPOINT, 5000), params.CHECKPOINT),
    'damaged log': (lambda run: (run / 'curves.csv').write_bytes(b'samples_seen\n\n\xff'), 'curves.csv is damaged'),
    'the log is a file': (lambda run: (shutil.rmtree(run / 'train'), (run / 'train').write_text('')), 'train')}


def test_both_parameter_files_lost(run, capsys):
    REFUSED['no best parameters'][0](run)
    REFUSED['no checkpoint'][0](run)
    assert REFUSED['no checkpoint'][1] in refusal(capsys, train_mnist.main, '--resume', run)


def test_a_lost_checkpoint_costs_no_best_parameters(monkeypatch, capsys):
    """The run was stopped between its first validation and its end."""
    ending(monkeypatch, capsys, Training, 'update', 4, send(TERM), argv=[*ARGV, '-f', '8', '--logdir', 'stopped'])
    run = only_folder('stopped')
    REFUSED['no checkpoint'][0](run)
    before = contents('.')
    assert REFUSED['no checkpoint'][1] in refusal(capsys, train_mnist.main, '--resume', run)
    assert contents('.') == before


@pytest.mark.parametrize('flags', [[], ['-r', '1e-30'], ['-f', '64']], ids=str)  # the first bound may be the best one
def test_crash_between_the_first_checkpoint_and_its_best_parameters(monkeypatch, capsys, flags):
    argv = [*ARGV, '--checkpoint_freq', '64', *flags]
    whole = train(*argv, logdir='whole')
    ending(monkeypatch, capsys, params, 'save', 2, fail_with(MemoryError('full')), argv=[*argv, '--logdir', 'crashed'])
    crashed = only_folder('crashed')
    assert checkpoint_of(crashed)[1]['is_best'] and not (crashed / params.BEST).exists()
    assert resume(crashed) == 0
    assert_same_end(crashed, whole)


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_continued_is_refused(capsys, run, case):
    """One line says so before work starts, and nothing is lost. (Moving the images would not matter.)"""
    shutil.copy(config_of(run)['arguments']['dataset'], 'own.npy')
    damage, reason = REFUSED[case]
    damage(run)
    before = contents('.')
    assert reason in refusal(capsys, train_mnist.main, '--resume', run, '-t', '64', '--dataset', 'own.npy')
    after = contents('.')
    if 'log' not in case:
        assert after == before
    assert all(after[path] == content for path, content in before.items() if path.endswith('.safetensors'))


def test_event_file_that_cannot_be_opened(run, monkeypatch, capsys):
    full = fail_with(OSError(errno.EMFILE, 'Too many open files'))
    monkeypatch.setattr('mxboard.record_writer.open', full, raising=False)
    before = contents('.')
    assert 'Too many open files' in refusal(capsys, train_mnist.main, '--resume', run, '-t', '64')
    assert contents('.') == before


def test_temporary_files_of_others_are_kept(run):
    names = {'notes.tmp': True, 'best.safetensors.7.tmp': False}
    for name in names:
        (run / name).write_text('')
    assert resume(run, '-t', '64') == 0
    assert {name: (run / name).exists() for name in names} == names


# From another run's model

def test_init_takes_the_parameters_and_nothing_else(run, monkeypatch):
    given, found = params.arrays_of(params.load_net(run)), []

    def look(training, losses):
        found.append((params.arrays_of(training.net), training.seen, training.best_bound))

    with monkeypatch.context() as patch:
        at_call(patch, Training, 'update', 1, look)
        folder = train('--init', run, '--seed', '5', '--binarization', 'static', logdir='new')
    (arrays, seen, best_bound), = found
    assert_equal(arrays, given)
    assert seen == 0 and best_bound == np.inf
    assert config_of(folder)['arguments']['init'] == str(Path.cwd() / run)


def test_run_from_a_model_continues_exactly(run, monkeypatch, capsys):
    """It needs that model only before its first checkpoint."""
    argv = [*ARGV, '--init', str(run), '--checkpoint_freq', '16']
    whole = train(*argv, logdir='whole')
    full = fail_with(MemoryError('full'))
    ending(monkeypatch, capsys, Training, 'update', 2, full, argv=[*argv, '--logdir', 'early'])
    assert not (only_folder('early') / params.CHECKPOINT).exists() and resume(only_folder('early')) == 0
    assert_same_end(only_folder('early'), whole)
    ending(monkeypatch, capsys, Training, 'update', 4, send(TERM), argv=[*argv, '--logdir', 'late'])
    shutil.rmtree(run)
    assert resume(only_folder('late')) == 0
    assert_same_end(only_folder('late'), whole)


def test_batch_that_cannot_be_divided_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(devices, 'contexts', lambda args: [mx.cpu(0), mx.cpu(1), mx.cpu(2)])
    assert '8 images cannot be divided evenly among 3 devices' in refusal(capsys, train_mnist.main, *ARGV)
    assert_no_run()
