"""What the commands do where output, a signal, memory or a notebook does not behave: one line, or none, and go on."""
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import time

from system import cli

import pytest

import train_mnist
from commands import command, script
from small_runs import ARGV, ROOT, TIME_OUT, one_line, train


class Notebook:
    """As Jupyter's OutStream was: no encoding, no file descriptor, no reconfigure."""

    def __init__(self):
        self.written = ''

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return False


# Output

@pytest.mark.parametrize('path', [None, '/dev/full'])
def test_a_line_that_cannot_be_written_ends_nothing(monkeypatch, path):
    with open(path or os.devnull, 'w') as stream:
        for name in ('stdout', 'stderr'):
            monkeypatch.setattr(sys, name, stream if path else None)  # None where it was closed, as by >&-
        cli.say('lost')
        with cli.progress('training', 10, 'samples') as bar:
            bar.update()
        with pytest.raises(SystemExit) as end:
            cli.Parser('train_mnist.py').parse_args(['--nope'])
    assert end.value.code == 2


@pytest.mark.parametrize('encoding, shown', [('ascii', '\\xe9t\\xe9 \\udcff'), ('latin-1', '\xe9t\xe9 \\udcff'),
                                             ('utf-8', '\xe9t\xe9 \\udcff')])
def test_every_file_name_can_be_shown(encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    cli.say('\xe9t\xe9 \udcff', stream)
    assert stream.buffer.getvalue().decode(encoding) == f'{shown}\n'


def test_an_error_is_one_line_whatever_it_names(capsys):
    with pytest.raises(SystemExit), cli.one_line(cli.Parser('sample.py')):
        raise cli.UserError('two\nlines \x1b[31m')
    assert capsys.readouterr().err == 'sample.py: error: two\\nlines \\x1b[31m\n'


def test_the_bar_fits_80_columns(workplace, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setattr(sys, 'stderr', terminal)
    train()
    lines = re.split('[\r\n]', terminal.getvalue())
    assert max(map(len, lines)) <= 80
    whole = re.compile(r'training 100%\|.{10}\| \d\d:\d\d, .*samples/s, bound \d+\.\d\d, KL \d+\.\d\d *')
    assert any(map(whole.fullmatch, lines))


def test_the_time_to_go_includes_the_final_validation(workplace, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(train_mnist, 'announce', lambda speed, remaining: told.append(remaining))
    train()
    assert told == [48 - 16 + 10 / 3]  # after the second point of the curves
    monkeypatch.undo()
    train_mnist.announce(10, 600)
    train_mnist.announce(10, 6000)
    assert capsys.readouterr().out.splitlines()[-1] == '10 samples/s: about 10 min to go, final validation included'


# A notebook

@pytest.mark.parametrize('name, argv', [('train_mnist.py', ARGV), ('sample.py', ['RUN', '-n', '1']),
                                        ('evaluate.py', ['RUN', '-n', '2'])])
def test_commands_run_in_a_notebook(run, monkeypatch, name, argv):
    """As Jupyter's %run does: the process goes on, with its own handlers of signals."""
    out, err = Notebook(), Notebook()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, 'argv', [name, *(str(run) if word == 'RUN' else word for word in argv)])
    monkeypatch.setattr(sys, 'ps1', 'In : ', raising=False)
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', err)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / name), run_name='__main__')
    assert not end.value.code and out.written and not err.written
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Signals and MXNet's errors

@pytest.mark.parametrize('number, times', [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_signals_end_an_evaluation_without_a_word(run, number, times):
    with subprocess.Popen(command('evaluate.py', run, '-k', '1e6'), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert 'shuffled' in process.stdout.readline() + process.stdout.readline()
        for _ in range(times):
            time.sleep(0.1)
            process.send_signal(number)
        assert process.communicate(timeout=TIME_OUT) == ('', '')
    assert process.returncode in ([130] if times == 1 else [130, -number])
    assert not os.path.exists(run / 'evaluations')


@pytest.mark.parametrize('name, argv', [('evaluate.py', ['RUN']), ('train_mnist.py', ['--resume', 'RUN', '-t', '64'])])
def test_an_error_of_mxnet_is_what_mxnet_said(run, name, argv):
    done = script(name, *(run if word == 'RUN' else word for word in argv),
                  env={**os.environ, 'MXNET_ENGINE_TYPE': 'None'})
    assert done.returncode == 2 and one_line(done.stderr) == f'{name}: error: MXNetError: Cannot find Engine None'


def test_without_memory(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end, cli.one_line(cli.Parser('sample.py')):
        raise MemoryError
    assert end.value.code == 2 and capsys.readouterr().err == 'sample.py: error: MemoryError\n'
