"""Bad input: one line and exit code 2 before work starts, and nothing is written."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import evaluate
import sample
import train_mnist
from commands import script
from small_runs import ARGV, change_config, one_line, refusal


@pytest.mark.parametrize('logdir', ['file', 'file/logs', 'file/logs/deep'])
def test_logdir_that_cannot_be_written(workplace, capsys, logdir):
    Path('file').write_text('mine')
    assert logdir in refusal(capsys, train_mnist.main, *ARGV, '--logdir', logdir)
    assert Path('file').read_text() == 'mine' and sorted(os.listdir()) == ['file', 'images.npy']


@pytest.mark.parametrize('path', ['nowhere', 'file', 'file/data'])
def test_images_that_are_not_there(workplace, capsys, path):
    Path('file').write_text('mine')
    assert path in refusal(capsys, train_mnist.main, *ARGV, '--dataset', path)
    assert not os.path.exists('results') or not os.listdir('results')


def test_bad_input_of_a_process(workplace):
    done = script('train_mnist.py', '--dataset', 'nowhere', cwd=workplace)
    assert done.returncode == 2 and one_line(done.stderr).startswith('train_mnist.py: error: ')


# Run folders

def rewrite(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def foreign_parameters(folder):
    save_file({'dense0.weight': np.ones((3, 4), np.float32)}, folder / 'best.safetensors')


def remove_parameters(folder):
    for path in folder.glob('*.safetensors'):
        path.unlink()


def pipe(name):
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


BAD_RUNS = {
    'no folder': shutil.rmtree,
    'a file': lambda folder: (shutil.rmtree(folder), folder.write_text('mine')),
    'no config': lambda folder: (folder / 'config.json').unlink(),
    'no parameters': remove_parameters,
    'config cut short': rewrite('config.json', lambda content: content[:-20]),
    'config of something else': rewrite('config.json', lambda content: b'{"name": "draw", "arguments": {"x": 1}}'),
    'config is a list': rewrite('config.json', lambda content: b'[]'),
    'config nested deeply': rewrite('config.json', lambda content: b'[' * 100000),
    'config of 2 MiB': rewrite('config.json', lambda content: content + b' ' * 2 ** 21),
    'config without a size': rewrite('config.json', lambda content: content.replace(b'input_height', b'height')),
    'config of a larger network': lambda folder: change_config(folder, {'num_recurrent_units': 9}),
    'config of other images': lambda folder: change_config(folder, {'input_width': 27}),
    'config of more steps': lambda folder: change_config(folder, {'num_steps': 4}),
    'config of huge images': lambda folder: change_config(folder, {'input_width': 4096, 'input_height': 4096}),
    'config with attention': lambda folder: change_config(folder, {'attention': True}),
    'config with text for a size': lambda folder: change_config(folder, {'latent_dim': '4x'}),
    'config with a large window': lambda folder: change_config(folder, {'attention': True, 'write_size': 29}),
    'config with a list': lambda folder: change_config(folder, {'binarization': []}),
    'config with an unknown word': lambda folder: change_config(folder, {'binarization': 'none'}),
    'config is a pipe': pipe('config.json'),
    'parameters are a pipe': pipe('best.safetensors'),
    'parameters cut short': rewrite('best.safetensors', lambda content: content[:-1]),
    'parameters too long': rewrite('best.safetensors', lambda content: content + b'\0'),
    'parameters with a changed byte': rewrite('best.safetensors', lambda content: content[:-1] + b'\x01'),
    'parameters with a huge header': rewrite('best.safetensors', lambda content: b'\xff' * 8 + content[8:]),
    'parameters of something else': foreign_parameters}


@pytest.mark.parametrize('damage', BAD_RUNS.values(), ids=BAD_RUNS)
def test_damaged_run(run, capsys, damage):
    damage(run)
    for main, argv in (sample.main, ['-o', 'out']), (evaluate.main, []):
        assert str(run) in refusal(capsys, main, run, *argv)
    assert not os.path.exists('out') and not os.path.exists(run / 'evaluations')
