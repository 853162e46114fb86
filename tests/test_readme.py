"""What the README and the other pages say is so: commands, flags, numbers, equations, links."""
import functools
import hashlib
import json
import os
import re
import shlex

from system import cli

import numpy as np
import pytest

import core
import evaluate
import sample
from conftest import ROOT
from distributed import launch
from runs import config, params

PAGES = {str(path.relative_to(ROOT)): path.read_text()
         for path in (ROOT / 'README.md', *sorted(ROOT.glob('[a-z]*/*.md')))}
README = PAGES['README.md']
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r'(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?python3? (?:-m )?([\w./]+) ?(.*)')


def commands(text):
    """(script or module, arguments) of every line of a page's blocks that runs Python."""
    lines = [line for language, block in BLOCK.findall(text) if language != 'python' for line in block.splitlines()]
    found = [match for line in lines for part in line.split(' && ') if (match := COMMAND.match(part))]
    return [(match[1], shlex.split(match[2].rstrip(' &'), comments=True)) for match in found]


def parse(program, argv):
    """Parse a command as the program does, but read no run that it names. Raises SystemExit where it is refused."""
    parser = cli.Parser(program)
    if program == 'train_mnist.py':
        config.build_parser().parse_args(argv)
    elif program in ('sample.py', 'evaluate.py'):
        {'sample.py': sample, 'evaluate.py': evaluate}[program].parse_args(parser, argv)
    elif program == 'distributed.launch':
        script, *words = launch.parse_args(parser, argv).command
        if script == 'train_mnist.py':
            parse(script, words)
    else:  # the tests, an installer, a benchmark
        assert program in ('pytest', 'pip', 'venv') or (ROOT / f'{program.replace(".", "/")}.py').is_file(), program


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_understood(page):
    for program, argv in commands(PAGES[page]):
        parse(program, argv)


def test_the_readme_shows_every_command_and_the_two_lines_that_set_everything_up():
    shown = [program for program, _ in commands(README)]
    assert {'train_mnist.py', 'sample.py', 'evaluate.py', 'pytest'} <= set(shown)
    lines = re.findall(r'^python3 -m venv \.venv && .*$', README, re.MULTILINE)
    assert sorted(commands(f'```\n{line}\n```')[-1][0] for line in lines) == ['pytest', 'train_mnist.py']
    for name in re.findall(r'-r (\S+)', ' '.join(lines)):
        assert (ROOT / name).is_file()


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def test_python_examples_run(tmp_path, monkeypatch):
    (tmp_path / 'assets').symlink_to(ROOT / 'assets')
    monkeypatch.chdir(tmp_path)
    names, blocks = {}, [block for language, block in BLOCK.findall(README) if language == 'python']
    for block in blocks:
        exec(block, names)
    assert names['canvases'].shape == (65, 16, 784) and names['kl'].shape == (16,)


def slug(heading):
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    text = PAGES[page]
    links = [a or b for a, b in re.findall(r'\]\(((?!https?:)[^)]+)\)|src="([^"]+)"', text)]
    for path, _, anchor in (link.partition('#') for link in links):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in map(slug, re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE)), anchor
    for name in re.findall(r'`((?:\w+/)*\w+\.(?:py|txt))`', text):
        assert (ROOT / name).exists() or ((ROOT / page).parent / name).exists(), name


def test_the_table_of_equations_names_what_is_in_core():
    rows = re.findall(r'^\| ([\d, -]+) \|.*\| ([^|]+) \|$', README, re.MULTILINE)
    for name in re.findall(r'`([\w.]+)`', ' '.join(names for _, names in rows)):
        assert functools.reduce(getattr, name.split('.'), core), name
    ranges = [[*map(int, part.split('-'))] for numbers, _ in rows for part in numbers.split(',')]
    assert {number for ends in ranges for number in range(ends[0], ends[-1] + 1)} >= {*range(1, 30)} - {16}


@pytest.mark.parametrize('path', sorted(ROOT.glob('assets/*/evaluation*.json')),
                         ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_results_are_those_of_the_shipped_models(path):
    result, arrays = json.loads(path.read_text()), params.arrays_of(params.load_net(str(path.parent)))
    parameters = b''.join(array.tobytes() for _, array in sorted(arrays.items()))
    assert result['parameters_sha256'] == hashlib.sha256(parameters).hexdigest() and result['num_images'] == 10000
    for name in ('bound', 'importance_weighted'):
        number = f'{result[name]:.2f} ± {result[f"{name}_standard_error"]:.2f}'
        assert number in PAGES['docs/results.md'] and (number in README or result['dataset'] == 'fixed_mnist')
    assert f'K = {result["num_draws"]}' in README
    assert np.isclose(result['kl'], result['bound'] - result['reconstruction'])


def test_the_readme_shows_what_evaluate_prints(tmp_path):
    result = {'parameters': params.BEST, 'num_images': 100, 'split': 'test', 'binarization': 'static', 'num_draws': 1,
              'bound': 77.07, 'bound_standard_error': 1.99, 'reconstruction': 49.38, 'kl': 27.69}
    for line in evaluate.report(result):
        assert f'\n{line}\n' in README
    full = json.loads((ROOT / 'assets/draw_w_attn/evaluation.json').read_text())
    path = evaluate.keep({**full, **result}, tmp_path)
    assert f'\nSaved to assets/draw_w_attn/evaluations/{os.path.basename(path)}\n' in README


def test_the_table_of_flags_has_their_defaults():
    options = {option: action for action in config.build_parser()._actions for option in action.option_strings}
    rows = re.findall(r'^\| (`-.*) \| (.*) \| .* \|$', README, re.MULTILINE)
    assert len(rows) > 4
    for names, values in rows:
        actions = list(dict.fromkeys(options[name] for name in re.findall(r'`(--?\w+)', names)))
        for action, value in zip(actions, re.split('[,;] ', values)):
            assert not value[0].isdecimal() or action.default == float(value), action.dest


@pytest.mark.parametrize('page', PAGES)
def test_flags_in_the_text_exist(page):
    code = ' '.join(re.findall(r'`([^`\n]+)`', BLOCK.sub('', PAGES[page])))
    sources = ''.join(path.read_text() for pattern in ('*.py', '*/*.py') for path in ROOT.glob(pattern))
    for flag in re.findall(r'(?<!\S)--\w+', code):
        assert f"'{flag}'" in sources or flag in ('--samples_per_plugin', '--help'), flag  # TensorBoard's, argparse's


def test_the_architecture_names_what_is_in_the_code():
    text = PAGES['docs/architecture.md']
    code = '\n'.join((ROOT / path).read_text() for path in set(re.findall(r'`((?:\w+/)?\w+\.py)`', text)))
    for name in re.findall(r'`([\w.]+)`', text):
        if '_' in name or name[0].isupper():
            for part in name.removesuffix('.py').split('.'):
                assert re.search(rf'\b{part}\b', code) or (ROOT / name).exists(), name
