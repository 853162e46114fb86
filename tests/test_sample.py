"""sample.py: what it paints, where it writes, what it refuses."""
import os
import shutil
import signal
from pathlib import Path

from system import files

import mxnet as mx
import numpy as np
import pytest
from PIL import Image, ImageSequence

import sample
from commands import TIME_OUT, started, wait_for
from conftest import ROOT
from dataset import stream
from dataset.load import load
from pictures import paint, render
from runs import config, params
from small_runs import contents, refusal, write_images

T = 3
RED, GREEN = (255, 0, 0), (0, 255, 0)


def new_run(tmp_path_factory, *argv):
    """The folder of a run with random parameters, large enough to paint something; its images are beside it."""
    folder = tmp_path_factory.mktemp('run') / 'run'
    folder.mkdir()
    write_images(folder.parent / 'images.npy', shape=(28, 28), number=210)
    args = config.parse_args(['-s', str(T), '-u', '8', '-l', '4', '-hh', '28', '-ww', '28',
                              '--dataset', str(folder.parent / 'images.npy'), *argv])
    files.write_json(folder / 'config.json', {'arguments': vars(args)})
    mx.random.seed(1)
    net = params.build_net(args)
    net.initialize(mx.init.Normal(0.3))
    params.save(folder / 'best.safetensors', params.arrays_of(net))
    return folder


@pytest.fixture(scope='module')
def attention_run(tmp_path_factory):
    return new_run(tmp_path_factory, '--attention')


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    return new_run(tmp_path_factory)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def paint_with(run, *argv):
    sample.main([str(run), *map(str, argv)])


def frames(path):
    """The frames of a GIF as RGB arrays."""
    with Image.open(path) as image:
        return [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]


def colours_per_frame(path):
    """For each frame: is there red, is there green."""
    return [tuple(bool((frame == colour).all(axis=-1).any()) for colour in (RED, GREEN)) for frame in frames(path)]


def paintings_of(run, **what):
    return list(paint.paint(params.load_net(run), 3, **what))


def first_test_images(run, n):
    grey = load(run.parent / 'images.npy').splits['test'][:n]
    return stream.evaluation_images(grey, 'dynamic').reshape(-1, 28, 28)


# What is painted

def test_a_seed_gives_the_same_bytes_and_another_seed_other_files(attention_run):
    for folder, seed in (('one', 0), ('one', 6), ('same', 0)):
        paint_with(attention_run, '-n', '2', '--seed', seed, '-o', folder)
    one, same = contents('one'), contents('same')
    assert sorted(one) == ['sample_0.gif', 'sample_1.gif', 'sample_seed6_0.gif', 'sample_seed6_1.gif']
    assert same == {name: one.pop(name) for name in ('sample_0.gif', 'sample_1.gif')}
    assert not set(one.values()) & set(same.values())


@pytest.mark.parametrize('limit', [('_CHUNK', 2), ('_CHUNK_PIXELS', 2 * T * 28 * 28)])
def test_a_sample_does_not_depend_on_how_many_are_painted_together(attention_run, monkeypatch, limit):
    seven, sizes = paintings_of(attention_run, num_samples=7), []
    monkeypatch.setattr(paint, *limit)
    monkeypatch.setattr(paint, 'noise', lambda *args, noise=paint.noise: sizes.append(args[3]) or noise(*args))
    for one, other in zip(seven, paintings_of(attention_run, num_samples=5)):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-5)
        assert one is seven[0] or abs(one.probabilities - seven[0].probabilities).max() > 1e-3
    assert sizes == [2, 2, 1]


