"""sample.py: what it paints, where it writes, what it refuses."""
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from system import cli

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import evaluate
import sample
import train_mnist
from commands import (
    GREEN,
    RED,
    ROOT,
    TIME_OUT,
    assert_help_is_complete,
    colours_per_frame,
    content,
    frames,
    has_colour,
    new_folder,
    refusal,
)
from dataset import stream
from pictures import paint
from runs import storage

T = 3
SIZES = ['-s', str(T), '-u', '8', '-l', '4']


def new_run(cwd, argv):
    """A run folder as a training leaves it, but with random parameters, large enough to paint something."""
    args = train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), argv)
    folder = cwd / 'results' / 'a-run'
    folder.mkdir(parents=True)
    storage.write_config(folder, {'arguments': vars(args)})
    mx.random.seed(1)
    net = storage.build_net(vars(args))
    net.initialize(mx.init.Normal(0.3))
    storage.save_params(folder, 'best', net)
    return SimpleNamespace(cwd=cwd, folder=folder)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    """The only mirror is a port of this machine where nobody listens, and no proxy stands before it."""
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture(scope='module')
def attention_run(tmp_path_factory):
    return new_run(new_folder(tmp_path_factory), ['--attention', *SIZES])


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    return new_run(new_folder(tmp_path_factory), SIZES)


def paint_with(run, *argv):
    sample.main([str(run.folder), *map(str, argv)])


def has(path, colour):
    return any(has_colour(frame, colour) for frame in frames(path))


# What is painted

def test_same_seed_same_bytes(attention_run, tmp_path):
    for name, seed in (('one', '5'), ('same', '5'), ('other', '6')):
        paint_with(attention_run, '-n', '3', '--seed', seed, '-o', tmp_path / name)
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


def test_gifs_are_written_as_they_are_painted(plain_run, tmp_path, monkeypatch):
    """However many there are, only those that the network paints at a time are in memory."""
    there = []

    def noted(*args, original=paint.noise):
        there.append(len(list(tmp_path.iterdir())))
        return original(*args)

    monkeypatch.setattr(paint, 'CHUNK', 3)
    monkeypatch.setattr(paint, 'noise', noted)
    paint_with(plain_run, '-n', '10', '-o', tmp_path)
    assert there == [0, 3, 6, 9] and len(list(tmp_path.iterdir())) == 10


def test_boxes(attention_run, plain_run, tmp_path):
    for name, argv in (('boxes', []), ('bare', ['--no_boxes'])):
        paint_with(attention_run, '-n', '3', '-o', tmp_path / name, *argv)
        found = [colours_per_frame(path) for path in (tmp_path / name).iterdir()]
        assert len(found) == 3 and all(len(gif) == T + 1 and gif[0] == (False, False) for gif in found)
        assert any(red for gif in found for red, _ in gif) == (name == 'boxes')
        assert not any(green for gif in found for _, green in gif)
    paint_with(plain_run, '-n', '3', '-o', tmp_path / 'plain')
    assert not any(has(path, colour) for path in (tmp_path / 'plain').iterdir() for colour in (RED, GREEN))


def test_every_frame_has_its_own_window(attention_run):
    net, _, _ = storage.load_net(attention_run.folder, [mx.cpu()])
    windows = np.array([[-0.5, 0, -3, -1.5, 0], [0, 0, -3, -1.5, 0], [0.5, 0, -3, -1.5, 0]])  # from left to right
    painting = paint.Painting(np.zeros((T + 1, 784)), windows, None, None)
    red = [(np.asarray(frame.convert('RGB')) == RED).all(axis=-1) for frame in paint.frames(net, painting, 4)]
    assert not red[0].any()
    centres = [mask.any(axis=0).nonzero()[0].mean() for mask in red[1:]]
    np.testing.assert_allclose(centres, [4 * (14.5 * (1 + g) - 0.5) - 0.5 for g in (-0.5, 0, 0.5)], atol=0.5)


