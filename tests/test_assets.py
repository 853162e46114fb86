"""assets/make.py, and the models in assets/."""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
import train_mnist
from commands import ARGV, resume, train
from idx import write_mnist
from runs import storage
from runs.log import read_scalars

ASSETS = Path(__file__).resolve().parent.parent / 'assets'
T = 4


@pytest.fixture
def make(monkeypatch, tmp_path):
    specification = importlib.util.spec_from_file_location('make', ASSETS / 'make.py')
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, 'FOLDER', str(tmp_path / 'made'))
    (tmp_path / 'made').mkdir()
    return module


@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_assets_of_a_run(make, tmp_path, monkeypatch, attention):
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')  # nobody listens there
    (tmp_path / 'data').mkdir()
    write_mnist(tmp_path / 'data')
    argv = ['-s', str(T), '-u', '8', '-l', '2', '-b', '16', '-t', '64', '-f', '32', '-v', '7', *attention,
            '--data_dir', str(tmp_path / 'data'), '--logdir', str(tmp_path / 'logs')]
    assert train_mnist.main(argv) == 0
    run, = (tmp_path / 'logs').iterdir()
    make.main([str(run), 'model'])
    made = tmp_path / 'made'
    assert sorted(os.listdir(made)) == sorted([
        'curves.png', 'model', 'model_grid.gif', 'model_kl.png', 'model_reconstructions.png',
        *(f'model_{i}.gif' for i in range(10))])
    assert sorted(os.listdir(made / 'model')) == ['best.safetensors', 'config.json']
    config, original = (storage.read_config(folder) for folder in (made / 'model', run))
    assert str(tmp_path) not in (made / 'model' / 'config.json').read_text()
    assert config['command'] == ' '.join(['train_mnist.py', *argv[:-4]])
    assert config['arguments'] == {**original['arguments'], 'data_dir': 'data', 'logdir': 'results'}
    assert config['validation'] == original['validation'] and config['seconds'] == original['seconds']
    assert (made / 'model' / 'best.safetensors').stat().st_size < 0.7 * (run / 'best.safetensors').stat().st_size
    sample.main([str(made / 'model'), '-o', str(tmp_path / 'out')])  # the GIFs are those of the stored model
    sample.main([str(made / 'model'), '--grid', str(tmp_path / 'out' / 'grid.gif')])
    assert (made / 'model_grid.gif').read_bytes() == (tmp_path / 'out' / 'grid.gif').read_bytes()
    for i in range(10):
        assert (made / f'model_{i}.gif').read_bytes() == (tmp_path / 'out' / f'sample_{i}.gif').read_bytes()
    with Image.open(made / 'model_reconstructions.png') as picture:
        assert picture.width == 4 * ((T + 1) * 29 - 1)


def test_no_folder_of_this_machine_is_shipped(make, run, tmp_path, no_figures):
    second = train('-t', '16', '--init', run.absolute(), f'--data_dir={tmp_path / "data"}', logdir=tmp_path / 'second')
    third = train('-t', '16', f'--init={second}', logdir=tmp_path / 'third')
    assert resume(third, '-t', '32') == 0
    make.compact_model(third, tmp_path / 'made' / 'model')
    assert str(tmp_path) not in (tmp_path / 'made' / 'model' / 'config.json').read_text()
    config = storage.read_config(tmp_path / 'made' / 'model')
    assert config['arguments']['init'] == config['init']['run'] == config['init']['init']['run'] == 'RUN_DIR'
    command = ' '.join(['train_mnist.py', *ARGV, '-t 16 --init RUN_DIR'])
    assert config['command'] == config['init']['command'] == command
    assert config['resumed'] == [{'command': 'train_mnist.py --resume RUN_DIR -t 32', 'samples_seen': 16}]


def test_runs_of_one_name_are_one_model(make, run, tmp_path, no_figures):
    second = train('-t', '32', '--init', run, logdir=tmp_path / 'second')
    third = train('-t', '16', '--init', second, logdir=tmp_path / 'third')
    attention, bound = make.validation_curve([run, second, third])
    assert attention is False and bound[:, 0].tolist() == [64, 64 + 32, 64 + 32 + 16]
    own = [read_scalars(folder)['validation']['bound'][0, 1] for folder in (run, second, third)]
    assert bound[:, 1].tolist() == own
    make.main([str(second), 'model', str(third), 'model'])
    assert storage.read_config(tmp_path / 'made' / 'model')['validation'] == storage.read_config(third)['validation']


def test_kl_figure_shows_the_table(make):
    table = np.zeros((3, T))
    table[1, 0] = 1.  # the second validation, the first step
    figure = make.kl_figure(np.array([10, 20, 30]), table)
    mesh, = figure.axes[0].collections
    np.testing.assert_array_equal(np.reshape(mesh.get_array(), (T, 3)), table.T)
    left, bottom, right, top = figure.axes[0].dataLim.extents
    assert (left, right) == (5, 35) and (bottom, top) == (0.5, T + 0.5)


def test_curves_stand_beside_the_papers(make):
    attention, plain = np.array([[0, 500], [10, 90.]]), np.array([[0, 400], [20, 95.]])
    figure = make.curves_figure([(True, attention), (False, plain)])
    axes, = figure.axes
    ours, paper, ours_plain, paper_plain = axes.get_lines()
    for line, points in ((ours, attention), (ours_plain, plain)):
        np.testing.assert_array_equal(np.transpose(line.get_data()), points)
    assert set(paper.get_ydata()) == {80.97} and set(paper_plain.get_ydata()) == {87.40}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'with attention', 'the paper, with attention, test images: 80.97',
        'without attention', 'the paper, without attention, test images: 87.40']
    assert axes.get_ylim() == (75.97, 145)
    axes, = make.curves_figure([(True, np.array([[10, 92.], [20, 88.]]))]).axes
    assert axes.get_ylim() == (75.97, 97)


@pytest.mark.parametrize('argv, message', [
    ([], 'required: RUN_DIR NAME'), (['run'], "'run' has no NAME"), (['run', 'model', 'other'], "'other' has no NAME"),
    (['RUN', 'model', 'no_run', 'other'], 'no_run'), (['RUN', 'model', 'unvalidated', 'other'], 'no validation'),
    (['RUN', 'model', 'empty', 'other'], 'empty/best.safetensors'), (['RUN', ''], "'' is not a plain name"),
    (['RUN', '../model'], "'../model' is not"), (['RUN', '..'], "'..' is not")])
def test_bad_arguments_make_nothing(make, run, tmp_path, capsys, argv, message):
    shutil.rmtree(Path(shutil.copytree(run, 'unvalidated'), 'validation'))
    for path in Path(shutil.copytree(run, 'empty')).glob('*.safetensors'):
        path.unlink()
    with pytest.raises(SystemExit) as end:
        make.main([str(run) if word == 'RUN' else word for word in argv])
    error, = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and error.startswith('python -m assets.make: error: ') and message in error
    assert not os.listdir(tmp_path / 'made')


def test_missing_images_leave_all_as_it_was(make, run, tmp_path, capsys):
    shutil.rmtree('data')
    with pytest.raises(SystemExit):
        make.main([str(run), 'model'])
    assert "MNIST is not in 'data'" in capsys.readouterr().err and not os.listdir(tmp_path / 'made')


def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, '-m', 'assets.make'], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and 'RUN_DIR NAME' in result.stderr