def test_boxes(attention_run, plain_run):
    for folder, run, *argv in (('boxes', attention_run), ('bare', attention_run, '--no_boxes'), ('plain', plain_run)):
        paint_with(run, '-n', '1', '-o', folder, *argv)
    colours = {folder: colours_per_frame(f'{folder}/sample_0.gif') for folder in ('boxes', 'bare', 'plain')}
    assert colours['boxes'] == [(False, False), *[(True, False)] * T, (False, False)]  # the finished image is clean
    assert {*colours['bare'], *colours['plain']} == {(False, False)}
    assert (frames('boxes/sample_0.gif')[-1] == frames('bare/sample_0.gif')[-1]).all()


def test_every_frame_has_its_own_window():
    windows = np.array([[-0.5, 0, -3, -1.5, 0], [0, 0, -3, -1.5, 0], [0.5, 0, -3, -1.5, 0]])  # from left to right
    boxes = [(RED, render.window_boxes(windows, 5, (28, 28)))]
    first, *steps, last = paint.frames([paint.Painting(np.zeros((T + 1, 28, 28)), boxes, None)], scale=4)
    red = [(np.asarray(frame.convert('RGB')) == RED).all(axis=-1) for frame in steps]
    centres = [mask.any(axis=0).nonzero()[0].mean() for mask in red]
    np.testing.assert_allclose(centres, [4 * (14.5 * (1 + g) - 0.5) - 0.5 for g in (-0.5, 0, 0.5)], atol=0.5)


def test_reconstructions_stand_beside_their_inputs(attention_run, capsys):
    paint_with(attention_run, '--reconstruct', '-n', '40', '-o', 'out')
    about_images, *_, about_files = capsys.readouterr().out.splitlines()
    assert about_images.startswith('150 training, 30 validation and 30 test images of ')
    assert about_files.startswith('30 reconstructions of ')
    images = first_test_images(attention_run, 30)
    for i, image in enumerate(images):
        for frame in frames(f'out/reconstruction_{i}.gif'):
            assert (frame[2::4, 4 * 29 + 2::4, 0] == 255 * image).all()
    assert colours_per_frame('out/reconstruction_29.gif')[1] == (True, True)
    for painting in paintings_of(attention_run, images=images[:2].reshape(2, -1)):
        assert [(colour, boxes.shape) for colour, boxes in painting.boxes] == [(GREEN, (T, 5)), (RED, (T, 5))]


def test_grids(attention_run):
    paint_with(attention_run, '--grid', 'grid.gif')
    paint_with(attention_run, '--grid', 'bare.gif', '--no_boxes', '-n', '12')
    paint_with(attention_run, '--grid', 'new/grid.PNG', '-n', '121')
    paint_with(attention_run, '-n', '12', '--scale', '2', '--no_boxes', '-o', 'gifs')
    grid, bare, finished = (frames(name) for name in ('grid.gif', 'bare.gif', 'new/grid.PNG'))
    assert [red for red, _ in colours_per_frame('grid.gif')] == [False, *[True] * T, False]
    assert [grid[0].shape, bare[0].shape, finished[0].shape] == [(578, 578, 3), (114, 578, 3), (636, 636, 3)]
    assert (grid[-1][:56] == bare[-1][:56]).all() and len(finished) == 1
    for i in (0, 9, 10, 11):
        gif, left, top = frames(f'gifs/sample_{i}.gif'), i % 10 * 58, i // 10 * 58
        for one, frame in zip(gif, bare):
            assert abs(frame[top:top + 56, left:left + 56].astype(int) - one).max() <= 10  # a third of the greys
        left, top = i % 11 * 58, i // 11 * 58  # a square of 11 x 11
        assert (finished[0][top:top + 56, left:left + 56] == gif[-1]).all()


@pytest.mark.parametrize('name', ['grid.gif', 'grid.png'])
def test_grids_of_reconstructions(attention_run, name):
    paint_with(attention_run, '--reconstruct', '-n', '7', '--grid', name)
    for i, image in enumerate(first_test_images(attention_run, 7)):  # rows of five pairs, 28 pixels, gaps of 1 and 3
        top, left = i // 5 * 31 * 2, (i % 5 * 60 + 29) * 2
        for frame in frames(name):
            assert (frame[top:top + 56:2, left:left + 56:2, 0] == 255 * image).all()


