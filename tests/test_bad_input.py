"""Bad input: one line and exit code 2 before work starts, and nothing is written."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sample
import train_mnist
from commands import (
    SIZES,
    assert_no_run,
    assert_one_line,
    change_arguments,
    config_of,
    content,
    refusal,
    script,
)
from idx import write_idx

pytestmark = pytest.mark.usefixtures('no_figures')

TINY = [*SIZES, '-t', '64', '-f', '32', '-v', '20']


# Files of a training

@pytest.mark.parametrize('logdir', ['file', 'file/logs', 'file/logs/deep'])
def test_logdir_that_cannot_be_written(workplace, capsys, logdir):
    Path('file').write_text('mine')
    assert logdir in refusal(capsys, train_mnist.main, *TINY, '--logdir', logdir)
    assert Path('file').read_text() == 'mine' and sorted(os.listdir()) == ['data', 'file']


def damage_short(folder):
    path = folder / 'train-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-100])


def damage_text(folder):
    (folder / 'train-images-idx3-ubyte.gz').write_text('<html>not found</html>')


def damage_labels(folder):
    shutil.copy(folder / 't10k-labels-idx1-ubyte.gz', folder / 't10k-images-idx3-ubyte.gz')


def damage_few(folder):
    write_idx(folder / 'train-images-idx3-ubyte.gz', np.zeros((5, 28, 28)))


@pytest.mark.parametrize('damage, name', [(damage_short, 'train-images'), (damage_text, 'train-images'),
                                          (damage_labels, 't10k-images'), (damage_few, 'train-images')])
def test_damaged_images(workplace, capsys, damage, name):
    damage(workplace / 'data')
    assert name in refusal(capsys, train_mnist.main, *TINY)
    assert_no_run()


@pytest.mark.parametrize('folder', ['nowhere', 'file', 'file/data'])
def test_images_missing(workplace, capsys, folder):
    Path('file').write_text('mine')
    assert folder in refusal(capsys, train_mnist.main, *TINY, '--data_dir', folder)
    assert_no_run()


@pytest.mark.parametrize('argv', [
    ['train_mnist.py', '-s', '0'], ['train_mnist.py', *TINY, '--data_dir', 'nowhere'], ['sample.py', 'nowhere']],
    ids=['option', 'images', 'run'])
def test_bad_input_of_a_process(workplace, argv):
    result = script(*argv, cwd=workplace)
    assert result.returncode == 2
    assert_one_line(result.stdout, result.stderr)
    assert result.stderr.startswith(argv[0])
    assert_no_run()


# Run folders

def drop_argument(folder, name):
    config = config_of(folder)
    del config['arguments'][name]
    (folder / 'config.json').write_text(json.dumps(config))


def rewrite(name, change):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def foreign_parameters(folder):
    save_file({'dense0.weight': np.ones((3, 4), np.float32)}, folder / 'best.safetensors')


def remove_parameters(folder):
    for path in folder.glob('*.safetensors'):
        path.unlink()


def earlier_version(folder):
    for path in folder.glob('*.safetensors'):
        path.rename(path.with_suffix('.params'))


BAD_RUNS = {
    'no folder': shutil.rmtree,
    'empty folder': lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    'a file': lambda folder: (shutil.rmtree(folder), folder.write_text('mine')),
    'no config': lambda folder: (folder / 'config.json').unlink(),
    'no parameters': remove_parameters,
    'config cut short': rewrite('config.json', lambda content: content[:-20]),
    'config empty': rewrite('config.json', lambda content: b''),
    'config of something else': rewrite('config.json', lambda content: b'{"name": "draw", "arguments": {"x": 1}}'),
    'config without a size': lambda folder: drop_argument(folder, 'num_steps'),
    'config of 2 MiB': rewrite('config.json', lambda content: content + b' ' * 2 ** 21),
    'config of a larger network': lambda folder: change_arguments(folder, num_recurrent_units=9),
    'config of a smaller network': lambda folder: change_arguments(folder, latent_dim=3),
    'config of other images': lambda folder: change_arguments(folder, input_width=27),
    'config with attention': lambda folder: change_arguments(folder, attention=True),
    'config with text for a size': lambda folder: change_arguments(folder, latent_dim='4'),
    'config with a large window': lambda folder: change_arguments(folder, attention=True, write_size=29),
    'parameters cut short': rewrite('best.safetensors', lambda content: content[:-1]),
    'parameters empty': rewrite('best.safetensors', lambda content: b''),
    'parameters too long': rewrite('best.safetensors', lambda content: content + b'\0'),
    'parameters random': rewrite('best.safetensors', lambda content: np.random.default_rng(0).bytes(len(content))),
    'parameters of something else': foreign_parameters,
    'parameters with a huge header': rewrite('best.safetensors', lambda content: b'\xff' * 8 + content[8:]),
    'parameters of an earlier version': earlier_version}


@pytest.mark.parametrize('damage', BAD_RUNS.values(), ids=BAD_RUNS)
def test_damaged_run(run, capsys, damage):
    before = content(run)
    damage(run)
    assert not run.is_dir() or content(run) != before
    assert str(run) in refusal(capsys, sample.main, run, '-o', 'out')
    assert not os.path.exists('out')


@pytest.mark.parametrize('changes', [
    {'dataset': None}, {'binarization': None}, {'data_dir': None}, {'dataset': 'cifar'}, {'binarization': 'none'},
    {'dataset': 3}, {'data_dir': 3}, {'binarization': []}], ids=str)
def test_reconstruction_with_a_damaged_config(run, capsys, changes):
    for name, value in changes.items():
        if value is None:
            drop_argument(run, name)
        else:
            change_arguments(run, **{name: value})
    assert refusal(capsys, sample.main, run, '--reconstruct', '-o', 'out')
    assert not os.path.exists('out')
