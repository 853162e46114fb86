"""The launcher: whatever happens, all its processes end, and it says why."""
import json
import os
import signal
from argparse import Namespace
from pathlib import Path

import pytest

from commands import wait_for
from conftest import ROOT
from distributed import launch
from launching import SCHEDULER, SERVER, find, launched, launcher, processes, running, worker
from small_runs import fails, refusal

# Scripts in place of training: one that stops when asked to, and one that waits forever.
WAITING = '''
import os, signal, sys, time
rank = os.environ['DMLC_TASK_ID']
signal.signal(signal.SIGTERM, {handler})
open('ready-' + rank, 'w').close()
time.sleep(300)
'''
OBEDIENT = WAITING.format(handler='lambda *_: sys.exit(0)')
STUBBORN = WAITING.format(handler="lambda *_: open('asked-' + rank, 'w').close()")


def two_workers(script):
    """A launcher whose two workers and services are there."""
    Path('worker.py').write_text(script)
    names = worker(0), worker(1), SERVER, SCHEDULER
    return running(launcher(2, 'worker.py'), lambda: (
        os.path.exists('ready-0') and os.path.exists('ready-1') and all(find(*name) for name in names)))


@pytest.mark.parametrize('victim, guard, told', [
    (worker(0), False, 'worker 0 ended with exit code 137'), (SERVER, False, 'server 0 ended with exit code 137'),
    (worker(1), True, 'worker 1 ended with exit code -9')], ids=['worker', 'server', 'guard'])
def test_death_of_one_ends_all(workplace, monkeypatch, victim, guard, told):
    monkeypatch.setenv('TMPDIR', str(workplace))  # a killed guard leaves its temporary folder
    with two_workers(STUBBORN) as process:
        os.kill(find(*victim, guard=guard), signal.SIGKILL)
        assert process.wait(timeout=10) == 1
    assert Path('output.txt').read_text() == f'distributed.launch: {told}; all others were ended too\n'


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_asks_the_workers_to_stop(workplace, number, code):
    with two_workers(OBEDIENT) as process:
        process.send_signal(number)
        assert process.wait(timeout=10) == code
    assert Path('output.txt').read_text() == ''


def test_second_signal_ends_stubborn_workers(workplace):
    with two_workers(STUBBORN) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: os.path.exists('asked-0') and os.path.exists('asked-1'))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_killed_launcher_leaves_nobody(workplace):
    with two_workers(STUBBORN) as process:
        process.kill()


def test_signal_before_the_first_step(workplace):
    """To a run whose workers still import MXNet."""
    line = launcher(2, ROOT / 'train_mnist.py', '--kvstore', 'dist_sync')
    with running(line, lambda: sum('distributed.guard' in words for words in processes().values()) == 4) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert Path('output.txt').read_text() == ''


@pytest.mark.parametrize('failing, told', [('01', 'from 0'), ('1', 'from 1')])
def test_the_first_failure_is_told_once(workplace, failing, told):
    Path('worker.py').write_text(f'''
import os, sys, time
rank = os.environ['DMLC_TASK_ID']
if rank in '{failing}':
    time.sleep(0.5 * (rank == '0'))  # the other is faster
    sys.stderr.write('from ' + rank + chr(10))
    sys.exit(2)
time.sleep(300)
''')
    done = launched(2, 'worker.py')
    assert done.returncode == 2
    launcher_line = f'distributed.launch: worker {failing[0]} ended with exit code 2; all others were ended too'
    assert done.stderr.splitlines() == [told, launcher_line]


def shown(*argv, options=(), **environment):
    """(arguments, environment) of each of two workers that a launcher starts."""
    Path('show.py').write_text('''
import json, os, sys
with open(os.environ['DMLC_TASK_ID'] + '.json', 'w') as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
''')
    own = {name: text for name, text in os.environ.items() if name != 'OMP_NUM_THREADS'}
    assert launched(2, 'show.py', *argv, options=options, env={**own, **environment}).returncode == 0
    return [json.loads(Path(f'{rank}.json').read_text()) for rank in (0, 1)]


def test_what_workers_are_given(workplace):
    for rank, (argv, environment) in enumerate(shown('a b', '--flag', "it's")):
        assert argv == ['a b', '--flag', "it's"]
        expected = {'DMLC_TASK_ID': str(rank), 'DMLC_NUM_WORKER': '2', 'DMLC_NODE_HOST': '127.0.0.1',
                    'DISTRIBUTED_SHARE': '2'}
        assert {name: environment[name] for name in expected} == expected
        assert 'OMP_NUM_THREADS' not in environment
        assert not os.path.exists(environment['TMPDIR'])


def test_hosts_are_reached_by_ssh(workplace, monkeypatch):
    """With a stand-in for ssh that runs the command here, in an environment of its own, and notes the host."""
    Path('bin').mkdir()
    Path('bin/ssh').write_text('#!/bin/sh\necho "$7" >> hosts.txt\nexec env -i PYTHONPATH="$PYTHONPATH" sh -c "$8"\n')
    Path('bin/ssh').chmod(0o755)
    monkeypatch.setenv('PATH', f'{Path("bin").resolve()}:{os.environ["PATH"]}')
    options = ['--hosts', '127.0.0.1,me@127.0.0.2']
    own = {'OMP_NUM_THREADS': '7', 'LD_LIBRARY_PATH': '/usr/lib', 'DRAW_MNIST_MIRROR': 'http://127.0.0.1/'}
    for argv, environment in shown('a b', options=options, **own):
        assert argv == ['a b'] and environment['PWD'] == os.getcwd()
        assert own == {name: environment[name] for name in own} and environment['DISTRIBUTED_SHARE'] == '1'
        assert environment['DISTRIBUTED_LAUNCH'] == f'-m distributed.launch -n 2 {" ".join(options)}'
        assert environment['DMLC_NUM_SERVER'] == '2'
    assert sorted(Path('hosts.txt').read_text().split()) == 2 * ['127.0.0.1'] + 2 * ['me@127.0.0.2']


@pytest.mark.parametrize('argv, reason', [
    (['-n', '2'], 'SCRIPT'), (['train_mnist.py'], '--num_workers'), (['-n', '0', 'data/x'], '--num_workers'),
    (['-n', '2', '--address', 'a..b', 'x.py'], '--address'), (['-n', '2', '--hosts', 'a..b', 'x.py'], '--hosts'),
    (['-n', '2', '--hosts', 'a,', 'x.py'], 'empty name'),
    (['-n', '2', '--address', '203.0.113.1', 'x.py'], '--address')], ids=str)
def test_bad_options_of_the_launcher(workplace, capsys, argv, reason):
    assert reason in refusal(capsys, launch.main, *argv)


@pytest.mark.parametrize('hosts', ['ab', 'ba'])
def test_all_hosts_can_reach_the_address(monkeypatch, hosts):
    """Even where one of them is this host."""
    monkeypatch.setattr(launch, '_address_for', {'a': '192.0.2.1', 'b': '127.0.0.1'}.get)
    args = Namespace(hosts=[*hosts], address=None)
    assert '--address' in fails(launch.find_address, args) and args.address == '192.0.2.1'  # which is not ours
