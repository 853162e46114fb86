"""What the tests of the commands share: running them, what they say, and the GIFs they write."""
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from idx import write_mnist

ROOT = Path(__file__).resolve().parent.parent
TIME_OUT = 120  # seconds, for one process
RED, GREEN = (255, 0, 0), (0, 255, 0)


def command(name, *argv):
    return [sys.executable, str(ROOT / name), *map(str, argv)]


def script(name, *argv, cwd):
    """Run a script to its end, as a process of its own."""
    return subprocess.run(command(name, *argv), cwd=cwd, capture_output=True, text=True, timeout=TIME_OUT)


def only_folder(logdir):
    folder, = Path(logdir).iterdir()
    return folder


def new_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    (folder / 'data').mkdir()
    write_mnist(folder / 'data')
    return folder


def train(cwd, argv, logdir='results'):
    result = script('train_mnist.py', *argv, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(cwd=cwd, argv=argv, folder=only_folder(cwd / logdir), stdout=result.stdout)


def frames(path):
    """The frames of a GIF as RGB arrays."""
    with Image.open(path) as image:
        return [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(image)]


def has_colour(frame, colour):
    return bool((frame == colour).all(axis=-1).any())


def colours_per_frame(path):
    """For each frame: is there red, is there green."""
    return [(has_colour(frame, RED), has_colour(frame, GREEN)) for frame in frames(path)]


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


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
