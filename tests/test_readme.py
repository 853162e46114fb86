"""What the README and the other pages say of the commands is what they do."""
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest

import evaluate
import sample
import train_mnist
from assets.make import samples_before
from benchmarks import throughput
from commands import config_of
from distributed import launch
from runs import storage

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text()
         for path in (ROOT / 'README.md', *sorted(ROOT.glob('[a-z]*/*.md')))}
README = PAGES['README.md']
BLOCKS = {page: re.findall(r'```(\w*)\n(.*?)```', text, re.DOTALL) for page, text in PAGES.items()}
COMMAND = re.compile(r'(?:\$ |\w+=\S+ )*(?:\S+/)?python3? (?:-m )?'
                     r'(train_mnist\.py|sample\.py|evaluate\.py|distributed\.launch|benchmarks\.throughput) ?(.*)')


def commands(page):
    """(program, arguments) of every line of a page's blocks that runs one of our programs."""
    lines = [line for _, block in BLOCKS[page] for line in block.splitlines()]
    found = [match for line in lines if (match := COMMAND.match(line.rpartition(' && ')[2]))]
    return [(match[1], shlex.split(match[2].rstrip(' &'), comments=True)) for match in found]


def test_flags_are_as_the_help_prints_them():
    output = subprocess.run([sys.executable, ROOT / 'train_mnist.py', '--help'], capture_output=True, text=True,
                            timeout=60)
    help_text = output.stdout.replace('optional arguments:', 'options:')  # as Python 3.9 says
    details, = re.findall(r'<details>(.*?)</details>', README, re.DOTALL)
    assert re.findall(r'```\n(.*?)```', details, re.DOTALL) == [help_text]


@pytest.mark.parametrize('page', PAGES)
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch, '_own_address', lambda parser, hosts: '127.0.0.1')  # there are no such hosts
    monkeypatch.setattr(launch.shutil, 'which', lambda name: name)  # nor is ssh everywhere
    monkeypatch.setattr(storage, 'read_config', lambda folder: {'arguments': {}})  # of a run that is not there
    parsers = {'train_mnist.py': train_mnist.parse_args, 'sample.py': sample.parse_args,
               'evaluate.py': evaluate.parse_args, 'distributed.launch': launch.parse_args,
               'benchmarks.throughput': throughput.parse_args}
    for program, argv in commands(page):
        args = parsers[program](cli.Parser(prog=program), argv)
        if program == 'distributed.launch' and not args.module:
            train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), args.command[1:])


def test_pages_show_every_program():
    shown = {page: {program for program, _ in commands(page)} for page in PAGES}
    assert shown['README.md'] == {'train_mnist.py', 'sample.py', 'evaluate.py'}
    assert 'distributed.launch' in shown['distributed/README.md']
    assert 'benchmarks.throughput' in shown['benchmarks/README.md']


def test_one_line_commands_use_the_files_that_are_there():
    lines = [line for _, block in BLOCKS['README.md'] for line in block.splitlines()
             if line.startswith('python3 -m venv .venv && ')]
    assert len(lines) == 2
    for line in lines:
        for part in line.split(' && '):
            for name in re.findall(r'\S+\.(?:py|txt)', part):
                assert (ROOT / name).is_file()
    train = shlex.split(next(line for line in lines if 'train_mnist.py' in line))
    argv = train[train.index('train_mnist.py') + 1:]
    assert train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), argv).dataset == 'synthetic'


def test_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    code, = (block for language, block in BLOCKS['README.md'] if language == 'python')
    names = {}
    exec(code, names)
    assert names['canvas'].shape == (16, 784) and names['kl'].shape == (16,)
    assert names['canvases'].shape == (65, 16, 784) and names['write_windows'].shape == (64, 16, 5)
    assert np.isfinite(names['reconstruction'].asnumpy()).all()
    probabilities = names['canvases'][-1].sigmoid().asnumpy()  # digits, by the parameters that were loaded
    assert 0.05 < probabilities.mean() < 0.25 and probabilities.max(axis=1).min() > 0.5


@pytest.mark.parametrize('page', PAGES)
def test_pictures_and_files_exist(page):
    folder, text = (ROOT / page).parent, PAGES[page]
    links = [a or b for a, b in re.findall(r'\]\(((?!http|#)[^)]+)\)|src="([^"]+)"', text)]
    named = re.findall(r'`((?:\w+/)*\w+\.(?:py|txt))`', text)
    assert [path for path in links if not (folder / path).exists()] == []
    assert [path for path in named if not (ROOT / path).exists() and not (folder / path).exists()] == []


@pytest.mark.parametrize('name, label', [('draw_w_attn', 'with attention'), ('draw_wo_attn', 'without attention')])
def test_results_are_those_of_the_shipped_models(name, label):
    folder = ROOT / 'assets' / name
    config, result = config_of(folder), json.loads((folder / 'evaluation.json').read_text())
    assert result['parameters_sha256'] == storage.digest(storage.load_net(folder, [mx.cpu()])[0])
    bound = f'{result["bound"]:.2f} ± {result["standard_error"]:.2f}'
    tighter = f'{result["importance_weighted_bound"]:.2f} ± {result["importance_weighted_standard_error"]:.2f}'
    model = f'| {label} | {samples_before(config) + config["samples_seen"]:,} | {bound} |'
    parts = f'{result["reconstruction"]:.2f} | {result["kl"]:.2f}'
    assert f'{model} {tighter} |\n' in README
    assert f'{model} {parts} | {tighter} |' in PAGES['docs/results.md']
    for page in (README, PAGES['docs/results.md']):
        assert f'| Importance-weighted, K = {result["num_importance_samples"]} |' in page
    assert result['num_images'] == 10000


def test_the_architecture_names_what_is_in_the_code():
    text = PAGES['docs/architecture.md']
    code = '\n'.join((ROOT / path).read_text() for path in set(re.findall(r'`((?:\w+/)?\w+\.py)`', text)))
    names = {part for name in re.findall(r'`([\w.]+)`', text) if not name.endswith('.py') for part in name.split('.')}
    others = {'bound', 'backward', 'allreduce_grads', 'update', 'mxnet', 'system'}
    assert [name for name in names - others if not re.search(rf'^ *(?:def|class) {name}\b', code, re.MULTILINE)] == []


@pytest.mark.parametrize('page', PAGES)
def test_no_placeholder_is_left(page):
    assert '@@' not in PAGES[page]
