"""sample.py: what it paints, where it writes, what it refuses."""
import os
import shutil
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest

import sample
from commands import ROOT, assert_help_is_complete, colours_per_frame, content, frames, new_folder, refusal, train
from dataset import stream
from pictures import paint
from runs import storage

T = 3
TINY = ['-s', str(T), '-u', '8', '-l', '4', '-b', '16', '-t', '64', '-f', '32', '-v', '20']


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    """The only mirror is a port of this machine where nobody listens, and no proxy stands before it."""
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture(scope='module')
def attention_run(tmp_path_factory):
    return train(new_folder(tmp_path_factory), ['--attention', *TINY, '-r', '0.03'])


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    return train(new_folder(tmp_path_factory), TINY)


def test_same_seed_same_bytes(attention_run, tmp_path):
    for name, seed in (('one', '5'), ('same', '5'), ('other', '6')):
        sample.main([str(attention_run.folder), '-n', '3', '--seed', seed, '-o', str(tmp_path / name)])
    one, same, other = (content(tmp_path / name) for name in ('one', 'same', 'other'))
    assert one.keys() == other.keys() == {f'sample_{i}.gif' for i in range(3)}
    assert one == same
    assert not set(one.values()) & set(other.values())


def test_sample_does_not_depend_on_how_many_are_drawn(attention_run, monkeypatch):
    net, _, _ = storage.load_net(attention_run.folder, [mx.cpu()])

    def draw(num_samples):
        paintings = list(paint.paint(net, 3, [mx.cpu()], num_samples=num_samples))
        return np.stack([painting.probabilities for painting in paintings])

    seven = draw(7)
    np.testing.assert_allclose(draw(2), seven[:2], rtol=0, atol=1e-5)
    monkeypatch.setattr(paint, 'CHUNK', 3)
    np.testing.assert_allclose(draw(7), seven, rtol=0, atol=1e-5)
    for i in range(1, 7):
        assert abs(seven[i] - seven[0]).max() > 1e-3


def test_boxes(attention_run, plain_run, tmp_path):
    for name, argv in (('boxes', []), ('bare', ['--no_boxes'])):
        sample.main([str(attention_run.folder), '-n', '3', '-o', str(tmp_path / name), *argv])
        found = [colours_per_frame(path) for path in (tmp_path / name).iterdir()]
        assert len(found) == 3 and all(len(gif) == T + 1 for gif in found)
        assert any(red for gif in found for red, _ in gif) == (name == 'boxes')
        assert not any(green for gif in found for _, green in gif)
    sample.main([str(plain_run.folder), '-n', '3', '-o', str(tmp_path / 'plain')])
    assert not any(red or green for path in (tmp_path / 'plain').iterdir() for red, green in colours_per_frame(path))


def test_reconstructions(attention_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(attention_run.cwd)
    sample.main([str(attention_run.folder), '--reconstruct', '-n', '40', '-o', str(tmp_path / 'out')])
    assert 'reconstruction' in capsys.readouterr().out
    gifs = [tmp_path / 'out' / f'reconstruction_{i}.gif' for i in range(30)]  # there are 30 test images
    assert sorted((tmp_path / 'out').iterdir()) == sorted(gifs)
    found = [colours_per_frame(path) for path in gifs]
    assert all(len(gif) == T + 1 and gif[0] == (False, False) for gif in found)
    assert any(red for gif in found for red, _ in gif) and any(green for gif in found for _, green in gif)


def test_reconstructions_are_of_the_test_images(attention_run, tmp_path, monkeypatch):
    net, config, _ = storage.load_net(attention_run.folder, [mx.cpu()])
    monkeypatch.chdir(tmp_path)  # where there is no folder data
    shutil.copytree(attention_run.cwd / 'data', 'elsewhere')
    painted = {}

    def noted(*args, original=paint.paint, **kwargs):
        painted.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(paint, 'paint', noted)
    sample.main([str(attention_run.folder), '--reconstruct', '-n', '4', '--data_dir', 'elsewhere'])
    test = stream.load('mnist', 'elsewhere', (28, 28))['test'][:4]
    images = painted['images']
    assert images.shape == (4, 784) and set(np.unique(images)) == {0, 1}
    assert (images[test == 0] == 0).all() and (images[test == 255] == 1).all()
    reconstructions = list(paint.paint(net, 0, [mx.cpu()], images=images))
    for i, reconstruction in enumerate(reconstructions):
        assert reconstruction.probabilities.shape == (T + 1, 784)
        assert reconstruction.read_windows.shape == reconstruction.write_windows.shape == (T, 5)
        others = [abs(reconstruction.probabilities[-1] - other).mean() for other in images]
        assert others[i] < 0.5
    assert sorted(os.listdir()) == ['elsewhere', *(f'reconstruction_{i}.gif' for i in range(4))]


def test_scale_and_prefix(plain_run, tmp_path):
    sample.main([str(plain_run.folder), '-n', '2', '--scale', '3', '--prefix', 'digit', '-o', str(tmp_path)])
    assert sorted(os.listdir(tmp_path)) == ['digit_0.gif', 'digit_1.gif']
    assert frames(tmp_path / 'digit_0.gif')[0].shape == (84, 84, 3)


@pytest.mark.parametrize('argv, reason', [
    (['-n', '0'], '--num_samples'), (['--scale', '0'], '--scale'), (['--scale', '65'], '--scale'),
    (['--grid', 'sheet.jpg'], '--grid'), (['--grid', 'sheet'], '--grid'), (['--steps', '3'], '--steps'),
    (['--recon'], '--recon'), (['extra'], 'extra')])
def test_bad_options_of_sampling(plain_run, tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, sample.main, plain_run.folder, *argv)
    assert os.listdir() == []


def test_sampling_without_a_folder_takes_the_model_in_the_assets(workplace):
    sample.main(['-n', '1'])
    shown, drawn = (np.array(frames(path)) for path in (ROOT / 'assets' / 'draw_w_attn_0.gif', 'sample_0.gif'))
    assert shown.shape == drawn.shape == (65, 112, 112, 3)
    assert abs(shown.astype(float) - drawn).mean() < 1  # of 255: other processors differ in the last bits


@pytest.mark.parametrize('argv, reason', [
    (['-o', 'file'], 'file'), (['-o', 'file/out'], 'file/out'), (['--grid', 'nowhere/sheet.png'], 'nowhere'),
    (['--grid', 'folder.png'], 'folder.png'), (['--prefix', 'nowhere/digit'], 'nowhere')])
def test_output_that_cannot_be_written(plain_run, tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('mine')
    Path('folder.png').mkdir()
    message = refusal(capsys, sample.main, plain_run.folder, *argv)
    assert reason in message and '.tmp' not in message
    assert sorted(os.listdir()) == ['file', 'folder.png'] and os.listdir('folder.png') == []


def test_reconstruction_without_images(attention_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert 'data' in refusal(capsys, sample.main, attention_run.folder, '--reconstruct')
    assert not list(tmp_path.glob('**/*.gif'))


def test_help_of_sampling(capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main(['--help'])
    assert stop.value.code == 0
    parser = cli.Parser(prog='sample.py')
    sample.parse_args(parser, ['folder'])
    assert_help_is_complete(capsys.readouterr().out, parser)
