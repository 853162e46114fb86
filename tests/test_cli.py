"""How the commands cope with broken output, signals, errors of MXNet, and notebooks."""
import io
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
import types

from system import cli, files

import mxnet as mx
import pytest

from commands import TIME_OUT, python, started
from conftest import ROOT
from small_runs import ARGV, train

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


@pytest.mark.parametrize('error, line', [
    (cli.UserError('two\nlines \x1b[31m'), 'two\\nlines \\x1b[31m'), (MemoryError(), 'MemoryError'),
    (mx.MXNetError('Traceback:\n  0 lib.so\nout of memory\n'), 'out of memory')])
def test_an_error_is_one_line_whatever_it_names(capsys, error, line):
    with pytest.raises(SystemExit) as end, cli.one_line(cli.Parser('sample.py')):
        raise error
    assert end.value.code == 2 and capsys.readouterr().err == f'sample.py: error: {line}\n'


def test_the_bar_fits_80_columns(workplace, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setattr(sys, 'stderr', terminal)
    train()
    lines = re.split('[\r\n]', terminal.getvalue())
    assert max(map(len, lines)) <= 80
    whole = re.compile(r'training 100%\|.{10}\| \d\d:\d\d left, .*samples/s, bound \d+\.\d\d, KL \d+\.\d\d *')
    assert any(map(whole.fullmatch, lines))


# A notebook

@pytest.mark.parametrize('script, argv', [('train_mnist.py', ARGV), ('sample.py', ['RUN', '-n', '1']),
                                          ('evaluate.py', ['RUN', '-n', '2'])])
def test_commands_run_in_a_notebook(run, monkeypatch, script, argv):
    """As Jupyter's %run does: the process goes on, with its own handlers of signals."""
    out, err = [], []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, 'argv', [script, *(str(run) if word == 'RUN' else word for word in argv)])
    monkeypatch.setattr(sys, 'ps1', 'In : ', raising=False)
    for name, texts in ('stdout', out), ('stderr', err):  # Jupyter's OutStream had no encoding and no reconfigure
        stream = types.SimpleNamespace(write=texts.append, flush=lambda: None, isatty=lambda: False)
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    assert not end.value.code and out and not err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Signals, and several processes

@pytest.mark.parametrize('number, times', [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_signals_end_an_evaluation_without_a_word(run, number, times):
    with started('evaluate.py', run, '-k', '1e6') as process:
        assert 'shuffled' in process.stdout.readline() + process.stdout.readline()
        for _ in range(times):
            time.sleep(0.1)
            process.send_signal(number)
        assert process.communicate(timeout=TIME_OUT) == ('', '')
    assert process.returncode in ([130] if times == 1 else [130, -number])
    assert not os.path.exists(run / 'evaluations')


def test_a_signal_in_a_destructor_is_not_lost():
    """Python drops the exceptions of a __del__, so an evaluation would go on."""
    code = """if True:
        import signal, time
        from system import cli

        class Array:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)

        def main():
            with cli.one_line(cli.Parser('evaluate.py')):
                Array()
                time.sleep(30)

        cli.start(main)"""
    result = python('-c', code, folder=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (130, '', '')


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path):
    with multiprocessing.get_context('spawn').Pool(3) as pool:
        pool.starmap(files.write_whole, [(tmp_path / 'file', bytes(10 ** 6))] * 60)
    assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').stat().st_size == 10 ** 6
