"""Runs that go on: exactly as if they had never stopped, and only as the runs that they are."""
import os
import shutil
from pathlib import Path

from system import devices

import mxnet as mx
import numpy as np
import pytest

import train_mnist
from commands import (
    ARGV,
    BATCH,
    Killed,
    assert_same_curves,
    assert_same_files,
    change_arguments,
    checkpoint,
    config_of,
    new_folder,
    only_folder,
    refusal,
    resume,
    samples_seen,
    stop_after,
    train,
    whole_content,
)
from idx import write_mnist
from runs import storage
from runs.arguments import MAY_CHANGE

pytestmark = pytest.mark.usefixtures('no_figures')


# Exactly

INTERRUPTED = ['-t', '192', '--checkpoint_freq', '32', '--lr_decay', '0.5']


@pytest.fixture(scope='module', params=[[], ['--attention']], ids=['plain', 'attention'])
def whole(request, tmp_path_factory):
    """(a run that was never stopped, its flag)."""
    folder = new_folder(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / train(*INTERRUPTED, *request.param), request.param


@pytest.mark.parametrize('seen', [0, 16, 48, 64, 80, 176])
def test_resumed_run_ends_as_one_that_was_never_stopped(workplace, monkeypatch, whole, seen):
    whole, attention = whole
    with monkeypatch.context() as patch:
        stop_after(patch, seen)
        with pytest.raises(Killed):
            train(*INTERRUPTED, *attention)
    stopped = only_folder('results')
    assert os.path.exists(stopped / 'checkpoint.safetensors') == (seen >= 32)
    assert resume(stopped) == 0
    assert_same_files(stopped, whole, ['last.safetensors', 'best.safetensors', 'samples/sample_0.gif'])
    assert_same_curves(stopped, whole)
    for left, right in zip(checkpoint(stopped)[0], checkpoint(whole)[0]):  # Adam's moments too
        for name, array in left.items():
            np.testing.assert_array_equal(array, right[name], err_msg=name)
    configs = [config_of(folder) for folder in (stopped, whole)]
    assert configs[0]['validation'] == configs[1]['validation']
    assert configs[0]['resumed'] == [{'command': f'train_mnist.py --resume {stopped}',
                                      'samples_seen': seen // 32 * 32}]


def test_longer_run_by_resume(run):
    """The number of samples may change, and the learning rate is the new one from then on."""
    whole, other = train('-t', '128', logdir='whole'), Path(shutil.copytree(run, 'other'))
    assert resume(run, '-t', '128') == 0
    assert_same_files(run, whole)
    assert config_of(run)['arguments']['num_train_samples'] == 128
    assert resume(other, '-t', '128', '-r', '0.02') == 0
    assert (other / 'last.safetensors').read_bytes() != (whole / 'last.safetensors').read_bytes()
    assert config_of(other)['arguments']['learning_rate'] == 0.02


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


def test_model_before_the_first_validation_is_that_of_the_checkpoint(workplace, monkeypatch):
    """Not the last one of an earlier sitting, which was stopped."""
    with monkeypatch.context() as patch:
        stop_after(patch, 64)
        with pytest.raises(Killed):
            train('-t', '128', '-f', '128', '--checkpoint_freq', '32')
    folder = only_folder('results')
    net, _, path = storage.load_net(folder, [mx.cpu()])
    storage.save_params(folder, 'last', net)
    assert path == storage.load_net(folder, [mx.cpu()])[2] == str(folder / 'checkpoint.safetensors')


@pytest.mark.parametrize('val_freq', ['128', '48'], ids=['first', 'second'])
def test_run_that_is_ended_before_a_validation(workplace, monkeypatch, val_freq):
    """By a resume that asks for no more samples than were seen."""
    argv = ['-f', val_freq, '--checkpoint_freq', '32', '--lr_decay', '0', '-r', '0.001']
    whole = train(*argv, '-t', '64', logdir='whole')
    with monkeypatch.context() as patch:
        stop_after(patch, 64)
        with pytest.raises(Killed):
            train(*argv, '-t', '128')
    folder = only_folder('results')
    assert resume(folder, '-t', '64') == 0
    assert_same_files(folder, whole)
    assert_same_curves(folder, whole)
    assert config_of(folder)['validation'] == config_of(whole)['validation']
    assert checkpoint(folder)[1]['best_bound'] == checkpoint(whole)[1]['best_bound']


def test_what_is_best_is_not_ahead_of_the_checkpoint(workplace, monkeypatch):
    """Or a resume with other arguments would end with a model of the steps that it took back."""
    argv = ['-f', '16', '--checkpoint_freq', '64', '--lr_decay', '0']
    with monkeypatch.context() as patch:
        stop_after(patch, 48)
        with pytest.raises(Killed):
            train(*argv, '-t', '128')
    folder = only_folder('results')
    assert samples_seen(folder) == checkpoint(folder, 'fallback')[1]['samples_seen'] == 48
    assert checkpoint(folder)[1]['best_bound'] == checkpoint(folder, 'fallback')[1]['best_bound']


def test_worse_validation_after_a_resume_leaves_the_best_parameters(run, monkeypatch):
    before, bound = (run / 'best.safetensors').read_bytes(), checkpoint(run)[1]['best_bound']
    with monkeypatch.context() as patch:
        patch.setattr(train_mnist.Training, 'validate', lambda *args: (1e4, 0., np.zeros(3)))
        assert resume(run, '-t', '96') == 0
    assert (run / 'best.safetensors').read_bytes() == before and checkpoint(run)[1]['best_bound'] == bound


def test_resume_of_a_complete_run_says_so_and_changes_nothing(run, capsys):
    before = whole_content(run)
    assert resume(run) == resume(run, '-t', '32') == 0  # a run does not get shorter
    out, err = capsys.readouterr()
    bound = f'{config_of(run)["validation"]["bound"]:.2f}'
    assert out.splitlines() == 2 * [f'{run} is complete: 64 training samples, validation bound {bound} nats. '
                                    'A larger --num_train_samples trains on.']
    assert not err and whole_content(run) == before


def test_run_that_was_stopped_before_its_end_was_validated_is_not_complete(run):
    config = config_of(run)
    validation = config.pop('validation')
    storage.write_config(run, config)
    shutil.rmtree(run / 'samples')
    assert resume(run) == 0
    assert config_of(run)['validation'] == validation and len(os.listdir(run / 'samples')) == 10


def test_run_that_was_trained_on_and_stopped_is_not_complete(run, monkeypatch):
    """It has a validation, but of fewer samples."""
    with monkeypatch.context() as patch:
        stop_after(patch, 64 + BATCH)
        with pytest.raises(Killed):
            resume(run, '-t', '128', '--checkpoint_freq', '16')
    assert config_of(run)['validation']['samples_seen'] == 64
    assert resume(run) == 0
    assert config_of(run)['validation']['samples_seen'] == 128


def test_number_of_contexts_is_kept(run, monkeypatch):
    """A run goes on with it on a machine with fewer processors too."""
    monkeypatch.setattr(devices, 'processors', lambda: 1)
    change_arguments(run, cpu_contexts=2)
    assert resume(run, '-t', '80') == 0
    config = config_of(run)
    assert config['arguments']['cpu_contexts'] == 2 and config['threads'] == 1


# Only as the run that it is

@pytest.mark.parametrize('argv', [
    ['--seed', '1'], ['-b', '32'], ['--attention'], ['-s', '4'], ['-u', '9'], ['-l', '5'], ['--binarization', 'static'],
    ['--dataset', 'synthetic'], ['--kl_warmup', '7'], ['--clip_norm', '9'], ['--logdir', 'elsewhere'], ['-v', '3'],
    ['--init', 'elsewhere']], ids=' '.join)
def test_contradicting_flag(run, capsys, argv):
    before = whole_content(run)
    err = refusal(capsys, train_mnist.main, '--resume', run, *argv)
    assert 'contradicts' in err and str(run) in err
    assert whole_content(run) == before


def test_same_value_is_no_contradiction(run):
    assert resume(run, *ARGV) == 0


def test_help_names_what_may_change(capsys):
    with pytest.raises(SystemExit):
        train_mnist.main(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert ', '.join(MAY_CHANGE) in text


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
def test_run_of_a_gpu_where_there_is_none(run, capsys):
    change_arguments(run, gpu=True, cpu_contexts=None)
    assert 'CUDA' in (line := refusal(capsys, train_mnist.main, '--resume', run)) and 'give --cpu_contexts' in line
    assert 'leave out --gpu' in refusal(capsys, train_mnist.main, '--gpu')


def test_other_images_are_refused(run, capsys):
    os.mkdir('other')
    write_mnist(Path('other'), seed=1)
    before = whole_content(run)
    line = refusal(capsys, train_mnist.main, '--resume', run, '-t', '128', '--data_dir', 'other')
    assert f'{run} was trained on other images' in line and '--data_dir other' in line and whole_content(run) == before


def test_run_of_an_earlier_version_that_says_less(run, capsys):
    config = config_of(run)
    checksum = config.pop('training_images_crc32')
    del config['workers']
    storage.write_config(run, config)
    assert resume(run, '-t', '80') == 0
    assert 'Note' not in capsys.readouterr().out and config_of(run)['training_images_crc32'] == checksum


def test_config_changed_behind_the_run_is_refused(run, capsys):
    text = (run / 'config.json').read_text()
    (run / 'config.json').write_text(text.replace('"seed": 0', '"seed": 3'))
    assert 'seed' in refusal(capsys, train_mnist.main, '--resume', run)


@pytest.mark.parametrize('name', ['sync_timeout', 'num_train_samples', 'learning_rate', 'seed', 'logdir', 'dataset'])
def test_null_in_the_place_of_an_argument(run, capsys, name):
    config = config_of(run)
    storage.write_config(run, {**config, 'arguments': {**config['arguments'], name: None}})
    assert 'config.json' in refusal(capsys, train_mnist.main, '--resume', run)


@pytest.mark.parametrize('name', ['nowhere', 'data', 'data/train-images-idx3-ubyte.gz'])
def test_resume_of_what_is_no_run(run, capsys, name):
    assert name in refusal(capsys, train_mnist.main, '--resume', name)


def test_best_parameters_are_missed_before_work_starts(run, capsys):
    (run / 'best.safetensors').unlink()
    assert 'best.safetensors' in refusal(capsys, train_mnist.main, '--resume', run, '-t', '128')


def test_run_of_an_earlier_version(run, capsys):
    for path in run.glob('*.safetensors'):
        path.rename(path.with_suffix('.params'))
    before = sorted(os.listdir(run))
    assert 'the format of earlier versions' in refusal(capsys, train_mnist.main, '--resume', run)
    assert sorted(os.listdir(run)) == before
