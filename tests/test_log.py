"""What a run records, what it keeps of that when it resumes, and what TensorBoard shows."""
import io
import os
import re
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from mxboard import summary
from PIL import Image

import browser
import train_mnist
from commands import python, wait_for
from conftest import ROOT
from dataset.load import load
from dataset.stream import evaluation_images
from networks import ATTENTION, NO_ATTENTION, build
from pictures import paint, plot
from runs import curves, params
from runs.log import Log
from runs.run import Run
from runs.training import Training
from small_runs import (
    ARGV,
    assert_same_end,
    at_call,
    checkpoint_of,
    code_of,
    config_of,
    fail_with,
    new_folder,
    only_folder,
    resume,
    train,
)

SPLITS = 'train', 'validation'
T = 2  # time steps, in ARGV
ARGUMENTS = {'num_steps': T}
NATS = {f'nats_per_image/{name}' for name in ('bound', 'reconstruction', 'kl')}
TRAINING = {f'training/{name}' for name in ('gradient_norm', 'learning_rate', 'samples_per_second')}
GRADIENTS = {f'training_gradients/{name}' for name in
             ('initial_states', 'read', 'encoder', 'posterior', 'decoder', 'write')}
RESULT = 'result/bound_nats_per_image'


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """A folder with the same run twice. One never stopped; the other failed three times, with more in its log than in
    its checkpoint: before the first checkpoint, after a point of the training, and after a validation."""
    argv = ['--attention', '--checkpoint_freq', '1e6']  # checkpoints at validations only
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(new_folder(tmp_path_factory))
        train(*argv, logdir='runs').rename('whole')
        command = [*ARGV, *argv, '--logdir', 'runs']
        for *where, logged in (Training, 'update', 2, 8), (Training, 'update', 4, 24), (Run, 'save_checkpoint', 1, 32):
            with pytest.MonkeyPatch.context() as failing:
                at_call(failing, *where, fail_with(MemoryError('full')))
                assert code_of(train_mnist.main, *command) == 1
            folder = only_folder('runs')
            assert curves.read(folder / 'curves.csv')['samples_seen'].max() == logged
            command = ['--resume', folder]
        assert resume(folder) == 0
        folder.rename('resumed')
        return Path.cwd()


@pytest.fixture
def log(tmp_path):
    log = Log(str(tmp_path), ARGUMENTS)
    yield log
    log.close()


def read_curves(folder, split):
    table = curves.read(folder / 'curves.csv')
    return table[table['split'] == split]


def read_kl_per_step(folder):
    return curves.read(folder / 'kl_per_step.csv').tolist()


# CSV files

def test_curves_of_a_resumed_run_have_no_fold(logdir):
    assert list(read_curves(logdir / 'whole', 'train')['samples_seen']) == [8, 16, 24, 32, 40, 48]
    assert list(read_curves(logdir / 'whole', 'validation')['samples_seen']) == [16, 32, 48]
    assert_same_end(logdir / 'resumed', logdir / 'whole')
    assert [len(os.listdir(logdir / name / 'train')) for name in ('whole', 'resumed')] == [1, 4]


def test_numbers_are_those_of_the_validations(workplace, monkeypatch):
    monkeypatch.setattr(Training, 'validate', lambda *_: (5., 3., np.array([0.5, 1.25])))
    folder = train('-t', '16')
    table = curves.read(folder / 'curves.csv')
    np.testing.assert_allclose(table['bound'], table['reconstruction'] + table['kl'], rtol=1e-6)
    for name in curves.COLUMNS[-3:]:
        assert (np.isfinite(table[name]) == (table['split'] == 'train')).all()
    assert table[table['split'] == 'validation'][['samples_seen', 'bound', 'reconstruction', 'kl']].tolist() == [
        (16, 5, 3, 2)]
    assert read_kl_per_step(folder) == [(16, 0.5, 1.25)]


def test_every_point_can_be_read_at_once(log, tmp_path):
    log.bound('train', 1280, 3., 2., samples_per_second=0.1)
    assert (tmp_path / 'curves.csv').read_text() == f'{",".join(curves.COLUMNS)}\n1280,train,5,3,2,nan,nan,0.1\n'
    log.kl_per_step(10 ** 9 + 1, np.array([2.5, 1 / 3], np.float32))
    head, line = (tmp_path / 'kl_per_step.csv').read_text().splitlines()
    assert head == 'samples_seen,kl_1,kl_2' and line.startswith('1000000001,2.5,0.33333')


