"""The options: names, defaults, what is refused before work starts."""
import inspect
import os

from system import cli, devices

import mxnet as mx
import pytest

import evaluate
import sample
import train_mnist
from commands import ROOT, assert_help_is_complete, options_in_help, parse, refusal, script
from runs import storage

OPTIONS = {
    'batch_size': ('-b', 64), 'input_height': ('-hh', 28), 'input_width': ('-ww', 28), 'num_steps': ('-s', 64),
    'num_recurrent_units': ('-u', 256), 'latent_dim': ('-l', 100), 'learning_rate': ('-r', 2e-3),
    'num_train_samples': ('-t', 1000000), 'num_val_samples': ('-v', 256), 'val_freq': ('-f', 10000),
    'gpu': (None, False), 'attention': (None, False), 'read_size': ('-ar', 2), 'write_size': ('-aw', 5),
    'logdir': (None, 'results'), 'dataset': (None, 'mnist'), 'data_dir': (None, 'data'),
    'binarization': (None, 'dynamic'), 'cpu_contexts': (None, 2), 'seed': (None, 0)}
COUNTS = ['--batch_size', '--input_height', '--input_width', '--num_steps', '--num_recurrent_units', '--latent_dim',
          '--num_train_samples', '--num_val_samples', '--val_freq', '--read_size', '--write_size', '--kl_warmup',
          '--log_freq']


def test_defaults(monkeypatch):
    monkeypatch.setattr(devices, 'processors', lambda: 2)
    args = vars(parse())
    for name, (_, default) in OPTIONS.items():
        assert args[name] == default and type(args[name]) is type(default), name


@pytest.mark.parametrize('name', [name for name, (short, _) in OPTIONS.items() if short])
def test_long_and_short_names(name):
    number = 0.25 if name == 'learning_rate' else 3
    default = vars(parse('--cpu_contexts', '1'))  # which follow from the batch size, if not given
    for option in (f'--{name}', OPTIONS[name][0]):
        assert vars(parse(option, str(number), '--cpu_contexts', '1')) == {**default, name: number}
    assert vars(parse(f'--{name}={number}', '--cpu_contexts', '1')) == {**default, name: number}


def test_short_names_are_exactly_these():
    parser = cli.Parser(prog='train_mnist.py')
    train_mnist.parse_args(parser, [])
    short = {option for action in parser._actions for option in action.option_strings if not option.startswith('--')}
    assert short == {'-h', *(short for short, _ in OPTIONS.values() if short)}


def test_help_of_training():
    result = script('train_mnist.py', '--help', cwd=ROOT)
    assert result.returncode == 0 and result.stderr == ''
    parser = cli.Parser(prog='train_mnist.py')
    train_mnist.parse_args(parser, [])
    assert_help_is_complete(result.stdout, parser)
    assert OPTIONS.keys() < options_in_help(result.stdout).keys()


@pytest.mark.parametrize('option', COUNTS)
def test_counts_are_whole_numbers_from_1_on(capsys, option):
    assert vars(parse('--num_train_samples', '1e5', option, '1e1'))[option[2:]] == 10
    for text in ('0', '-1', '-5', '1.5', '1e-1', 'ten', '', 'nan', 'inf', '-inf', '1e400', '0x10'):
        assert option in refusal(capsys, train_mnist.main, option, text), text
    assert option in refusal(capsys, train_mnist.main, option)


@pytest.mark.parametrize('option', ['--input_height', '--input_width', '--num_steps', '--num_recurrent_units',
                                    '--latent_dim'])
def test_training_takes_no_size_that_sampling_refuses(tmp_path, capsys, option):
    largest = parse(option, str(2 ** 16))
    storage.write_config(tmp_path, {'arguments': vars(largest)})
    assert storage.read_config(tmp_path)['arguments'] == vars(largest)
    assert option in refusal(capsys, train_mnist.main, option, 2 ** 16 + 1)


@pytest.mark.parametrize('option', ['--learning_rate', '--clip_norm'])
def test_rates_are_finite_and_positive(capsys, option):
    assert vars(parse(option, '1e-2'))[option[2:]] == 0.01
    for text in ('nan', 'inf', '-inf', '-1', '-0.1', '0', '0.0', 'fast', '', '1e400'):
        assert option in refusal(capsys, train_mnist.main, option, text), text


def test_lr_decay_is_a_share(capsys):
    assert [parse('--lr_decay', text).lr_decay for text in ('0', '0.25', '1')] == [0, 0.25, 1]
    for text in ('nan', 'inf', '-0.1', '1.01', 'slow', ''):
        assert '--lr_decay' in refusal(capsys, train_mnist.main, '--lr_decay', text), text


@pytest.mark.parametrize('main', [lambda argv: train_mnist.main(argv), lambda argv: sample.main(['run', *argv])],
                         ids=['train_mnist', 'sample'])