@pytest.mark.parametrize('reconstruct', [[], ['--reconstruct']], ids=['samples', 'reconstructions'])
def test_steps(attention_run, reconstruct):
    paint_with(attention_run, '-n', '5', *reconstruct, '--scale', '2', '--steps', 'steps.png')
    paint_with(attention_run, '-n', '5', *reconstruct, '--scale', '2', '-o', 'gifs')
    page, = frames('steps.png')
    rows = page[-2 * (5 * 29 - 1):]
    assert page.shape[1] == 2 * ((T + len(reconstruct)) * 29 - 1)
    for i in range(5):
        gif = frames(f'gifs/{"reconstruction" if reconstruct else "sample"}_{i}.gif')
        for column, tile in enumerate([frame[:, :56] for frame in gif[1:-1]] + [gif[0][:, 58:]] * len(reconstruct)):
            assert (rows[58 * i:58 * i + 56, 58 * column:58 * column + 56] == tile).all()


@pytest.mark.parametrize('name, run', [('draw_w_attn', []), ('draw_wo_attn', [ROOT / 'assets' / 'draw_wo_attn'])])
def test_shipped_models_paint_what_README_shows(name, run):
    sample.main([*map(str, run), '--grid', 'grid.gif'])
    for shown, drawn in zip(frames(ROOT / 'assets' / f'{name}_grid.gif'), frames('grid.gif')):
        assert abs(shown.astype(float) - drawn).mean() < 1  # of 255: other processors differ in the last bits
    assert os.path.getsize('grid.gif') < 2e6


# Where it goes

def test_gifs_go_to_the_folder_of_the_run(plain_run, capsys):
    shutil.copytree(plain_run, 'run')
    paint_with('run', '-n', '2')
    assert capsys.readouterr().out == '2 samples of run/best.safetensors: run/samples/sample_0.gif ... sample_1.gif\n'
    assert os.listdir() == ['run'] and sorted(os.listdir('run/samples')) == ['sample_0.gif', 'sample_1.gif']


def test_termination_leaves_whole_files_and_no_word(plain_run):
    with started('sample.py', plain_run, '-n', '100000', '-o', 'out') as process:
        wait_for(Path('out/sample_0.gif').exists)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIME_OUT) == ('', '') and process.returncode == 130
    for path in Path('out').iterdir():
        with Image.open(path) as image:
            assert path.suffix == '.gif' and image.n_frames == T + 1


# What is refused

@pytest.mark.parametrize('argv, reason', [
    (['-n', '0'], '--num_samples'), (['--scale', '0'], '--scale'), (['extra'], 'extra'),
    (['-o', 'a.png'], '--grid FILE.png'), (['--grid', 'a.jpg'], '.gif or .png'), (['--steps', 'a.gif'], '.png'),
    (['--grid', 'a.gif', '-o', 'out'], '--output_dir'), (['--grid', 'a.gif', '--steps', 'a.png'], '--grid'),
    (['--output_dir', ''], '--output_dir'), (['-o', 'file'], 'file'), (['-o', 'file/out'], 'file/out'),
    (['--grid', 'file/a.png'], 'file'), (['--grid', 'folder.png'], 'is a folder'),
    (['--reconstruct', '--dataset', 'nowhere'], 'nowhere')], ids=str)
def test_what_cannot_be_done_is_refused_before_painting(plain_run, monkeypatch, capsys, argv, reason):
    monkeypatch.setattr(paint, 'noise', None)
    Path('file').write_text('mine')
    Path('folder.png').mkdir()
    assert reason in refusal(capsys, sample.main, plain_run, *argv)
    assert sorted(os.listdir()) == ['file', 'folder.png']
    assert sorted(os.listdir(plain_run)) == ['best.safetensors', 'config.json']