def test_reconstructions(attention_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(attention_run.cwd)
    paint_with(attention_run, '--reconstruct', '-n', '40', '-o', tmp_path / 'out')
    assert '30 reconstructions' in capsys.readouterr().out
    gifs = [tmp_path / 'out' / f'reconstruction_{i}.gif' for i in range(30)]  # there are 30 test images
    assert sorted((tmp_path / 'out').iterdir()) == sorted(gifs)
    found = [colours_per_frame(path) for path in gifs]
    assert all(len(gif) == T + 1 and gif[0] == (False, False) for gif in found)
    assert any(red for gif in found for red, _ in gif) and any(green for gif in found for _, green in gif)
    test = stream.evaluation_images(stream.load('mnist', 'data', (28, 28))['test'], 'dynamic')
    for image, path in zip(test, gifs):  # at the right of every frame
        for frame in frames(path):
            assert frame.shape == (4 * 28, 4 * 57, 3)
            assert (frame[2::4, 4 * 29 + 2::4, 0] == 255 * image.reshape(28, 28)).all()


def test_reconstructions_are_of_the_test_images(attention_run, tmp_path, monkeypatch):
    net, _, _ = storage.load_net(attention_run.folder, [mx.cpu()])
    monkeypatch.chdir(tmp_path)  # where there is no folder data
    shutil.copytree(attention_run.cwd / 'data', 'elsewhere')
    painted = {}

    def noted(*args, original=paint.paint, **kwargs):
        painted.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(paint, 'paint', noted)
    paint_with(attention_run, '--reconstruct', '-n', '4', '--data_dir', 'elsewhere', '-o', 'out')
    test = stream.load('mnist', 'elsewhere', (28, 28))['test'][:4]
    images = painted['images']
    assert images.shape == (4, 784) and set(np.unique(images)) == {0, 1}
    assert (images[test == 0] == 0).all() and (images[test == 255] == 1).all()
    for image, reconstruction in zip(images, paint.paint(net, 0, [mx.cpu()], images=images)):
        assert reconstruction.probabilities.shape == (T + 1, 784)
        assert reconstruction.read_windows.shape == reconstruction.write_windows.shape == (T, 5)
        assert (reconstruction.original == image).all()
    assert sorted(os.listdir('out')) == [f'reconstruction_{i}.gif' for i in range(4)]


def test_contexts_share_the_images(attention_run):
    images = np.random.default_rng(0).integers(0, 2, size=(5, 784)).astype(np.float32)
    contexts = [mx.cpu(0), mx.cpu(1)]
    net, _, _ = storage.load_net(attention_run.folder, contexts)
    for what in ({'num_samples': 5}, {'images': images}):
        for one, two in zip(paint.paint(net, 0, contexts[:1], **what), paint.paint(net, 0, contexts, **what)):
            np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
            assert one.original is two.original is None or (one.original == two.original).all()


# One picture of all

def test_animated_grid(attention_run, tmp_path):
    paint_with(attention_run, '--grid', tmp_path / 'grid.gif')
    paint_with(attention_run, '--grid', tmp_path / 'bare.gif', '--no_boxes', '-n', '12')
    paint_with(attention_run, '-n', '12', '--scale', '2', '-o', tmp_path / 'gifs', '--no_boxes')
    assert sorted(os.listdir(tmp_path)) == ['bare.gif', 'gifs', 'grid.gif']
    boxes = colours_per_frame(tmp_path / 'grid.gif')
    assert [red for red, _ in boxes] == [False, *[True] * T, False]  # the finished samples without boxes
    assert not has(tmp_path / 'bare.gif', RED)
    grid, bare = frames(tmp_path / 'grid.gif'), frames(tmp_path / 'bare.gif')
    assert {frame.shape for frame in grid} == {(578, 578, 3)} and {frame.shape for frame in bare} == {(114, 578, 3)}
    assert (grid[-1][:56, :] == bare[-1][:56, :]).all()
    for i in (0, 9, 10, 11):
        top, left = i // 10 * 58, i % 10 * 58
        for t, frame in enumerate(frames(tmp_path / 'gifs' / f'sample_{i}.gif')):
            shown = bare[t][top:top + 56, left:left + 56].astype(int)
            assert abs(shown - frame).max() <= 10  # a third of the greys
    with Image.open(tmp_path / 'grid.gif') as file:
        assert file.n_frames == T + 2


def test_animated_grid_of_reconstructions(attention_run, tmp_path, monkeypatch):
    monkeypatch.chdir(attention_run.cwd)
    paint_with(attention_run, '--reconstruct', '-n', '7', '--grid', tmp_path / 'grid.gif')
    first, *_, last = frames(tmp_path / 'grid.gif')
    images = stream.evaluation_images(stream.load('mnist', 'data', (28, 28))['test'][:7], 'dynamic').reshape(7, 28, 28)
    for i, image in enumerate(images):  # rows of five pairs, 28 pixels each, one between the two and three around
        top, left = i // 5 * 31 * 2, (i % 5 * 60 + 29) * 2
        for frame in (first, last):
            assert (frame[top:top + 56:2, left:left + 56:2, 0] == 255 * image).all()


@pytest.mark.parametrize('name', ['draw_w_attn', 'draw_wo_attn'])
def test_animated_grids_of_the_models_fit_in_a_readme(name, tmp_path):
    sample.main([str(ROOT / 'assets' / name), '--grid', str(tmp_path / 'grid.gif')])
    assert (tmp_path / 'grid.gif').stat().st_size < 2e6


@pytest.mark.parametrize('reconstruct', [[], ['--reconstruct']], ids=['samples', 'reconstructions'])
def test_sheet(attention_run, tmp_path, monkeypatch, reconstruct):
    monkeypatch.chdir(attention_run.cwd)
    paint_with(attention_run, '-n', '5', *reconstruct, '--scale', '2', '--grid', tmp_path / 'sheet.png')
    assert os.listdir(tmp_path) == ['sheet.png']
    paint_with(attention_run, '-n', '5', *reconstruct, '--scale', '2', '-o', tmp_path / 'gifs')
    columns = T + len(reconstruct)
    with Image.open(tmp_path / 'sheet.png') as image:
        assert image.format == 'PNG' and image.mode == 'RGB'
        assert image.width == 2 * (columns * 29 - 1)
        page = np.asarray(image)
    rows = page[-2 * (5 * 29 - 1):]
    heading = (page[:len(page) - len(rows)] < 128).all(axis=-1)
    assert all(heading[:, 58 * column:58 * column + 56].any() for column in range(columns))
    for i in range(5):
        gif = frames(next(path for path in (tmp_path / 'gifs').iterdir() if path.stem.endswith(f'_{i}')))
        expected = [frame[:, :56] for frame in gif[1:]] + [gif[0][:, 58:]] * len(reconstruct)
        for column, tile in enumerate(expected):
            assert (rows[58 * i:58 * i + 56, 58 * column:58 * column + 56] == tile).all()


def test_steps_of_a_sheet():
    shown = []
    net = SimpleNamespace(num_steps=64, image_shape=(28, 28), read=None, write=None)
    painting = paint.Painting(np.zeros((65, 784)), None, None, None)

    def noted(table, headings):
        shown.extend(headings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paint.render, 'with_headings', noted)
        paint.sheet(net, iter([painting]))
    assert shown == ['1', '8', '15', '22', '29', '36', '43', '50', '57', '64']


# Where it goes

def test_gifs_go_to_the_folder_of_the_run(plain_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(plain_run.folder, 'run')
    sample.main([folder, '-n', '2'])
    sample.main([folder, '-n', '1', '--seed', '1'])
    assert capsys.readouterr().out.splitlines() == [
        '2 samples of run/best.safetensors: run/samples/sample_0.gif ... sample_1.gif',
        '1 sample of run/best.safetensors: run/samples/sample_0.gif']
    assert os.listdir() == ['run'] and sorted(os.listdir('run/samples')) == ['sample_0.gif', 'sample_1.gif']


@pytest.mark.parametrize('name', ['run', 'run/', os.path.join('..', 'here', 'run')])
def test_gifs_of_a_run_that_cannot_be_written_in_go_beside(plain_run, tmp_path, monkeypatch, capsys, name):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    shutil.copytree(plain_run.folder, 'run')

    def check(folder, original=storage.check_writable):  # root may write in every folder
        if not folder.startswith('samples-'):
            raise storage.RunError(f'cannot write in {folder}')
        original(folder)

    monkeypatch.setattr(storage, 'check_writable', check)
    sample.main([name, '-n', '2'])
    assert capsys.readouterr().out.endswith(': samples-run/sample_0.gif ... sample_1.gif\n')
    assert sorted(os.listdir()) == ['run', 'samples-run'] and len(os.listdir('samples-run')) == 2
    assert 'samples' not in os.listdir('run')


def test_the_default_model_leaves_the_checkout_clean(monkeypatch, tmp_path, capsys):
    """Its GIFs are where .gitignore says."""
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(sample.PRETRAINED))
    try:
        sample.main(['-n', '1'])
        where = Path(capsys.readouterr().out.split(': ')[-1].strip())
        assert where.parent.resolve() in (Path(sample.PRETRAINED, 'samples'), Path('samples-draw_w_attn').resolve())
        shown, drawn = (np.array(frames(path)) for path in (ROOT / 'assets' / 'draw_w_attn_0.gif', where))
    finally:
        if 'samples' not in before:
            shutil.rmtree(Path(sample.PRETRAINED, 'samples'), ignore_errors=True)
    assert shown.shape == drawn.shape == (65, 112, 112, 3)
    assert abs(shown.astype(float) - drawn).mean() < 1  # of 255: other processors differ in the last bits
    assert {'samples/', 'samples-*/'} <= set((ROOT / '.gitignore').read_text().splitlines())


def test_script_that_is_reached_through_a_link(tmp_path):
    (tmp_path / 'paint.py').symlink_to(ROOT / 'sample.py')
    done = subprocess.run([sys.executable, 'paint.py', '-n', '1', '-o', 'out'], cwd=tmp_path, capture_output=True,
                          text=True, timeout=TIME_OUT)
    assert done.returncode == 0 and os.listdir(tmp_path / 'out') == ['sample_0.gif'], done.stderr


def test_scale_and_prefix(plain_run, tmp_path):
    paint_with(plain_run, '-n', '2', '--scale', '3', '--prefix', 'digit', '-o', tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['digit_0.gif', 'digit_1.gif']
    assert frames(tmp_path / 'digit_0.gif')[0].shape == (84, 84, 3)


def test_grid_of_one_may_be_large_and_goes_where_a_link_leads(plain_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink('target.gif', 'link.gif')
    sample.main([str(plain_run.folder), '-n', '1', '--scale', '40', '--grid', 'link.gif'])
    assert os.path.islink('link.gif') and frames('target.gif')[0].shape == (1120, 1120, 3)


# What is refused

@pytest.mark.parametrize('argv, reason', [
    (['-n', '0'], '--num_samples'), (['--scale', '0'], '--scale'), (['--scale', '65'], '--scale'),
    (['--grid', 'sheet.jpg'], '--grid'), (['--grid', 'sheet'], '--grid'), (['--grid', ''], '--grid'),
    (['--grid', 'a.gif', '-n', '101'], '--num_samples'), (['--grid', 'a.png', '--scale', '64', '-n', '30'], '--scale'),
    (['--grid', 'a.gif', '-o', 'out'], '--output_dir'), (['--grid', 'a.gif', '--prefix', 'digit'], '--prefix'),
    (['--output_dir', ''], '--output_dir'), (['--prefix', ''], '--prefix'), (['--data_dir', ''], '--data_dir'),
    (['--steps', '3'], '--steps'), (['--recon'], '--recon'), (['extra'], 'extra')])
def test_bad_options_of_sampling(plain_run, tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, sample.main, plain_run.folder, *argv)
    assert os.listdir() == []


def test_empty_name_of_a_run_is_not_taken_for_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for main in sample.main, evaluate.main:
        assert 'RUN_DIR: it is empty' in refusal(capsys, main, '')
    assert os.listdir() == []


@pytest.mark.parametrize('argv, reason', [
    (['-o', 'file'], 'file is a file'), (['-o', 'file/out'], 'file/out'), (['--grid', 'nowhere/sheet.png'], 'nowhere'),
    (['--grid', 'folder.png'], 'folder.png is no file'), (['--grid', 'link.png'], 'nowhere'),
    (['--prefix', 'nowhere/digit'], 'nowhere')])
def test_output_that_cannot_be_written(plain_run, tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paint, 'noise', None)  # it is known before the painting begins
    Path('file').write_text('mine')
    Path('folder.png').mkdir()
    os.symlink('nowhere/sheet.png', 'link.png')
    message = refusal(capsys, sample.main, plain_run.folder, *argv)
    assert reason in message and '.tmp' not in message
    assert sorted(os.listdir()) == ['file', 'folder.png', 'link.png'] and os.listdir('folder.png') == []


def test_reconstruction_without_images(attention_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert 'data' in refusal(capsys, sample.main, attention_run.folder, '--reconstruct')
    assert not list(tmp_path.glob('**/*.gif')) and not (attention_run.folder / 'samples').exists()


@pytest.mark.parametrize('argv', [[], ['-o', 'out'], ['--reconstruct'], ['--grid', 'a.gif'], ['--grid', 'a.png']],
                         ids=str)
@pytest.mark.parametrize('run', ['attention_run', 'plain_run'])
def test_canvases_that_are_not_finite(request, tmp_path, monkeypatch, capsys, run, argv):
    monkeypatch.chdir(tmp_path)
    run = request.getfixturevalue(run)
    shutil.copytree(run.cwd / 'data', 'data')
    shutil.copytree(run.folder, 'run')
    net, _, _ = storage.load_net('run', [mx.cpu()])
    for parameter in storage.parameters(net).values():
        parameter.set_data(mx.nd.full(parameter.shape, 1e38))
    storage.save_params('run', 'best', net)
    before = content('run')
    assert 'not finite' in refusal(capsys, sample.main, 'run', *argv)
    assert sorted(os.listdir()) == ['data', 'run'] and content('run') == before


def test_only_a_folder_of_its_own_is_taken_away(plain_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir('mine')
    for folder in 'mine', 'new':
        def stop(*_, folder=folder, **__):
            assert os.listdir(folder) == []
            raise KeyboardInterrupt

        monkeypatch.setattr(paint, 'write_gifs', stop)
        with pytest.raises(SystemExit) as ended:
            sample.main([str(plain_run.folder), '-o', folder])
        assert ended.value.code == 130
    assert os.listdir() == ['mine']


def test_help_of_sampling(capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main(['--help'])
    assert stop.value.code == 0
    parser = cli.Parser(prog='sample.py')
    sample.parse_args(parser, ['folder'])
    assert_help_is_complete(capsys.readouterr().out, parser)
