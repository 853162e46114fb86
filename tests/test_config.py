"""The flags of a run that resumes or starts from another, and config.json, which a stranger may have written."""
import os
from pathlib import Path

from system import files

import pytest

import train_mnist
from runs import config
from small_runs import ARGV, change_config, config_of, fails, refusal

IMAGES = {'dataset': 'mnist', 'path': None, 'height': 5, 'width': 7,
          'splits': {split: {'images': 10, 'sha256': 'ab' * 32} for split in ('train', 'validation')}}


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """The folder of a run without parameters."""
    monkeypatch.chdir(tmp_path)
    args = config.parse_args([*ARGV, '-hh', '5', '-ww', '7', '--attention', '--transpose', '--data_dir', 'own'])
    os.mkdir('run')
    files.write_json('run/config.json', {'arguments': vars(args), 'images': IMAGES, 'command': 'train_mnist.py'})
    return Path('run')


def stored(run='run'):
    return vars(config.read(run)['arguments'])


# Flags

ALLOWED = {'num_train_samples': '64', 'learning_rate': '0.5', 'lr_decay': '0', 'val_freq': '3', 'log_freq': '3',
           'checkpoint_freq': '3', 'dataset': 'mnist', 'data_dir': 'elsewhere', 'fused': 'off',
           'kvstore': 'dist_sync', 'sync_timeout': '3', 'gpus': '0,1', 'gpu': None}
OTHERS = {'binarization': 'static', 'input_height': '6', 'input_width': '6', 'read_size': '1',
          'write_size': '1', 'num_steps': '3', 'num_recurrent_units': '3', 'latent_dim': '3', 'batch_size': '3',
          'clip_norm': '3', 'kl_warmup': '3', 'seed': '3', 'init': 'run', 'num_val_samples': '3', 'logdir': 'elsewhere',
          'name': 'mine', 'transpose': None, 'attention': None}
MODEL = 'input_height', 'input_width', 'num_steps', 'num_recurrent_units', 'latent_dim', 'read_size', 'write_size'


def flag(name, value):
    return [f'--{name}', *([value] if value else [])]


def test_these_are_all_flags():
    assert {*ALLOWED, *OTHERS, 'resume', 'help'} == {action.dest for action in config.build_parser()._actions}


def test_resumed_run_has_the_arguments_of_its_first_command(run):
    args = vars(config.parse_args(['--resume', 'run']))
    assert args == {**stored(), 'resume': os.path.abspath('run')}
    assert args == vars(config.parse_args(['--resume', 'run', *ARGV, '--attention', '-ar', '2']))  # said again


@pytest.mark.parametrize('name', ALLOWED)
def test_what_may_change_when_a_run_is_resumed(run, name):
    args = vars(config.parse_args(['--resume', 'run', *flag(name, ALLOWED[name])]))
    assert name in config.MAY_CHANGE and args[name] != stored()[name]
    assert {key: args[key] for key in stored() if key not in (name, 'resume')} == {
        key: value for key, value in stored().items() if key not in (name, 'resume')}


@pytest.mark.parametrize('name', OTHERS)
def test_what_must_not_change_when_a_run_is_resumed(run, capsys, name):
    if not OTHERS[name]:
        change_config(run, {name: False, **({'read_size': None, 'write_size': None} if name == 'attention' else {})})
    line = refusal(capsys, train_mnist.main, '--resume', 'run', *flag(name, OTHERS[name]))
    told = f'contradicts {stored()[name]} of {os.path.abspath("run")}' if name != 'init' else 'not allowed with'
    assert f'argument --{name}: ' in line and told in line


@pytest.mark.parametrize('argv, expected', [([], (False, None)), (['--gpu'], (True, None))])
def test_a_run_is_resumed_on_the_devices_of_the_command(run, argv, expected):
    change_config(run, {'gpus': '0,1'})
    args = config.parse_args(['--resume', 'run', *argv])
    assert (args.gpu, args.gpus) == expected


def test_a_run_that_starts_from_a_model_takes_what_it_is_not_given(run, capsys):
    own, given = config.build_parser().parse_args([]), stored()
    args = vars(config.parse_args(['--init', 'run', '-t', '99']))
    for name in args:
        taken = name in (*MODEL, 'attention', 'dataset', 'transpose', 'data_dir', 'binarization')
        expected = {'num_train_samples': 99, 'kl_warmup': 1, 'init': os.path.abspath('run')}
        assert args[name] == expected.get(name, given[name] if taken else getattr(own, name)), name
    for name in MODEL:
        line = refusal(capsys, train_mnist.main, '--init', 'run', *flag(name, OTHERS[name]))
        assert f'argument --{name}: ' in line and 'contradicts' in line


