"""What the README says of the commands is what they do."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

from system import cli

import numpy as np
import pytest

import evaluate
import sample
import train_mnist
from distributed import launch

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```(\w*)\n(.*?)```', README, re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for _, block in BLOCKS for line in block.splitlines()
            if re.match(r'(python|\S*/python3?) (train_mnist|sample|evaluate|launch)\.py', line)]


@pytest.mark.parametrize('script', ['train_mnist.py', 'sample.py', 'evaluate.py', 'launch.py'])
def test_flags_are_as_the_help_prints_them(script):
    output = subprocess.run([sys.executable, ROOT / script, '--help'], capture_output=True, text=True, timeout=60)
    help_text = output.stdout.replace('optional arguments:', 'options:')  # as Python 3.9 says
    assert [block for _, block in BLOCKS if block.startswith(f'usage: {script}')] == [help_text]


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch, '_own_address', lambda parser, hosts: '127.0.0.1')  # there are no such hosts

    def parse_launch(parser, argv):
        script, *rest = launch.parse_args(parser, argv).command
        return parsers[script](cli.Parser(prog=script), rest)

    parsers = {'train_mnist.py': train_mnist.parse_args, 'sample.py': sample.parse_args,
               'evaluate.py': evaluate.parse_args, 'launch.py': parse_launch}
    assert {command[1] for command in COMMANDS} == parsers.keys()
    for _, script, *argv in COMMANDS:
        parsers[script](cli.Parser(prog=script), argv)


def test_one_line_commands_use_the_files_that_are_there():
    lines = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith('python3 -m venv')]
    assert len(lines) == 2
    for line in lines:
        for part in line.split(' && '):
            for name in re.findall(r'\S+\.(?:py|txt)', part):
                assert (ROOT / name).is_file()
    train = shlex.split(next(line for line in lines if 'train_mnist.py' in line))
    argv = train[train.index('train_mnist.py') + 1:]
    assert train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), argv).dataset == 'synthetic'


def test_example_runs():
    code, = (block for language, block in BLOCKS if language == 'python')
    names = {}
    exec(code, names)
    assert names['canvas'].shape == (16, 784) and names['kl'].shape == (16,)
    assert names['canvases'].shape == (65, 16, 784) and names['write_windows'].shape == (64, 16, 5)
    assert np.isfinite(names['reconstruction'].asnumpy()).all()


def test_pictures_and_files_exist():
    links = re.findall(r'\]\(((?!http|#)[^)]+)\)|src="([^"]+)"', README)
    paths = [a or b for a, b in links] + re.findall(r'`((?:\w+/)*\w+\.(?:py|txt))`', README)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_no_placeholder_is_left():
    assert '@@' not in README
