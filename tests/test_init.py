"""--init: a training that starts with the parameters of another run's model."""
import json
import os
import shutil

import numpy as np
import pytest

import train_mnist
from commands import (
    ARGV,
    Killed,
    assert_same_files,
    before_step,
    config_of,
    only_folder,
    parse,
    refusal,
    resume,
    train,
)
from dataset.noise import noise
from runs import storage, training

pytestmark = pytest.mark.usefixtures('no_figures')


def of_net(training):
    return {name: parameter.data().asnumpy() for name, parameter in storage.parameters(training.net).items()}


def test_parameters_are_taken_over_and_all_else_is_new(run, monkeypatch):
    net = storage.build_net(config_of(run)['arguments'])
    _, given = storage.read_params(run, 'best', net)
    at_start = []

    def look(training):
        if not training.seen:
            at_start.append((of_net(training), training._trainer.optimizer.num_update,
                             dict(training._trainer._updaters[0].states), training.best_bound))

    with monkeypatch.context() as patch:
        before_step(patch, look)
        folder = train('-t', '32', '--init', run, '--seed', '5', '--binarization', 'static', logdir='new')
    (parameters, num_updates, moments, best_bound), = at_start  # it counts from 0
    for name, array in given.items():
        np.testing.assert_array_equal(parameters[name], array, err_msg=name)
    assert num_updates == 0 and moments == {} and best_bound == float('inf')
    config = config_of(folder)
    assert config['samples_seen'] == 32 and config['arguments']['init'] == str(run)
    assert config['init'] == {'run': str(run), 'command': config_of(run)['command'], 'samples_seen': 64}


def test_a_trained_model_gets_no_warm_up():
    for argv, samples in ([], 20000), (['--init', 'run'], 1), (['--init', 'run', '--kl_warmup', '7'], 7):
        assert parse(*argv).kl_warmup == samples


def test_another_seed_has_other_pixels_and_other_noise(run, monkeypatch):
    batches, drawn, step = [], set(), train_mnist.Training.step
    monkeypatch.setattr(train_mnist.Training, 'step', lambda training, x: batches.append(x) or step(training, x))
    monkeypatch.setattr(training, 'noise', lambda seed, purpose, *rest: (
        drawn.add((seed, purpose)) or noise(seed, purpose, *rest)))
    for seed in ('0', '1'):
        train('-t', '16', '--init', run, '--seed', seed, logdir=f'seed {seed}')
    assert not np.array_equal(*batches) and drawn == {(0, 'noise'), (1, 'noise')}


def test_history_of_a_model_is_kept(run):
    """A run that starts from a run that started from a run."""
    assert resume(run, '-t', '80') == 0
    second = train('-t', '16', '--init', run, logdir='second')
    third = train('-t', '16', '--init', second, logdir='third')
    origin = config_of(third)['init']
    assert origin['run'] == str(second) and origin['init'] == config_of(second)['init']
    assert origin['init']['run'] == str(run) and len(origin['init']['resumed']) == 1


def test_model_of_a_run_that_was_killed(run):
    """Its config.json does not say how far it came."""
    def samples_seen(logdir, **config):
        storage.write_config(run, {**given, **config})
        return config_of(train('-t', '16', '--init', run, logdir=logdir))['init']['samples_seen']

    given = config_of(run)
    del given['samples_seen']
    assert samples_seen('of a first sitting') == 64
    assert samples_seen('of a second', samples_seen=32) == 64
    assert samples_seen('of a stranger', samples_seen='many') == 64
    (run / 'checkpoint.safetensors').write_bytes(b'')
    assert (run / 'fallback.safetensors').exists() and samples_seen('with a checkpoint that is damaged') == 64
    (run / 'fallback.safetensors').unlink()
    assert samples_seen('before the first checkpoint') == 0


def test_resume_does_not_start_from_the_model_again(run, monkeypatch):
    argv = ['-t', '64', '--init', str(run), '--checkpoint_freq', '16']
    whole = train(*argv, logdir='whole')

    def kill(training):
        if training.seen == 32:
            raise Killed

    with monkeypatch.context() as patch:
        before_step(patch, kill)
        with pytest.raises(Killed):
            train(*argv, logdir='stopped')
    shutil.rmtree(run)
    stopped = only_folder('stopped')
    origin = config_of(stopped)['init']
    assert resume(stopped) == 0
    assert_same_files(stopped, whole)
    assert config_of(stopped)['init'] == origin


@pytest.mark.parametrize('other', [['-s', '4'], ['-u', '9'], ['-l', '5'], ['--attention'], ['-hh', '14', '-ww', '56']],
                         ids=' '.join)
def test_model_of_other_sizes_is_refused(run, capsys, other):
    line = refusal(capsys, train_mnist.main, *ARGV, *other, '--init', run, '--logdir', 'new')
    assert f'argument --init: the model of {run} has other sizes' in line
    assert os.listdir('new') == []


def damage_config(folder):
    (folder / 'config.json').write_text(json.dumps({'arguments': {}}))


@pytest.mark.parametrize('damage', [
    shutil.rmtree, damage_config, lambda folder: (folder / 'best.safetensors').write_bytes(b'')],
    ids=['gone', 'config', 'parameters'])
def test_damaged_model_is_refused(run, capsys, damage):
    damage(run)
    assert str(run) in refusal(capsys, train_mnist.main, *ARGV, '--init', run, '--logdir', 'new')
    assert os.listdir('new') == []
