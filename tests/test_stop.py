"""Training that is stopped by a signal, in every phase, and numbers that are not finite."""
import os
import shlex
import shutil
import signal
import sys

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon, nd

import sample
import train_mnist
from commands import (
    ARGV,
    BATCH,
    ROOT,
    before_step,
    checkpoint,
    config_of,
    new_folder,
    only_folder,
    resume,
    samples_seen,
    script,
    started,
    train,
    wait_for_line,
)
from dataset import stream
from runs import storage

pytestmark = pytest.mark.usefixtures('no_figures')

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGHUP: 0}
TINY = [*ARGV, '-t', '64']


def assert_says_how_to_go_on(text, folder):
    """Whether a line has a command, as it can be typed here, that goes on with this run; the line."""
    line, = (line for line in text.splitlines() if 'Go on with: ' in line)
    python, path, *argv = shlex.split(line.partition('Go on with: ')[2])
    assert os.path.samefile(shutil.which(python), sys.executable) and os.path.samefile(path, ROOT / 'train_mnist.py')
    assert argv[:2] == ['--resume', str(folder)]
    return line


# Signals

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_signal_saves_and_says_how_to_go_on(workplace, number):
    with started(*ARGV, '--attention', '-t', '1e7') as process:
        wait_for_line(process, 'validation bound')
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == SIGNALS[number] and 'Traceback' not in err
    folder = only_folder('results')
    seen = config_of(folder)['samples_seen']
    assert seen >= 64 and seen % BATCH == 0 and samples_seen(folder) == seen
    assert f'Stopped after {seen:,} training samples' in assert_says_how_to_go_on(out, folder)
    assert 'validation' not in config_of(folder)
    assert not list(folder.glob('*.tmp'))
    sample.main([str(folder), '-n', '1', '-o', 'out'])
    assert os.listdir('out') == ['sample_0.gif']


def signal_in(monkeypatch, phase, *numbers, seen=64):
    """Let the next training get signals at the start of its next `phase`, the name of a step, or of a function."""
    sent = list(numbers)

    def send(*_):
        while sent:
            os.kill(os.getpid(), sent.pop(0))

    if phase == 'step':
        before_step(monkeypatch, lambda training: send() if training.seen == seen else None)
        return
    owner = train_mnist if hasattr(train_mnist, phase) else train_mnist.Training
    function = getattr(owner, phase)

    def signalled(first, *args, **kwargs):
        send()
        return function(first, *args, **kwargs)

    monkeypatch.setattr(owner, phase, signalled)


