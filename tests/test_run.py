"""A run from beginning to end, resumed, and from another run's model."""
import errno
import itertools
import os
import shlex
import shutil
from pathlib import Path
from signal import SIGTERM

from system import devices

import mxnet as mx
import numpy as np
import pytest

import evaluate
import sample
import train_mnist
from dataset.load import load
from dataset.stream import TrainingStream, evaluation_images
from distributed.workers import Alone
from networks import assert_equal
from runs import config, params
from runs import run as runs_run
from runs.log import Log
from runs.run import Run, create, lock
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
    fails,
    only_folder,
    refusal,
    resume,
    send,
    train,
    write_images,
)

pytestmark = pytest.mark.usefixtures('workplace', 'no_figures')


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


def test_flags_of_the_images_reach_them(monkeypatch, capsys):
    found = []
    at_call(monkeypatch, train_mnist, 'train', 1, lambda *given: found.append(given))
    folder = train('-hh', '6', '-ww', '4', '--transpose', '--binarization', 'static', '--seed', '5')
    (_, images, validation_images, _), = found
    splits = load('images.npy', image_shape=(6, 4), splits=('train', 'validation'), transpose=True).splits
    np.testing.assert_array_equal(images.batch(0, 8), TrainingStream(splits['train'], 'static', 5).batch(0, 8))
    np.testing.assert_array_equal(validation_images, evaluation_images(splits['validation'], 'static'))
    for command, flags in (evaluate, []), (sample, ['--reconstruct']):
        command.main([str(folder), *flags])  # the run's own images, transposed
        at_call(monkeypatch, command, 'load_of_run', 1, lambda *given: found.append(given[2:]))
        command.main([str(folder), *flags, '--dataset', 'images.npy', '--transpose'])
        assert found.pop() == (os.path.abspath('images.npy'), None, True)
        assert '--data_dir is for' in refusal(capsys, command.main, folder, *flags, '--data_dir', 'own')


def test_workers_compare_what_must_be_the_same(monkeypatch):
    found = []
    at_call(monkeypatch, Alone, 'check_same', 1, lambda group, facts: found.append(facts))
    train()
    assert {'seed', 'learning_rate', 'numpy', 'images'} <= found[0].keys()
    assert not {*config.OF_EACH_WORKER} & found[0].keys()


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


# Resumed

def test_complete_run_says_so_and_changes_nothing(run, capsys):
    before = contents(run)
    assert resume(run) == resume(run, '-t', '32') == 0  # a run does not get shorter
    out, err = capsys.readouterr()
    assert not err
    assert out.splitlines()[-1] == f'{run} is complete. To train further, give a larger --num_train_samples.' \
        ' Its learning rate then rises again, and falls to 0 at the new end.'
    assert contents(run) == before


def test_larger_number_of_samples_trains_on():
    whole = train('-t', '96', '--lr_decay', '0', logdir='whole')
    folder = train('--lr_decay', '0')
    assert resume(folder, '-t', '96') == 0
    assert config_of(folder)['resumed_with'] == f'train_mnist.py --resume {folder} -t 96'
    assert config_of(folder)['command'].startswith('train_mnist.py --dataset')
    assert_same_end(folder, whole)


@pytest.mark.parametrize('val_freq', ['16', '1e6'])
def test_run_that_has_seen_enough_already_ends(monkeypatch, capsys, val_freq):
    """It validates first if it never did."""
    ending(monkeypatch, capsys, Training, 'update', 6, send(SIGTERM), argv=[*ARGV, '-t', '1e6', '-f', val_freq])
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
    ending(monkeypatch, capsys, Training, 'update', 3,
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


def lose_checkpoint(run):
    (run / params.CHECKPOINT).unlink()


REFUSED = {
    'other images': (lambda run: write_images('own.npy', seed=1), 'these are'),
    'no run': (shutil.rmtree, 'is not the folder of a run'),
    'no best parameters': (lose_best_parameters, params.BEST),
    'no checkpoint': (lose_checkpoint, 'has no checkpoint.safetensors: start a new run'),
    'no parameters': (lambda run: (lose_best_parameters(run), lose_checkpoint(run)), 'has no checkpoint.safetensors'),
    'damaged checkpoint': (lambda run: os.truncate(run / params.CHECKPOINT, 5000), params.CHECKPOINT),
    'damaged log': (lambda run: (run / 'curves.csv').write_bytes(b'samples_seen\n\n\xff'), 'curves.csv is damaged'),
    'the log is a file': (lambda run: (shutil.rmtree(run / 'train'), (run / 'train').write_text('')), 'train')}


def test_a_lost_checkpoint_costs_no_best_parameters(monkeypatch, capsys):
    """The run was stopped between its first validation and its end."""
    ending(monkeypatch, capsys, Training, 'update', 4, send(SIGTERM), argv=[*ARGV, '-f', '8', '--logdir', 'stopped'])
    run = only_folder('stopped')
    lose_checkpoint(run)
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
    assert seen == 0 and best_bound < 24
    assert config_of(folder)['arguments']['init'] == str(Path.cwd() / run)


def test_run_from_a_model_continues_exactly(run, monkeypatch, capsys):
    """It needs that model only at its beginning."""
    argv = [*ARGV, '--init', str(run), '--checkpoint_freq', '16']
    whole = train(*argv, logdir='whole')
    full = fail_with(MemoryError('full'))
    ending(monkeypatch, capsys, Training, 'update', 2, full, argv=[*argv, '--logdir', 'early'])
    ending(monkeypatch, capsys, Training, 'update', 4, send(SIGTERM), argv=[*argv, '--logdir', 'late'])
    assert [checkpoint_of(only_folder(name))[1]['samples_seen'] for name in ('early', 'late')] == [0, 32]
    with monkeypatch.context() as patch:  # one that is killed before its first checkpoint
        at_call(patch, Run, 'save_checkpoint', 1, lambda run, *_: shutil.copytree(run.folder, 'killed/run'))
        train(*argv, logdir='copied')
    assert resume('killed/run') == 0
    assert_same_end('killed/run', whole)
    shutil.rmtree(run)
    for name in 'early', 'late':
        assert resume(only_folder(name)) == 0
        assert_same_end(only_folder(name), whole)


def test_run_from_a_model_ends_no_worse_than_it_began(run, monkeypatch):
    bounds = itertools.count(5.)
    monkeypatch.setattr(Training, 'validate', lambda *_: (next(bounds), 1., np.ones(2)))
    folder = train('--init', run, logdir='new')
    assert (folder / params.BEST).read_bytes() == (run / params.BEST).read_bytes()


def test_batch_that_cannot_be_divided_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(devices, 'contexts', lambda args: [mx.cpu(0), mx.cpu(1), mx.cpu(2)])
    monkeypatch.setattr(train_mnist, 'load', None)  # it is refused before the images are loaded
    assert '8 images cannot be divided evenly among 3 devices' in refusal(capsys, train_mnist.main, *ARGV)
    assert_no_run()


def test_window_that_is_too_wide_for_the_images_is_refused(capsys):
    assert 'shorter side (5)' in refusal(capsys, train_mnist.main, *ARGV, '--attention', '-aw', '6')
    assert_no_run()