def test_seeds(capsys, main):
    assert parse('--seed', '4294967295').seed == 2 ** 32 - 1
    for text in ('-1', '1.5', '1e3', '4294967296', 'random', ''):
        assert '--seed' in refusal(capsys, main, '--seed', text), text


@pytest.mark.parametrize('argv, reason', [
    (['--attention', '-ar', '29'], '--read_size'),
    (['--attention', '-aw', '29'], '--write_size'),
    (['--attention', '-hh', '20', '-ww', '12', '-aw', '13'], '12'),
    (['--attention', '-hh', '4'], '--write_size'),
    (['--dataset', 'cifar'], '--dataset'),
    (['--binarization', 'none'], '--binarization'),
    (['--epochs', '3'], '--epochs'),
    (['--learning', '1e-3'], '--learning'),
    (['--num_train', '10'], '--num_train'),
    (['--att'], '--att'),
    (['--gpu=1'], '--gpu'),
    *(([f'--{name}', ''], f'--{name}: it is empty') for name in ('init', 'resume', 'logdir', 'data_dir')),
    (['extra'], 'extra')])
def test_bad_options_of_training(tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, train_mnist.main, *argv)
    assert os.listdir() == []


def test_window_may_be_as_large_as_the_shorter_side():
    args = parse('--attention', '-hh', '20', '-ww', '12', '-ar', '12', '-aw', '12')
    assert (args.read_size, args.write_size) == (12, 12)
    assert parse('-hh', '3', '-ar', '4').read_size == 4  # without attention it has no meaning


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
@pytest.mark.parametrize('main', [lambda argv: train_mnist.main(argv), lambda argv: sample.main(['run', *argv])],
                         ids=['train_mnist', 'sample'])
def test_gpu_without_cuda(tmp_path, monkeypatch, capsys, main):
    (tmp_path / 'run').mkdir()
    monkeypatch.chdir(tmp_path)
    assert 'CUDA' in refusal(capsys, main, '--gpu')
    assert os.listdir() == ['run']


@pytest.mark.parametrize('argv, reason', [
    (['--gpus', '0,0'], "'0,0' is not a list of different whole numbers"),
    (['--gpus', '0,'], "'0,'"), (['--gpus', '-1'], '--gpus'), (['--gpus', 'all'], "'all'"),
    (['--gpu', '--gpus', '0'], 'only one of'), (['--cpu_contexts', '2', '--gpu'], 'only one of'),
    (['--kvstore', 'horovod'], 'horovod'), (['--kvstore', 'dist_sync'], 'distributed.launch sets them'),
    (['--cpu_contexts', '3'], '64 images cannot be shared evenly by 3 devices'),
    (['--cpu_contexts', '65'], 'at most 64'), (['--sync_timeout', '1e6'], 'at most 86400'),
    (['--sync_timeout', '0'], '--sync_timeout')], ids=str)
def test_bad_devices(workplace, capsys, argv, reason):
    assert reason in refusal(capsys, train_mnist.main, *argv)
    assert os.listdir() == ['data']


@pytest.mark.parametrize('changes, reason', [
    ({'DMLC_TASK_ID': None}, 'needs DMLC_TASK_ID'), ({'DMLC_TASK_ID': '2'}, 'DMLC_TASK_ID is 2, but with 2 workers'),
    ({'DMLC_NUM_WORKER': 'two'}, "DMLC_NUM_WORKER must be a number, not 'two'"),
    ({'DMLC_TASK_ID': None, '--kvstore': 'device'}, 'use dist_sync'),
    ({'DMLC_NUM_WORKER': '3'}, '64 images cannot be shared evenly by 3 devices')], ids=str)
def test_bad_environment(workplace, monkeypatch, capsys, changes, reason):
    changes = dict(changes)
    kvstore = changes.pop('--kvstore', 'dist_sync')
    for name, value in {'DMLC_ROLE': 'worker', 'DMLC_PS_ROOT_URI': '127.0.0.1', 'DMLC_PS_ROOT_PORT': '9',
                        'DMLC_NUM_SERVER': '1', 'DMLC_NUM_WORKER': '2', 'DMLC_TASK_ID': '0', **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert reason in refusal(capsys, train_mnist.main, '--kvstore', kvstore)


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
def test_gpus_without_cuda(workplace, capsys):
    assert 'CUDA' in refusal(capsys, train_mnist.main, '--gpus', '0,1')


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
def test_gpu_that_mxnet_cannot_use(workplace, monkeypatch, capsys):
    monkeypatch.setattr(mx.runtime.Features, 'is_enabled', lambda self, feature: True)
    monkeypatch.setattr(mx.context, 'num_gpus', lambda: 2)
    line = refusal(capsys, train_mnist.main, '--gpus', '1')
    assert 'cannot use GPU 1' in line and 'compute capability' in line and 'leave out --gpu' in line
    assert os.listdir() == ['data']


def test_parsers_and_mains_take_their_arguments():
    for module in (train_mnist, sample, evaluate):
        for function in (module.main, module.parse_args):
            assert inspect.signature(function).parameters['argv'].default is None