PHASES = {'step': 80, 'validate': 80, 'save_checkpoint': 80, 'load_best': 128}  # samples seen when it has ended


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = new_folder(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / train('-t', '128')


@pytest.mark.parametrize('phase, number', [*((phase, signal.SIGTERM) for phase in PHASES), ('step', signal.SIGINT),
                                           ('load_best', signal.SIGINT), ('step', signal.SIGHUP)])
def test_signal_in_every_phase(workplace, whole, monkeypatch, capsys, phase, number):
    """load_best: after the last step, before the validation of all images."""
    with monkeypatch.context() as patch:
        signal_in(patch, phase, number)
        assert train_mnist.main([*ARGV, '-t', '128']) == SIGNALS[number]
    folder = only_folder('results')
    line = assert_says_how_to_go_on(capsys.readouterr().out, folder)
    assert samples_seen(folder) == config_of(folder)['samples_seen'] == PHASES[phase]
    assert f'Stopped after {PHASES[phase]} training samples' in line
    assert resume(folder) == 0
    for name in ('last.safetensors', 'best.safetensors', 'samples/sample_0.gif'):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_signal_while_the_gifs_are_written(workplace, monkeypatch, capsys):
    """There is nothing left that could be stopped."""
    write, sent = train_mnist.paint.write_gifs, []

    def signalled(*args, **kwargs):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return write(*args, **kwargs)

    monkeypatch.setattr(train_mnist.paint, 'write_gifs', signalled)
    assert train_mnist.main(TINY) == 0
    assert sent and 'Negative variational bound' in capsys.readouterr().out


@pytest.mark.parametrize('phase', PHASES)
def test_second_signal_ends_at_once(workplace, monkeypatch, capsys, phase):
    with monkeypatch.context() as patch:
        signal_in(patch, phase, signal.SIGTERM, signal.SIGINT)
        assert train_mnist.main([*ARGV, '-t', '128']) == 130
    folder = only_folder('results')
    assert_says_how_to_go_on(capsys.readouterr().out, folder)
    assert not list(folder.glob('*.tmp'))
    assert resume(folder) == 0


def test_hangup_is_ignored_under_nohup(workplace, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_in(monkeypatch, 'step', signal.SIGHUP, seen=16)
        train('-t', '64')
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('module, name', [(stream, 'load'), (storage, 'build_net')])
def test_ctrl_c_before_the_first_step(workplace, monkeypatch, module, name):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)
    try:
        code = train_mnist.main(TINY)
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:  # left alone it would end the test session
        pytest.fail('main lets the KeyboardInterrupt through')
    assert code == 130
    assert os.listdir('results') == []


# Numbers that are not finite

@pytest.mark.parametrize('number', [np.nan, np.inf])
@pytest.mark.parametrize('where', ['bound', 'gradient'])
def test_number_that_is_not_finite_touches_nothing(run, capsys, monkeypatch, where, number):
    best, training, step = (run / 'best.safetensors').read_bytes(), [], train_mnist.Training.step

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
        assert resume(run, '-t', '192') == 1
    net, before = training[0].net, training[1]
    for name, parameter in storage.parameters(net).items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[name], err_msg=name)
    err = capsys.readouterr().err
    assert 'not finite after 96 training samples' in err and 'Traceback' not in err
    assert assert_says_how_to_go_on(err, run).endswith(' --learning_rate 0.001')  # a tenth of what it was
    assert samples_seen(run) == 64 and (run / 'best.safetensors').read_bytes() == best
    assert config_of(run)['samples_seen'] == 96


def test_bad_learning_rate_ends_with_the_best_parameters(workplace, monkeypatch, capsys):
    """A rate that is far too high from the fifth step on: what was good before stays."""
    best = []

    def diverge(training):
        if training.seen == 64:
            best.append((only_folder('results') / 'best.safetensors').read_bytes())
            training.args.learning_rate = 1e30

    before_step(monkeypatch, diverge)
    assert train_mnist.main([*ARGV, '-t', '320']) == 1
    folder = only_folder('results')
    assert 'not finite' in assert_says_how_to_go_on(capsys.readouterr().err, folder)
    assert [(folder / 'best.safetensors').read_bytes()] == best
    net = storage.build_net(config_of(folder)['arguments'])
    storage.load_params(folder, 'last', net, [mx.cpu()])  # refuses numbers that are not finite
    assert samples_seen(folder) == 64 < config_of(folder)['samples_seen'] <= 112
    assert 'validation' not in config_of(folder)
    sample.main([str(folder), '-n', '1', '-o', 'out'])
    assert os.listdir('out') == ['sample_0.gif']


@pytest.mark.parametrize('attention, rate', [(['--attention'], '1'), (['--attention'], '5'), ([], '50')], ids=str)
def test_run_whose_checkpoint_has_exploded_goes_on(workplace, capsys, attention, rate):
    """Finite parameters may be past help, and were in the last checkpoint: the best one takes its place."""
    folder = train('-t', '64', *attention)
    good = (folder / 'fallback.safetensors').read_bytes()
    assert good == (folder / 'checkpoint.safetensors').read_bytes()
    assert resume(folder, '-r', rate, '-t', '640', '--checkpoint_freq', '16') == 1
    assert config_of(folder)['samples_seen'] > 64
    line = assert_says_how_to_go_on(capsys.readouterr().err, folder)
    assert 'the checkpoint is again the best, after 64 samples' in line
    assert line.endswith(f' --learning_rate {float(rate) / 10:g}')
    assert (folder / 'checkpoint.safetensors').read_bytes() == good
    assert resume(folder, '-r', '1e-9', '-t', '128') == 0
    bound = config_of(folder)['validation']['bound']
    assert bound < 784 * np.log(2) and bound == pytest.approx(checkpoint(folder)[1]['best_bound'])
    assert [sitting['samples_seen'] for sitting in config_of(folder)['resumed']] == [64, 64]