@pytest.mark.parametrize('end', ['', '3', '32,train,1,', '32,validation,1,2,3,4,5,6'])
def test_resumed_run_keeps_whole_lines_up_to_its_checkpoint(log, tmp_path, end):
    for seen in (16, 32, 48, 64):
        log.bound('train', seen, 3., 2.)
    with open(tmp_path / 'curves.csv', 'a') as file:
        file.write(end)
    Log(str(tmp_path), ARGUMENTS, seen=32).close()
    assert list(read_curves(tmp_path, 'train')['samples_seen']) == [16, 32]
    assert (tmp_path / 'curves.csv').read_text().count('\n') == 3


@pytest.mark.parametrize('shape, scale', [((8, 6), 4), ((60, 100), 2), ((300, 2), 1)])
def test_previews_of_large_images_are_not_enlarged(log, monkeypatch, shape, scale):
    used = []
    monkeypatch.setattr(paint, 'sheet', lambda _, scale: used.append(scale) or np.zeros((2, 2, 3), np.uint8))
    log.pictures(build(NO_ATTENTION, shape), np.zeros((6, shape[0] * shape[1])), 0)
    assert used == [scale, scale]


# Event files

def test_event_files_are_in_order_though_the_clock_was_set_back(tmp_path, monkeypatch):
    """TensorBoard reads them in the order of their names."""
    found = []
    for clock in (2e9, 1e9, 1e9):
        monkeypatch.setattr(time, 'time', lambda clock=clock: clock)
        Log(str(tmp_path), ARGUMENTS).close()
        names = sorted(os.listdir(tmp_path / 'train'))
        assert names[:-1] == found and len(names) == len(found) + 1
        found = names


def test_mxboard_that_cannot_be_imported_is_one_line():
    code = 'import tensorboard.compat.proto.event_pb2, runpy; runpy.run_path("train_mnist.py", {}, "__main__")'
    done = python('-c', code, folder=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert "pip install 'protobuf<3.21'" in done.stderr and 'tensorboard' in done.stderr


# The disk

def test_sync_reaches_every_file(log, tmp_path, monkeypatch):
    found = set()
    monkeypatch.setattr(os, 'fsync', lambda file: found.add(os.readlink(f'/proc/self/fd/{file}')))
    log.sync()
    assert found == {str(path) for path in tmp_path.rglob('*') if path.is_file()} and len(found) == 4


# Learning curves as a picture

def test_curves_are_drawn(logdir):
    panels = plot.figure(curves.read(logdir / 'whole' / 'curves.csv')).axes
    for axes, name in zip(panels, ('bound', 'reconstruction', 'kl')):
        assert axes.get_xlabel() == 'training samples' and axes.get_ylabel() == 'nats per image'
        for line, split in zip(axes.get_lines(), SPLITS):
            points = read_curves(logdir / 'whole', split)
            assert line.get_label() == split
            np.testing.assert_array_equal(line.get_data(), [points['samples_seen'], points[name]])
    with Image.open(logdir / 'whole' / 'curves.png') as picture:
        assert picture.format == 'PNG' and min(picture.size) > 300


def test_view_leaves_out_the_start_and_nothing_else(log, tmp_path):
    for seen in range(1, 1001):
        log.bound('train', seen, 90 + 450. * (seen < 10) + np.sin(seen), 0.)
    for seen, bound in ((250, 100.), (500, np.nan), (750, 150.), (1000, 190.)):
        log.bound('validation', seen, bound, 0.)
    low, high = plot.figure(curves.read(tmp_path / 'curves.csv')).axes[0].get_ylim()
    assert 80 < low < 89.1 and 190 < high < 200


# A real TensorBoard

@pytest.fixture(scope='module', params=['true', 'false'])
def tensorboard(request, logdir):
    """Ask TensorBoard, with its fast reader and with the one in Python: a function from a path and its query."""
    with browser.tensorboard(logdir, 'resumed', '--load_fast', request.param) as (_, ask):
        wait_for(lambda: RESULT in ask('plugin/scalars/tags').get('whole/validation', ()))
        yield ask


def tags(tensorboard, plugin, run='whole'):
    return {name.split('/')[1]: set(found) for name, found in tensorboard(f'plugin/{plugin}/tags').items()
            if name.startswith(f'{run}/')}


@pytest.mark.parametrize('run', ['whole', 'resumed'])
def test_tensorboard_shows_the_curves(tensorboard, logdir, run):
    """Train and validation share their tags, and so their charts; also after three failures."""
    assert tags(tensorboard, 'scalars', run) == {'train': NATS | TRAINING, 'validation': NATS | {RESULT}}
    for split in SPLITS:
        points = read_curves(logdir / run, split)
        for tag in tags(tensorboard, 'scalars', run)[split] - {RESULT}:
            seen, values = np.array(tensorboard('plugin/scalars/scalars', run=f'{run}/{split}', tag=tag)).T[1:]
            np.testing.assert_array_equal(seen, points['samples_seen'])
            np.testing.assert_allclose(values, points[tag.split('/')[1]], rtol=1e-6, err_msg=tag)
    (_, seen, bound), = tensorboard('plugin/scalars/scalars', run=f'{run}/validation', tag=RESULT)
    assert seen == 48 and bound == pytest.approx(config_of(logdir / run)['validation']['bound'], rel=1e-6)


def test_tensorboard_shows_the_pictures(tensorboard, logdir):
    """The last ones show the parameters of the checkpoint."""
    assert tags(tensorboard, 'images', 'resumed') == {'validation': {'pictures/samples', 'pictures/reconstructions'}}
    net = params.load_net(logdir / 'resumed')
    params.set_arrays(net, checkpoint_of(logdir / 'resumed')[0])
    images = load(str(logdir / 'images.npy'), splits=['validation']).splits['validation'][:6]
    images = evaluation_images(images, config_of(logdir / 'resumed')['arguments']['binarization'])
    for name, what in ('samples', {'num_samples': 6}), ('reconstructions', {'images': images}):
        found = tensorboard('plugin/images/images', run='resumed/validation', tag=f'pictures/{name}', sample=0)
        assert [picture['step'] for picture in found] == [16, 32, 48]
        png = tensorboard('plugin/images/individualImage', **dict(urllib.parse.parse_qsl(found[-1]['query'])))
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)), paint.sheet(paint.paint(net, 0, **what)))


