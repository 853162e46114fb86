"""Bad input: one line and exit code 2 before work starts, and nothing is written."""
import os
import shutil
from pathlib import Path

import pytest

import evaluate
import sample
import train_mnist
from commands import python
from small_runs import ARGV, ROOT, change_config, one_line, refusal


@pytest.mark.parametrize('logdir', ['file', 'file/logs', 'file/logs/deep'])
def test_logdir_that_cannot_be_written(workplace, capsys, logdir):
    Path('file').write_text('mine')
    assert 'file' in refusal(capsys, train_mnist.main, *ARGV, '--logdir', logdir)
    assert Path('file').read_text() == 'mine' and sorted(os.listdir()) == ['file', 'images.npy']


@pytest.mark.parametrize('path', ['nowhere', 'file', 'file/data'])
def test_images_that_are_not_there(workplace, capsys, path):
    Path('file').write_text('mine')
    assert path in refusal(capsys, train_mnist.main, *ARGV, '--dataset', path)
    assert not os.path.exists('results') or not os.listdir('results')


def test_bad_input_of_a_process(workplace):
    done = python(ROOT / 'train_mnist.py', '--dataset', 'nowhere')
    assert done.returncode == 2 and one_line(done.stderr).startswith('train_mnist.py: error: ')


# Run folders

def rewrite(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def remove_parameters(folder):
    for path in folder.glob('*.safetensors'):
        path.unlink()


BAD_RUNS = {
    'no folder': shutil.rmtree,
    'a file': lambda folder: (shutil.rmtree(folder), folder.write_text('mine')),
    'no config': lambda folder: (folder / 'config.json').unlink(),
    'config cut short': rewrite('config.json', lambda content: content[:-20]),
    'config of a larger network': lambda folder: change_config(folder, {'num_recurrent_units': 9}),
    'no parameters': remove_parameters,
    'parameters are a pipe': lambda folder: (remove_parameters(folder), os.mkfifo(folder / 'best.safetensors')),
    'parameters with a changed byte': rewrite('best.safetensors', lambda content: content[:-1] + b'\x01')}


@pytest.mark.parametrize('damage', BAD_RUNS.values(), ids=BAD_RUNS)
def test_damaged_run(run, monkeypatch, capsys, damage):
    """Before images are loaded."""
    damage(run)
    monkeypatch.setattr(train_mnist, 'load', None)
    monkeypatch.setattr(evaluate, 'load_of_run', None)
    for main, *argv in (sample.main, run, '-o', 'out'), (evaluate.main, run), (train_mnist.main, '--init', run):
        assert str(run) in refusal(capsys, main, *argv)
    assert not os.path.exists('out') and not os.path.exists(run / 'evaluations')