@pytest.mark.exhaustive
def test_run_whose_checkpoint_has_exploded_goes_on_as_found(workplace):
    """The commands with which this was found, as a user gave them."""
    small = ['--dataset', 'synthetic', '--attention', '-s', '8', '-u', '32', '-l', '8', '--lr_decay', '0']
    assert script('train_mnist.py', *small, '-t', '6400', '-f', '3200').returncode == 0
    folder = only_folder('results')
    bad = script('train_mnist.py', '--resume', folder, '-r', '5', '-t', '20000', '--checkpoint_freq', '64')
    assert bad.returncode == 1 and 'again the best, after 6,400 samples' in assert_says_how_to_go_on(bad.stderr, folder)
    good = script('train_mnist.py', '--resume', folder, '-r', '1e-9', '-t', '20000')
    assert good.returncode == 0, good.stderr
    assert config_of(folder)['validation']['bound'] < 300


@pytest.mark.parametrize('argv, had_checkpoint', [
    ([], False), (['-f', '1e6', '--checkpoint_freq', '16'], True), (['-f', '16'], True)],
    ids=['no checkpoint', 'a checkpoint', 'a bad validation'])
def test_run_without_a_good_state_starts_anew(workplace, monkeypatch, capsys, argv, had_checkpoint):
    """Not finite before the first validation, or after ones above chance: nothing says that a checkpoint is good."""
    def diverge(training):
        if training.seen == 32:
            training.args.learning_rate = 1e30
            assert os.path.exists(only_folder('results') / 'checkpoint.safetensors') == had_checkpoint

    with monkeypatch.context() as patch:
        before_step(patch, diverge)
        patch.setattr(train_mnist.Training, 'validate', lambda *args: (545., 0., np.zeros(3)))
        assert train_mnist.main([*ARGV, '-t', '192', *argv]) == 1
    folder = only_folder('results')
    assert 'the checkpoint is gone, the run starts anew' in assert_says_how_to_go_on(capsys.readouterr().err, folder)
    assert not list(folder.glob('*.safetensors'))
    with pytest.raises(SystemExit):
        sample.main([str(folder), '-o', 'out'])  # it has no model
    assert resume(folder, '-t', '64', '-f', '64') == 0
    (_, metadata), validation = checkpoint(folder), config_of(folder)['validation']
    assert metadata['samples_seen'] == validation['samples_seen'] == 64 and metadata['num_updates'] == 4


def test_bound_above_that_of_chance_is_no_fallback(workplace, monkeypatch):
    """It may have exploded already: 784 * log(2) = 543 nats are those of probability 1/2 for every pixel."""
    bounds = iter([545., 544., 543.])
    monkeypatch.setattr(train_mnist.Training, 'validate',
                        lambda *args: (next(bounds, 1.), 0., np.zeros(3)))
    states = []
    before_step(monkeypatch, lambda training: states.append(os.path.exists(
        only_folder('results') / 'fallback.safetensors')))
    train('-t', '64', '-f', '16')
    assert states == [False, False, False, True]


def test_huge_learning_rate(workplace):
    result = script('train_mnist.py', *TINY, '-r', '1e30', '-f', '32')
    folder = only_folder('results')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'not finite' in assert_says_how_to_go_on(result.stderr, folder)
    assert not list(folder.glob('*.safetensors'))


def test_stop_is_undone_when_it_is_left():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with cli.Stop() as stop:
        assert stop.signal is None
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