def test_tensorboard_shows_the_gradients(tensorboard, logdir):
    """Each number of each parameter is in one of the histograms."""
    assert tags(tensorboard, 'histograms')['train'] == GRADIENTS
    sizes = dict.fromkeys([16, 32, 48], 0)
    for tag in GRADIENTS:
        for _, step, bins in tensorboard('plugin/histograms/histograms', run='whole/train', tag=tag):
            sizes[step] += sum(number for _, _, number in bins)
    arrays = params.arrays_of(params.load_net(logdir / 'whole'))
    assert set(sizes.values()) == {sum(array.size for array in arrays.values())}


def test_each_part_of_the_network_has_its_own_gradients(monkeypatch, tmp_path):
    net, found = build(ATTENTION), {}
    parts = {'initial_states': ['h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'], 'read': ['read.window'],
             'encoder': ['r_to_enc', 'h_dec_to_enc', 'h_enc_to_enc'], 'posterior': ['h_enc_to_q'],
             'decoder': ['z_to_dec', 'h_dec_to_dec'], 'write': ['write.window', 'write.patch']}
    for number, parameter in enumerate(params.of(net).values()):
        parameter.grad()[:] = number
    at_call(monkeypatch, summary, 'histogram_summary', None, lambda tag, values: found.update({tag: {*values}}))
    log = Log(str(tmp_path), ARGUMENTS)
    log.gradients(net, 8)
    log.close()
    names = [*params.of(net)]
    assert found == {f'training_gradients/{part}': {names.index(name) for name in names
                                                    if name.removesuffix('.weight').removesuffix('.bias') in layers}
                     for part, layers in parts.items()}


def test_tensorboard_shows_the_kl_of_all_steps_in_one_histogram(tensorboard, logdir):
    assert tags(tensorboard, 'histograms')['validation'] == {'time_steps/kl'}
    histograms = tensorboard('plugin/histograms/histograms', run='whole/validation', tag='time_steps/kl')
    assert len(histograms) == 3
    for (_, step, bins), (seen, *expected) in zip(histograms, read_kl_per_step(logdir / 'whole')):
        assert step == seen
        for t, kl in enumerate(expected, start=1):
            inside = sum(height for left, right, height in bins if t - 0.5 < (left + right) / 2 < t + 0.5)
            assert inside == pytest.approx(kl, abs=1e-4)


def test_tensorboard_shows_the_configuration_and_the_result(tensorboard, logdir):
    assert tags(tensorboard, 'text') == {'train': {'configuration'}, 'validation': {'result'}}
    config = config_of(logdir / 'whole')
    for split, tag, expected in (('train', 'configuration', config['arguments']),
                                 ('validation', 'result', config['validation'])):
        text, = tensorboard('plugin/text/text', run=f'whole/{split}', tag=tag)
        assert text['text'].count('<table') == 1
        for name, value in expected.items():
            assert re.search(rf'<td>{name}</td>\s*<td>{re.escape(str(value))}</td>', text['text']), name


def test_table_of_any_arguments(tmp_path):
    Log(str(tmp_path), {**ARGUMENTS, 'data_dir': 'a | \udcff', 'gpus': None}).close()
    path, = (tmp_path / 'train').iterdir()
    assert rb'a \| \udcff' in path.read_bytes()
