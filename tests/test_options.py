"""The flags: names, defaults, help, and bad input, which is refused with one line before work starts."""
import os
import re
from pathlib import Path

from system import cli

import mxnet as mx
import pytest

import evaluate
import sample
import train_mnist
from runs import config
from small_runs import ARGV, refusal

FLAGS = {  # of train_mnist.py: short name and default
    'batch_size': ('-b', 64), 'input_height': ('-hh', None), 'input_width': ('-ww', None), 'num_steps': ('-s', 64),
    'num_recurrent_units': ('-u', 256), 'latent_dim': ('-l', 100), 'learning_rate': ('-r', 2e-3),
    'num_train_samples': ('-t', 1000000), 'num_val_samples': ('-v', 1000), 'val_freq': ('-f', 10000),
    'gpu': (None, False), 'attention': (None, False), 'read_size': ('-ar', None), 'write_size': ('-aw', None),
    'logdir': (None, os.path.abspath('results')), 'dataset': (None, 'mnist'), 'binarization': (None, 'dynamic')}


def parse(*argv):
    return config.parse_args([*argv])


def parsers():
    """The parsers of the three commands, with all their flags."""
    made = [config.build_parser(train_mnist.__doc__)]
    for command, argv in (sample, []), (evaluate, ['RUN']):
        made.append(cli.Parser(f'{command.__name__}.py', command.__doc__))
        command.parse_args(made[-1], argv)
    return made


def test_names_and_defaults():
    args = vars(parse())
    assert {name: args[name] for name in FLAGS} == {name: default for name, (_, default) in FLAGS.items()}
    with_attention = parse('--attention')
    assert (with_attention.read_size, with_attention.write_size) == (2, 5)
    short = {option for action in parsers()[0]._actions for option in action.option_strings if option[1] != '-'}
    assert short == {'-h', *(short for short, _ in FLAGS.values() if short)}


@pytest.mark.parametrize('columns', [60, 80, 100])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    for parser in parsers():
        text = parser.format_help()
        words = ' '.join(text.split())
        assert max(map(len, text.splitlines())) <= columns and 'default: None' not in words
        examples = re.findall(rf'^  python {parser.prog}(.*)$', text, re.MULTILINE)
        assert 2 <= len(examples) <= 3
        for flag in re.findall(r' (--?\w+)', ' '.join(examples)):
            assert re.search(rf'^  .*{flag}\b', text, re.MULTILINE), flag
        for action in parser._actions:
            assert action.help, action
            assert action.nargs == 0 or action.default is None or f'(default: {action.default})' in words, action


NUMBERS = {
    '-t': ({'10': 10, '1e6': 1000000, '+5': 5}, ['0', '-1', '1.5', 'ten', '', 'nan', 'inf', '-inf', '1e400', '0x10']),
    '-r': ({'1e-2': 0.01, '3': 3.0}, ['nan', 'inf', '-1', '0', 'fast', '', '1e400']),
    '--lr_decay': ({'0': 0.0, '0.25': 0.25, '1': 1.0}, ['-0.1', '1.01', 'nan', 'slow', '']),
    '--seed': ({'0': 0, '4294967295': 2 ** 32 - 1}, ['-1', '1.5', '4294967296', 'random', ''])}


@pytest.mark.parametrize('flag', NUMBERS)
def test_numbers(capsys, flag):
    accepted, refused = NUMBERS[flag]
    for text, number in accepted.items():
        found = [value for value in vars(parse(flag, text)).values() if value == number and type(value) is type(number)]
        assert found, text
    for text in refused:
        words = [f'{flag}={text}'] if flag.startswith('--') else [flag, text]
        assert flag in refusal(capsys, train_mnist.main, *words), text


@pytest.mark.parametrize('argv, reason', [
    (['-s'], 'expected one argument'), (['--binarization', 'none'], 'none'), (['extra'], 'extra'),
    (['--epochs', '3'], '--epochs 3; --help lists the flags'), (['--num_train', '10'], '--num_train'),
    (['--gpu=1'], '--gpu'), (['--gpus', 'all'], "'all' is not a list"),
    (['--gpus', '0,0'], "'0,0'"), (['--gpus', ''], "''"),
    *(([f'--{name}', ''], f'--{name}') for name in ('dataset', 'init', 'resume', 'logdir', 'data_dir'))], ids=str)
def test_bad_options(tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, train_mnist.main, *argv)
    assert not [*Path().rglob('*.*')]


def test_gpus(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if not mx.runtime.Features().is_enabled('CUDA'):
        assert 'needs an MXNet built for CUDA' in refusal(capsys, train_mnist.main, '--gpus', '0,1')
        monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda features, name: True)
        line = refusal(capsys, sample.main, '--gpu')  # a GPU that is not there, or that MXNet has no kernels for
        assert 'MXNet cannot use GPU 0' in line and 'compute capability 5.0 to 8.9' in line


@pytest.mark.parametrize('main, argv, needed', [
    (evaluate.main, ['RUN', '--transpose'], 'needs --dataset'), (sample.main, ['--transpose'], 'needs --dataset'),
    (sample.main, ['--dataset', 'mnist'], 'need --reconstruct'),
    (sample.main, ['--data_dir', 'data'], 'need --reconstruct')])
def test_flags_that_need_another(capsys, main, argv, needed):
    assert refusal(capsys, main, *argv).endswith(needed)


@pytest.mark.parametrize('logdir', ['file', 'file/logs', 'file/logs/deep'])
def test_logdir_that_cannot_be_written(workplace, capsys, logdir):
    Path('file').write_text('mine')
    assert 'file' in refusal(capsys, train_mnist.main, *ARGV, '--logdir', logdir)
    assert Path('file').read_text() == 'mine' and sorted(os.listdir()) == ['file', 'images.npy']


def test_a_working_folder_that_was_deleted(workplace, monkeypatch, capsys):
    os.mkdir('gone')
    monkeypatch.chdir('gone')
    os.rmdir('../gone')
    assert refusal(capsys, train_mnist.main, '--dataset', 'synthetic').endswith('the working folder was deleted')


@pytest.mark.parametrize('path', ['nowhere', 'file', 'file/data'])
def test_images_that_are_not_there(workplace, capsys, path):
    Path('file').write_text('mine')
    assert path in refusal(capsys, train_mnist.main, *ARGV, '--dataset', path)
    assert not os.path.exists('results') or not os.listdir('results')


@pytest.mark.parametrize('name', ['config.json', 'best.safetensors'])
def test_damaged_run(run, monkeypatch, capsys, name):
    """All commands refuse it before they load images."""
    os.truncate(run / name, 50)
    monkeypatch.setattr(train_mnist, 'load', None)
    monkeypatch.setattr(evaluate, 'load_of_run', None)
    for main, *argv in (sample.main, run, '-o', 'out'), (evaluate.main, run), (train_mnist.main, '--init', run):
        assert str(run) in refusal(capsys, main, *argv)
    assert not os.path.exists('out') and not os.path.exists(run / 'evaluations')
