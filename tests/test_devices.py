"""system/devices.py: what mxnet finds in its environment, and how many contexts of the CPU there are by default."""
import json
import os
import subprocess
import sys
from pathlib import Path

from system import devices

import pytest

import train_mnist

NAMES = ('OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS', 'MXNET_CPU_PARALLEL_SIZE', 'MXNET_CPU_TEMP_COPY')
LARGE = str(2 ** 31 - 1)


def environment(own, *argv, processors=4, script='train_mnist.py'):
    """What importing system makes of these variables and this command line, on a machine of so many processors."""
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = (f'import os, sys; os.sched_getaffinity = lambda pid: range({processors}); sys.argv[0] = {script!r}; '
            'import system; '
            f'print(*(os.environ.get(name) for name in {NAMES}))')
    output = subprocess.run([sys.executable, '-c', code, *argv], env={**others, **own}, capture_output=True, text=True,
                            check=True, timeout=60)
    return tuple(output.stdout.split())


@pytest.mark.parametrize('own, expected', [
    ({}, ('2', 'None', LARGE, '4096')),
    ({'OMP_NUM_THREADS': '7'}, ('7', 'None', LARGE, 'None')),
    ({'OMP_NUM_THREADS': '1'}, ('1', 'None', LARGE, '4096')),
    ({'MXNET_OMP_MAX_THREADS': '3'}, ('None', '3', LARGE, 'None')),
    ({'MXNET_CPU_PARALLEL_SIZE': '5', 'MXNET_CPU_TEMP_COPY': '8'}, ('2', 'None', '5', '8')),
    ({'DMLC_ROLE': 'worker'}, ('4', 'None', LARGE, 'None'))], ids=str)
def test_a_user_s_own_setting_stands(own, expected):
    assert environment(own) == expected


@pytest.mark.parametrize('argv, contexts', [
    ([], 2), (['-b', '128'], 4), (['--batch_size=128'], 4), (['-b', '8'], 1), (['-b', '96'], 3),
    (['--cpu_contexts', '2'], 2), (['-b', '8', '--cpu_contexts=2', '--attention'], 2), (['--cpu_contexts', '64'], 64),
    (['--cpu_contexts', '0'], 1), (['--cpu_contexts', 'two'], 1), (['--cpu_contexts'], 1), (['--gpu'], 1),
    (['--gpus', '0,1'], 1), (['--resume', 'nowhere'], 1)], ids=str)
def test_contexts_share_the_processors(argv, contexts):
    threads, _, _, pieces = environment({}, *argv)
    assert threads == str(max(1, 4 // contexts)) and pieces == ('4096' if contexts > 1 else 'None')


def test_a_resumed_run_keeps_its_contexts(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'arguments': {'cpu_contexts': 4, 'batch_size': 8}}))
    assert environment({}, '--resume', str(tmp_path))[0] == '1'
    assert environment({}, '--resume', str(tmp_path), '--cpu_contexts', '2')[0] == '2'


def test_an_evaluation_that_goes_on_has_the_contexts_of_its_command_line(tmp_path):
    """Not those of the training: its --resume takes no folder."""
    (tmp_path / 'config.json').write_text(json.dumps({'arguments': {'cpu_contexts': 4, 'batch_size': 8}}))
    run, four = str(tmp_path), '--cpu_contexts=4'
    for argv, threads in ([run, '--resume'], '2'), (['--resume', run], '2'), ([run, '--resume', four], '1'):
        assert environment({}, *argv, script='some/where/evaluate.py') == (threads, 'None', LARGE, '4096'), argv


@pytest.mark.parametrize('processors, threads, batch_size, expected', [
    (1, None, 128, 1), (2, None, 64, 2), (2, None, 63, 1), (2, '2', 64, 1), (8, None, 64, 2), (8, None, 100, 2),
    (8, '2', 1024, 4), (3, None, 128, 2), (128, None, 2 ** 16, 64)])
def test_default_contexts(monkeypatch, processors, threads, batch_size, expected):
    monkeypatch.setattr(devices, 'processors', lambda: processors)
    monkeypatch.delenv('OMP_NUM_THREADS')
    if threads:
        monkeypatch.setenv('OMP_NUM_THREADS', threads)
    assert devices.default_contexts(batch_size) == expected


@pytest.mark.parametrize('text', ['abc', '0', '-1', '1.5', '99999999'])
def test_threads_that_are_no_number(monkeypatch, text):
    monkeypatch.setenv('OMP_NUM_THREADS', text)
    with pytest.raises(ImportError, match='OMP_NUM_THREADS must be a number of threads'):
        devices.threads()


def test_a_run_that_goes_on_with_other_devices_says_so(workplace, capsys):
    sizes = ['-s', '1', '-u', '2', '-l', '1', '-b', '4', '-f', '8', '-v', '4', '--logdir', 'runs']
    assert train_mnist.main([*sizes, '-t', '8', '--cpu_contexts', '2']) == 0
    folder = str(next(Path('runs').iterdir()))
    for argv, said in ((['-t', '16'], False), (['-t', '24', '--cpu_contexts', '1'], True), (['-t', '32'], False)):
        capsys.readouterr()
        assert train_mnist.main(['--resume', folder, *argv]) == 0
        note = 'Note: CPU (contexts x threads: 2 x 1) before, CPU (contexts x threads: 1 x 1) now.'
        assert (note in capsys.readouterr().out) == said
