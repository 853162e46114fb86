"""assets/make.py: the compact models and the pictures of the README."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from assets import make
from dataset.load import load
from networks import assert_equal
from runs import curves, params
from small_runs import change_config, config_of, refusal


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """The folder that assets/make.py writes to in these tests."""
    folder = tmp_path / 'made'
    folder.mkdir()
    monkeypatch.setattr(make, 'FOLDER', str(folder))
    return folder


def validations(*rows):
    """A table of curves.csv: (samples seen, bound)."""
    return np.array([*rows], [('samples_seen', float), ('bound', float)])


def test_everything_of_a_run(made, run, tmp_path):
    make.main([str(run), 'model'])
    assert sorted(os.listdir(made)) == ['model', 'model_grid.gif', 'model_kl.png', 'model_reconstructions.png']
    assert sorted(os.listdir(made / 'model')) == ['best.safetensors', 'config.json']
    sample.main([str(made / 'model'), '--grid', 'grid.gif', '--scale', '8'])  # that of the stored model
    assert (made / 'model_grid.gif').read_bytes() == Path('grid.gif').read_bytes()
    with Image.open(made / 'model_reconstructions.png') as picture:
        assert picture.width == 4 * ((2 + 1) * 8 - 1)  # two steps and the input, 7 pixels wide


def test_the_model_is_compact_and_names_no_path_of_this_machine(made, run):
    make.compact_model(str(run), made / 'model')
    own, whole = (params.arrays_of(params.load_net(str(folder))) for folder in (made / 'model', run))
    assert_equal(own, {name: array.astype('float16').astype('float32') for name, array in whole.items()})
    assert (made / 'model' / 'best.safetensors').stat().st_size < 0.7 * (run / 'best.safetensors').stat().st_size
    config = config_of(made / 'model')
    dataset = config['arguments']['dataset'], config['images']['dataset']  # own images
    assert set(dataset) == {Path(config_of(run)['images']['dataset']).name}
    assert os.sep not in json.dumps(config)
    assert config['validation'] == config_of(run)['validation']
    change_config(run, {'num_train_samples': 96})  # it was resumed
    make.compact_model(str(run), made / 'model')
    assert 'validation' not in config_of(made / 'model')


def test_kl_figure_shows_the_table():
    table = np.zeros(3, [(name, float) for name in curves.kl_columns(3)])
    table['samples_seen'], table['kl_1'] = [10, 20, 30], [0, 1, 0]
    figure = make.kl_figure(table)
    mesh, = figure.axes[0].collections
    np.testing.assert_array_equal(np.reshape(mesh.get_array(), (3, 3)), [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    left, bottom, right, top = figure.axes[0].dataLim.extents
    assert (left, right) == (5, 35) and (bottom, top) == (0.5, 3.5)


def test_the_curve_stands_beside_the_papers():
    table = validations((0, 500), (10, 90))
    axes, = make.curves_figure(True, table).axes
    ours, paper = axes.get_lines()
    np.testing.assert_array_equal(ours.get_data(), [table['samples_seen'], table['bound']])
    assert set(paper.get_ydata()) == {80.97}
    assert axes.get_ylim() == (79.97, 140)  # the first validation is far above what comes later
    axes, = make.curves_figure(False, validations((0, 95), (10, 93))).axes  # of a run that started from a model
    assert set(axes.get_lines()[1].get_ydata()) == {87.40} and axes.get_ylim() == (79.97, 96)


def test_a_run_on_mnist_has_its_curve(made, run):
    change_config(run, {'dataset': 'mnist'})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, 'load_of_run', lambda stored, splits: load('images.npy', splits=splits))
        make.main([str(run), 'model'])
    assert (made / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('argv, message', [
    ([], 'required: RUN, NAME'), (['RUN', '../a'], 'not a plain'), (['nowhere', 'model'], 'nowhere'),
    (['unvalidated', 'model'], 'curves.csv'), (['damaged', 'model'], 'damaged/curves.csv is damaged')])
def test_bad_arguments_make_nothing(made, run, capsys, argv, message):
    shutil.copytree(run, 'damaged')
    Path('damaged/curves.csv').write_text('samples_seen,split\n1,train\nx,train\n')
    Path('unvalidated').mkdir()
    for name in ('config.json', 'best.safetensors'):
        (Path('unvalidated') / name).write_bytes((run / name).read_bytes())
    assert message in refusal(capsys, make.main, *(run if word == 'RUN' else word for word in argv))
    assert not os.listdir(made)
