"""A training run from beginning to end: what its folder holds, and what decides it."""
import contextlib
import io
import os
import shlex
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

import sample
import train_mnist
from commands import (
    SIZES,
    TIME_OUT,
    T,
    colours_per_frame,
    command,
    config_of,
    content,
    frames,
    new_folder,
    only_folder,
    parse,
    script,
)
from runs import storage

TINY = [*SIZES, '-t', '64', '-f', '32', '-v', '20']
# Validations at 32, 64, 96 and, since 100 samples are rounded up to whole batches, 112 training samples.
ATTENTION = ['--attention', *SIZES, '-t', '1e2', '-f', '32', '-v', '20', '-r', '0.03']
PLAIN = [*TINY, '-v', '1000', '--logdir', 'all results']
GIFS = [f'sample_{i}.gif' for i in range(10)]


def trained(tmp_path_factory, argv, logdir='results'):
    cwd, stdout = new_folder(tmp_path_factory), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.chdir(cwd)
        assert train_mnist.main(argv) == 0
    return SimpleNamespace(cwd=cwd, argv=argv, folder=only_folder(cwd / logdir), stdout=stdout.getvalue())


@pytest.fixture(scope='module')
def attention_run(tmp_path_factory):
    return trained(tmp_path_factory, ATTENTION)


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    return trained(tmp_path_factory, PLAIN, logdir='all results')


@pytest.mark.parametrize('run', ['attention_run', 'plain_run'])
def test_run_folder_is_complete(run, request):
    run = request.getfixturevalue(run)
    assert sorted(os.listdir(run.folder)) == sorted([
        'config.json', *(f'{name}.safetensors' for name in ('last', 'best', 'checkpoint', 'fallback')), 'train',
        'validation', 'curves.png', 'samples'])
    assert sorted(os.listdir(run.folder / 'samples')) == GIFS
    assert all(len(os.listdir(run.folder / split)) == 1 for split in ('train', 'validation'))  # one event file
    for name in GIFS:
        pictures = frames(run.folder / 'samples' / name)
        assert len(pictures) == T + 1
        assert {picture.shape for picture in pictures} == {(4 * 28, 4 * 28, 3)}
    attention = '--attention' in run.argv
    boxes = [colours_per_frame(run.folder / 'samples' / name) for name in GIFS]
    assert all(gif[0] == (False, False) for gif in boxes)  # the initial canvas
    assert not any(green for gif in boxes for _, green in gif)  # a sample reads nothing
    assert any(red for gif in boxes for red, _ in gif) == attention


@pytest.mark.parametrize('run, seen', [('attention_run', 112), ('plain_run', 64)])
def test_config(run, seen, request):
    run = request.getfixturevalue(run)
    config = config_of(run.folder)
    assert config['arguments'] == train_mnist.arguments_of(parse(*run.argv))
    assert config['samples_seen'] == seen
    assert config['versions'] == {
        'python': '.'.join(map(str, sys.version_info[:3])),
        **{name: metadata.version(name) for name in ('mxnet', 'numpy', 'mxboard', 'pillow')}}
    validation = config['validation']
    assert validation['unit'] == 'nats' and validation['parameters'] == 'best.safetensors'
    assert validation['num_images'] == 20  # the last sixth of 120
    assert validation['bound'] == pytest.approx(validation['reconstruction'] + validation['kl'])
    assert 0 < validation['kl'] < validation['bound'] < 600  # 784 * log(2) = 543 without training
    assert f'{validation["bound"]:.2f} nats' in run.stdout
    assert str(run.folder.relative_to(run.cwd)) in run.stdout


def test_command_in_config_runs_again(plain_run):
    assert shlex.split(config_of(plain_run.folder)['command']) == ['train_mnist.py', *plain_run.argv]


@pytest.mark.parametrize('name', ['best', 'last'])
def test_safetensors_reads_the_parameters(attention_run, name):
    net = storage.build_net(config_of(attention_run.folder)['arguments'])
    arrays = load_file(attention_run.folder / f'{name}.safetensors')
    assert {name: array.shape for name, array in arrays.items()} == {
        name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_images_that_are_not_square(workplace):
    assert train_mnist.main([*TINY, '-v', '7', '--attention', '--input_height', '12', '--input_width', '9',
                             '--read_size', '3', '--write_size', '4']) == 0
    folder = only_folder('results')
    pictures = frames(folder / 'samples' / 'sample_0.gif')
    assert len(pictures) == T + 1 and pictures[0].shape == (4 * 12, 4 * 9, 3)
    sample.main([str(folder), '--reconstruct', '-o', 'out', '--scale', '2'])
    assert frames('out/reconstruction_0.gif')[0].shape == (2 * 12, 2 * (9 + 1 + 9), 3)  # with the original


def test_synthetic_digits_need_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_mnist.main([*SIZES, '-t', '16', '--dataset', 'synthetic']) == 0
    assert os.listdir() == ['results']
    assert config_of(only_folder('results'))['validation']['num_images'] == 2000
    assert 'downloading' not in capsys.readouterr().out


def test_binarizations(workplace):
    parameters = {}
    for binarization in ('dynamic', 'static', 'threshold'):
        assert train_mnist.main([*TINY, '--binarization', binarization, '--logdir', binarization]) == 0
        folder = only_folder(binarization)
        assert config_of(folder)['arguments']['binarization'] == binarization
        parameters[(folder / 'last.safetensors').read_bytes()] = binarization
    assert len(parameters) == 3  # each trains on other pixels


def test_same_command_gives_the_same_bytes(attention_run, tmp_path_factory):
    cwd = new_folder(tmp_path_factory)
    done = script('train_mnist.py', *ATTENTION, cwd=cwd)
    assert done.returncode == 0, done.stderr
    again = only_folder(cwd / 'results')
    for name in ('best.safetensors', 'last.safetensors', *(f'samples/{name}' for name in GIFS)):
        assert (again / name).read_bytes() == (attention_run.folder / name).read_bytes(), name
    assert config_of(again)['validation'] == config_of(attention_run.folder)['validation']


def test_another_seed_gives_another_run(attention_run, workplace):
    assert train_mnist.main([*ATTENTION, '--seed', '1']) == 0
    other = only_folder('results')
    assert (other / 'best.safetensors').read_bytes() != (attention_run.folder / 'best.safetensors').read_bytes()


def test_gifs_of_the_run_are_the_default_samples(attention_run, tmp_path):
    result = script('sample.py', attention_run.folder, '-o', tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert content(tmp_path) == content(attention_run.folder / 'samples')
    assert len(set(content(tmp_path).values())) == 10
    assert 'best.safetensors' in result.stdout and 'reconstruction' not in result.stdout


def test_two_trainings_at_the_same_moment(workplace):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(
            command('train_mnist.py', *TINY), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) for _ in range(2)]
        try:
            assert [process.wait(TIME_OUT) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
    folders = [os.path.join('results', name) for name in os.listdir('results')]
    assert len(folders) == 2
    for folder in folders:
        assert {'config.json', 'best.safetensors', 'last.safetensors'} < set(os.listdir(folder))
        assert sorted(os.listdir(os.path.join(folder, 'samples'))) == GIFS
        assert all(len(os.listdir(os.path.join(folder, split))) == 1 for split in ('train', 'validation'))
