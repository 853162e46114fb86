"""The flags: names, defaults, help, and what is refused before work starts."""
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
from small_runs import refusal

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


@pytest.mark.parametrize('name', [name for name, (short, _) in FLAGS.items() if short])
def test_a_flag_and_its_value_can_be_written_in_five_ways(name):
    long, short = f'--{name}', FLAGS[name][0]
    for words in [long, '6'], [f'{long}=6'], [short, '6'], [f'{short}=6'], [f'{short}6']:
        default = '--attention', '-hh', '28', '-ww', '28'
        assert vars(parse(*default, *words)) == {**vars(parse(*default)), name: 6}


@pytest.mark.parametrize('columns', [60, 80, 100])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setattr(sample, 'PRETRAINED', 'assets/draw_w_attn')  # its own path can be longer than a line
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
        assert flag in refusal(capsys, train_mnist.main, f'{flag}={text}' if flag[1] == '-' else flag, *(
            [] if flag[1] == '-' else [text])), text


@pytest.mark.parametrize('argv, reason', [
    (['-hhx'], "'x'"), (['-s'], 'expected one argument'), (['--binarization', 'none'], 'none'), (['extra'], 'extra'),
    (['--epochs', '3'], '--epochs'), (['--num_train', '10'], '--num_train'), (['--gpu=1'], '--gpu'),
    (['--dataset', 'cifar'], 'cifar does not exist'), (['--gpus', 'all'], "'all' is not a list"),
    (['--gpus', '0,0'], "'0,0'"), (['--gpus', ''], "''"),
    *(([f'--{name}', ''], f'--{name}') for name in ('init', 'resume', 'logdir', 'data_dir'))], ids=str)
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
        assert 'MXNet cannot use GPU 0 of 0' in line and 'compute capability 5.0 to 8.9' in line
