"""assets/make.py, and the models in assets/."""
import importlib.util
import os
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import sample
import train_mnist
from idx import write_mnist
from runs import storage

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
    make.main(str(run), 'model')
    made = tmp_path / 'made'
    assert sorted(os.listdir(made)) == sorted(['model', 'model_kl.png', 'model_reconstructions.png',
                                               *(f'model_{i}.gif' for i in range(10))])
    assert sorted(os.listdir(made / 'model')) == ['best.safetensors', 'config.json']
    config, original = (storage.read_config(folder) for folder in (made / 'model', run))
    assert str(tmp_path) not in (made / 'model' / 'config.json').read_text()
    assert config['command'] == ' '.join(['train_mnist.py', *argv[:-4]])
    assert config['arguments'] == {**original['arguments'], 'data_dir': 'data', 'logdir': 'results'}
    assert config['validation'] == original['validation'] and config['seconds'] == original['seconds']
    assert (made / 'model' / 'best.safetensors').stat().st_size < 0.7 * (run / 'best.safetensors').stat().st_size
    sample.main([str(made / 'model'), '-o', str(tmp_path / 'out')])  # the GIFs are those of the stored model
    for i in range(10):
        assert (made / f'model_{i}.gif').read_bytes() == (tmp_path / 'out' / f'sample_{i}.gif').read_bytes()
    seen, table = make.kl_table(str(run))
    assert list(seen) == [32, 64] and table.shape == (2, T)
    assert table[-1].sum() == pytest.approx(run_kl(run), rel=1e-4)
    with Image.open(made / 'model_reconstructions.png') as picture:
        assert picture.width == 4 * ((T + 1) * 29 - 1)


def run_kl(run):
    """The KL of the last validation, computed again from last.safetensors."""
    net = storage.build_net(storage.read_config(run)['arguments'])
    net.initialize()
    storage.load_params(run, 'last', net)
    arguments = storage.read_config(run)['arguments']
    args = train_mnist.parse_args(train_mnist.cli.Parser(), ['--resume', str(run)])
    images = train_mnist.stream.evaluation_images(
        train_mnist.stream.load('mnist', arguments['data_dir'], (28, 28))['validation'], 'dynamic')[:7]
    return train_mnist.Training(net, args, [mx.cpu()]).validate(images)[1]


def test_kl_figure_shows_the_table(make):
    table = np.zeros((3, T))
    table[1, 0] = 1.  # the second validation, the first step: in the middle, at the bottom
    picture = np.asarray(make.kl_figure(np.array([10, 20, 30]), table, width=30, height=40, left=0, bottom=0, top=0))
    assert picture[38, 15] == 255 and picture[38, 5] == 0 and picture[5, 15] == 0
