"""What the tests share: small runs, the commands as processes and in this process, what they say, what they write."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from system import cli

import numpy as np
import pytest
from PIL import Image, ImageSequence

import train_mnist
from idx import write_mnist
from runs import storage
from runs.log import read_kl_per_step, read_scalars

ROOT = Path(__file__).resolve().parent.parent
TIME_OUT = 120  # seconds, for one process
RED, GREEN = (255, 0, 0), (0, 255, 0)
T, BATCH = 3, 16
SIZES = ['-s', str(T), '-u', '8', '-l', '4', '-b', str(BATCH), '--kl_warmup', '1']
# Of a small run whose learning rate does not depend on its length.
ARGV = [*SIZES, '-f', '64', '-v', '20', '--log_freq', '16', '-r', '0.01', '--lr_decay', '0']


# Small runs

def new_folder(tmp_path_factory):
    """A folder with small MNIST files in data/."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'data').mkdir()
    write_mnist(folder / 'data')
    return folder


def only_folder(logdir):
    folder, = (path for path in Path(logdir).iterdir() if not path.name.startswith('.'))
    return folder


def train(*argv, logdir='results'):
    """A training in this process to its end; the run's folder."""
    assert train_mnist.main([*ARGV, *map(str, argv), '--logdir', str(logdir)]) == 0
    return only_folder(logdir)


def resume(folder, *argv):
    """Go on with a run in this process; the exit code."""
    return train_mnist.main(['--resume', str(folder), *map(str, argv)])


def parse(*argv):
    return train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), [*argv])


def config_of(folder):
    return json.loads((Path(folder) / 'config.json').read_text())


def change_arguments(folder, **changes):
    """Change arguments in a run's config.json."""
    config = config_of(folder)
    config['arguments'].update(changes)
    (Path(folder) / 'config.json').write_text(json.dumps(config))


def checkpoint(folder, name='checkpoint'):
    """(state, metadata) of a checkpoint in a run's folder."""
    return storage.load_checkpoint(folder, name, storage.build_net(config_of(folder)['arguments']))


def samples_seen(folder):
    return checkpoint(folder)[1]['samples_seen']


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def whole_content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def assert_same_files(left, right, names=('last.safetensors', 'best.safetensors')):
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def assert_same_curves(left, right):
    """All but the speed."""
    curves = [read_scalars(left), read_scalars(right)]
    for split, found in curves[1].items():
        assert curves[0][split].keys() == found.keys()
        for name in found.keys() - {'samples_per_second'}:
            np.testing.assert_array_equal(curves[0][split][name], found[name], err_msg=f'{split} {name}')
    for a, b in zip(read_kl_per_step(left), read_kl_per_step(right)):
        np.testing.assert_array_equal(a, b)


class Killed(BaseException):
    """Ends a training where SIGKILL would, without the process."""


def before_step(monkeypatch, action):
    """Call `action(training)` before every step of the next trainings in this process."""
    step = train_mnist.Training.step

    def stepped(training, x):
        action(training)
        return step(training, x)

    monkeypatch.setattr(train_mnist.Training, 'step', stepped)


def stop_after(monkeypatch, seen):
    """The next training ends without a word after the step that reaches `seen`."""
    def kill(training):
        if training.seen >= seen:
            raise Killed

    before_step(monkeypatch, kill)


# Processes

def command(name, *argv):
    return [sys.executable, str(ROOT / name), *map(str, argv)]


def script(name, *argv, **kwargs):
    """Run a script to its end, as a process of its own."""
    return subprocess.run(command(name, *argv), capture_output=True, text=True, timeout=TIME_OUT, **kwargs)


@contextlib.contextmanager
def started(*argv, **kwargs):
    """A training process that signals reach; killed at the end, and after TIME_OUT seconds at the latest."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits an ignored signal
    try:
        process = subprocess.Popen(command('train_mnist.py', *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, **kwargs)
    finally:
        signal.signal(signal.SIGINT, handler)
    watchdog = threading.Timer(TIME_OUT, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            process.kill()
            watchdog.cancel()


def wait_for_line(process, text):
    """Read the output until a line has this text; that line."""
    return next(line for line in process.stdout if text in line)


# Pictures

def frames(path):
    """The frames of a GIF as RGB arrays."""
    with Image.open(path) as image:
        return [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]


def has_colour(frame, colour):
    return bool((frame == colour).all(axis=-1).any())


def colours_per_frame(path):
    """For each frame: is there red, is there green."""
    return [(has_colour(frame, RED), has_colour(frame, GREEN)) for frame in frames(path)]


# What is said

def refusal(capsys, main, *argv):
    """The one line with which the script ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert_one_line(out, err)
    return err


def assert_one_line(out, err):
    assert all(line.startswith('downloading ') for line in out.splitlines())
    assert len(err.splitlines()) == 1 and err.endswith('\n') and err.strip().isprintable()
    assert 'Traceback' not in err


def assert_no_run(logdir='results'):
    assert not os.path.exists(logdir) or os.listdir(logdir) == []


def options_in_help(text):
    """{option without dashes: its lines of the help, as one}."""
    parts = re.split(r'\n  (?=-)', text)[1:]
    return {re.search(r'--(\w+)', part).group(1): ' '.join(part.split()) for part in parts}


def assert_help_is_complete(text, parser):
    options = options_in_help(text)
    for action in parser._actions:
        if not action.option_strings or action.dest == 'help':
            continue
        described = options.pop(action.dest)
        assert all(option in described for option in action.option_strings)
        help_text = described.split(max(action.option_strings, key=len), 1)[1]
        assert len(help_text.replace('(default:', '').split()) > 3, action.dest
        if action.nargs != 0 and action.default is not None:
            assert f'(default: {action.default})' in described, action.dest
        assert 'default: None' not in described
    assert list(options) == ['help']