def test_a_run_that_starts_from_a_model_may_have_other_images(run):
    change_config(run, {'binarization': 'threshold'})
    args = config.parse_args(['--init', 'run', '--dataset', 'kmnist', '--kl_warmup', '7'])
    assert (args.dataset, args.kl_warmup, args.binarization) == ('kmnist', 7, 'dynamic')
    assert args.data_dir == os.path.abspath('data') and not args.transpose  # those of the run are for its own images


@pytest.mark.parametrize('argv, reason', [
    ('--read_size 3', 'need --attention'), ('--write_size 3', 'need --attention'), ('-hh 28', 'go together'),
    ('--gpu --gpus 0', 'not allowed with'), ('--attention -hh 5 -ww 9 -aw 6', 'shorter side (5)'),
    ('-hh 2000 -ww 2000', '64 steps of 2000x2000'),
    ('--resume nowhere', 'nowhere'), ('--init run/config.json', 'run/config.json')])
def test_contradictions_are_refused_before_work_starts(capsys, argv, reason):
    assert reason in refusal(capsys, train_mnist.main, *argv.split())
    assert not os.path.exists('results')


def test_a_folder_of_runs_is_no_run(run):
    assert fails(config.read, '.').endswith('; name a run in it, such as run')


# config.json

def test_run_of_the_previous_version_can_be_read(run):
    """It says less of its images, and has old flags; new ones get their defaults."""
    content, expected = config_of(run), stored()
    for name in ('fused', 'transpose', 'name', 'sync_timeout'):
        del content['arguments'][name]
    content['arguments'].update(cpu_contexts=2, prefix='x')
    files.write_json('run/config.json', {'arguments': content['arguments'], 'resumed': [{'samples_seen': 8}]})
    assert stored() == {**expected, 'transpose': False}
    assert config.parse_args(['--init', 'run']).num_steps == 2


def replaced(write):
    def replace(run):
        (run / 'config.json').unlink()
        write(run / 'config.json')

    return replace


def text(content):
    return replaced(lambda path: path.write_bytes(content.encode('utf-8', 'surrogateescape')))


def changed(arguments=(), **changes):
    return lambda run: change_config(run, arguments, **changes)


HOSTILE = {
    'missing': lambda run: (run / 'config.json').unlink(), 'a folder': replaced(Path.mkdir),
    'a loop': replaced(lambda path: path.symlink_to(path.name)),
    'empty': text(''), 'no JSON': text('{"arguments": '), 'no text': text('\udcff\udcfe'), 'null': text('null'),
    'a number': text('3'), 'a list': text('[]'), 'no entries': text('{}'), 'no arguments': text('{"arguments": null}'),
    'a list of arguments': text('{"arguments": []}'), 'nothing in it': text('{"arguments": {}}'),
    'a wide window': changed({'write_size': 6}),
    'huge images': changed({'input_height': 2000, 'input_width': 2000, 'num_steps': 64}),
    'deep': text('[' * 200000), 'no result': changed(validation=None), 'no checksums': changed(images={'dataset': 'x'}),
    'a number of checksums': changed(images={**IMAGES, 'splits': {'test': 3}}),
    'no latent dimensions': changed({'latent_dim': 0}), 'half a step': changed({'num_steps': 2.5}),
    'words': changed({'num_recurrent_units': 'many'}), 'no units': changed({'num_recurrent_units': None}),
    'no flag': changed({'attention': 'yes'}), 'no binarization': changed({'binarization': 'fuzzy'}),
    'no size': changed({'input_height': None, 'input_width': None}), 'one size': changed({'input_width': None})}


@pytest.mark.parametrize('case', HOSTILE)
def test_config_of_a_stranger_is_refused(run, capsys, case):
    HOSTILE[case](run)
    assert 'run/config.json' in fails(config.read, run)
    for argument in ('--resume', '--init'):
        assert 'run/config.json' in refusal(capsys, train_mnist.main, argument, run)
    assert not os.path.exists('results')


@pytest.mark.parametrize('changes, told', [
    ({'latent_dim': 0}, "latent_dim: '0' is not a whole number"), ({'attention': 'yes'}, "attention is 'yes'"),
    ({'binarization': 'fuzzy'}, "binarization is 'fuzzy'"),
    ({'num_recurrent_units': None}, 'num_recurrent_units is None')])
def test_the_entry_that_is_wrong_is_named(run, changes, told):
    change_config(run, changes)
    assert told in fails(config.read, run)
