"""Small runs for tests: train them in this process, look at their folders, and disturb them."""
import json
import os
from pathlib import Path

from system import cli

import numpy as np
import pytest

import train_mnist
from runs import config, curves, params

SIZES = ['--dataset', 'images.npy', '-s', '2', '-u', '4', '-l', '2', '-b', '8', '--kl_warmup', '1', '-r', '0.01']
ARGV = [*SIZES, '-t', '48', '-f', '16', '-v', '8', '--log_freq', '8', '--checkpoint_freq', '8']


def write_images(path='images.npy', seed=0, shape=(5, 7), number=70):
    """Images of grey blobs on black. Five sevenths are for training, one for validation, and one for testing."""
    y, x = np.indices(shape) / (min(shape) / 5)
    centre = np.random.default_rng(seed).uniform(1, 4, (2, number, 1, 1))
    np.save(path, (255 * np.exp(-0.5 * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2))).astype(np.uint8))


def new_folder(tmp_path_factory):
    """A new folder with images.npy."""
    folder = tmp_path_factory.mktemp('runs')
    write_images(folder / 'images.npy')
    return folder


def only_folder(logdir='results'):
    """The only run in a folder of runs."""
    folder, = Path(logdir).iterdir()
    return folder


def train(*argv, logdir='results'):
    """Train a run to its end in this process; returns its folder."""
    assert train_mnist.main([*ARGV, *map(str, argv), '--logdir', str(logdir)]) == 0
    return only_folder(logdir)


def resume(folder, *argv):
    """Continue a run in this process; returns the exit code."""
    return code_of(train_mnist.main, '--resume', folder, *argv)


def code_of(main, *argv):
    """The exit code of a command that runs in this process."""
    try:
        return main([*map(str, argv)])
    except SystemExit as end:
        return end.code


def refusal(capsys, main, *argv):
    """The one line on standard error of a command that ends with exit code 2."""
    capsys.readouterr()
    assert code_of(main, *argv) == 2
    return one_line(capsys.readouterr().err)


def one_line(text):
    """The text, which is one line that every terminal can show."""
    assert len(text.splitlines()) == 1 and text.endswith('\n') and text[:-1].isprintable(), text
    return text[:-1]


def fails(function, *args):
    """The message of the UserError that a call raises."""
    with pytest.raises(cli.UserError) as caught:
        function(*args)
    return str(caught.value)


# A run's folder

def config_of(folder):
    return json.loads((Path(folder) / 'config.json').read_text())


def change_config(folder, arguments=(), **changes):
    """Change config.json, and its `arguments`, as a stranger could."""
    content = {**config_of(folder), **changes}
    content['arguments'] = {**content['arguments'], **dict(arguments)}
    (Path(folder) / 'config.json').write_text(json.dumps(content))


def make_parameters_huge(folder):
    """Let the best parameters be finite, but too large to compute with."""
    net = params.load_net(folder)
    huge = {name: np.full_like(array, 1e38) for name, array in params.arrays_of(net).items()}
    params.save(str(Path(folder) / params.BEST), huge)


def checkpoint_of(folder):
    """The (arrays, state) of a run's checkpoint."""
    net = params.build_net(config.read(folder)['arguments'])
    return params.load(str(Path(folder) / 'checkpoint.safetensors'), net, params.PREFIXES)


def contents(folder):
    """{relative path: bytes} of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def assert_same_end(folder, whole):
    """A run ended, bit for bit, like an undisturbed one: parameters, moments, result and curves."""
    for name in ('best.safetensors', 'checkpoint.safetensors', 'samples/sample_9.gif', 'kl_per_step.csv'):
        assert (Path(folder) / name).read_bytes() == (Path(whole) / name).read_bytes(), name
    assert config_of(folder)['validation'] == config_of(whole)['validation']
    left, right = (curves.read(Path(path) / 'curves.csv') for path in (folder, whole))
    for name in set(left.dtype.names) - {'samples_per_second'}:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert not [path for path in Path(folder).rglob('*') if path.suffix == '.tmp']


def assert_no_run():
    assert not os.path.exists('results') or os.listdir('results') == []


# What disturbs a run

def at_call(patch, owner, name, number, action):
    """Call `action` with the same arguments before call `number` of a function or method, or before each (None).
    Returns the list of calls so far."""
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        if number in (len(calls), None):
            action(*args)
        return function(*args, **kwargs)

    patch.setattr(owner, name, counted)
    return calls


def send(*numbers):
    """A function of any arguments that sends these signals to this process."""
    return lambda *_: [os.kill(os.getpid(), number) for number in numbers]


def fail_with(error):
    """A function of any arguments that raises an exception."""
    def fail(*_):
        raise error

    return fail


def ending(monkeypatch, capsys, *disturbance, argv=ARGV):
    """Train a run, disturbed by `at_call` with these arguments. Returns the exit code and what was printed."""
    _, _, number, _ = disturbance
    capsys.readouterr()
    with monkeypatch.context() as patch:
        calls = at_call(patch, *disturbance)
        code = code_of(train_mnist.main, *argv)
    assert len(calls) >= (number or 1)  # it was disturbed
    return (code, *capsys.readouterr())
