"""The launcher: whatever happens, all its processes end, and it says why."""
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from commands import ROOT, TIME_OUT, refusal
from distributed import launch
from launching import assert_no_process_is_left, launcher, processes, role, running, wait_for

# Scripts in the place of a training: one that stops when it is asked to, and one that waits for the others for ever.
WORKER = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, {handler})
open('ready-' + os.environ['DMLC_TASK_ID'], 'w').close()
time.sleep(300)
'''
OBEDIENT = WORKER.format(handler='lambda *_: sys.exit(0)')
STUBBORN = WORKER.format(handler="lambda *_: open('asked-' + os.environ['DMLC_TASK_ID'], 'w').close()")


def two_workers(script):
    """A launcher whose two workers and services are there."""
    Path('worker.py').write_text(script)
    return running(launcher(2, 'worker.py'), lambda: (
        os.path.exists('ready-0') and os.path.exists('ready-1') and role('server') and role('scheduler')))


@pytest.mark.parametrize('victim, name', [(('worker', 0), 'worker 0'), (('worker', 1), 'worker 1'),
                                          (('server', None), 'server 0'), (('scheduler', None), 'the scheduler')],
                         ids=str)
def test_death_of_one_ends_all(workplace, victim, name):
    with two_workers(OBEDIENT) as process:
        os.kill(role(*victim), signal.SIGKILL)
        assert process.wait(timeout=20) == 1
    assert Path('output.txt').read_text().splitlines() == [
        f'distributed.launch: {name} ended with exit code 137; all others were ended too']
    assert_no_process_is_left()


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_signal_asks_the_workers_to_stop(workplace, number, code):
    with two_workers(OBEDIENT) as process:
        process.send_signal(number)
        assert process.wait(timeout=20) == code
    assert Path('output.txt').read_text() == ''
    assert_no_process_is_left()


def test_second_signal_ends_stubborn_workers(workplace):
    with two_workers(STUBBORN) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: os.path.exists('asked-0') and os.path.exists('asked-1'))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert_no_process_is_left()


@pytest.mark.parametrize('script', [OBEDIENT, STUBBORN], ids=['obedient', 'stubborn'])
def test_killed_launcher_leaves_nobody(workplace, script):
    with two_workers(script) as process:
        process.kill()
    assert_no_process_is_left()


def test_signal_before_the_first_step(workplace):
    """To a training whose workers still import MXNet."""
    process = subprocess.Popen(launcher(2, ROOT / 'train_mnist.py', '--kvstore', 'dist_sync'), stderr=subprocess.PIPE,
                               text=True)
    wait_for(lambda: sum('distributed.guard' in argv for argv in processes().values()) == 4)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and 'Traceback' not in err
    assert_no_process_is_left()


SHOW = '''
import json, os, sys
with open(os.environ['DMLC_TASK_ID'] + '.json', 'w') as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
'''


def shown(*options, argv=(), **environment):
    """(arguments, environment) of each of two workers that a launcher starts."""
    Path('show.py').write_text(SHOW)
    own = {name: text for name, text in os.environ.items() if name != 'OMP_NUM_THREADS'}
    done = subprocess.run(launcher(2, 'show.py', *argv, options=options), env={**own, **environment},
                          capture_output=True, text=True, timeout=TIME_OUT)
    assert done.returncode == 0, done.stderr
    assert_no_process_is_left()
    return [json.loads(Path(f'{rank}.json').read_text()) for rank in (0, 1)]


def test_workers_know_each_other(workplace):
    for rank, (argv, environment) in enumerate(shown(argv=['a b', '--flag', "it's"])):
        assert argv == ['a b', '--flag', "it's"]
        expected = {'ROLE': 'worker', 'TASK_ID': str(rank), 'NUM_WORKER': '2', 'NUM_SERVER': '1',
                    'PS_ROOT_URI': '127.0.0.1', 'NODE_HOST': '127.0.0.1'}
        assert {name: environment[f'DMLC_{name}'] for name in expected} == expected


@pytest.mark.parametrize('argv, given, expected', [
    ([], {}, 2), (['--cpu_contexts', '2'], {}, 4), ([], {'OMP_NUM_THREADS': '7'}, None),
    ([], {'MXNET_OMP_MAX_THREADS': '3'}, None)], ids=str)
def test_workers_share_the_processors(workplace, argv, given, expected):
    """Unless the user has set the number of threads."""
    processors = len(os.sched_getaffinity(0))
    threads = given.get('OMP_NUM_THREADS') if expected is None else str(max(1, processors // expected))
    assert [environment.get('OMP_NUM_THREADS') for _, environment in shown(argv=argv, **given)] == [threads] * 2


def test_hosts_are_reached_by_ssh(workplace, monkeypatch):
    """With a stand-in for ssh that runs the command here and notes the host."""
    Path('bin').mkdir()
    Path('bin/ssh').write_text('#!/bin/sh\necho "$5" >> hosts.txt\nexec sh -c "$6"\n')
    Path('bin/ssh').chmod(0o755)
    monkeypatch.setenv('PATH', f'{Path("bin").resolve()}:{os.environ["PATH"]}')
    workers = shown('--hosts', 'left,right', '--address', '127.0.0.1', argv=['a b'], MXNET_EXAMPLE='1')
    assert sorted(Path('hosts.txt').read_text().split()) == ['left', 'left', 'right']  # a server too
    for argv, environment in workers:
        assert argv == ['a b'] and environment['MXNET_EXAMPLE'] == '1' and environment['PWD'] == os.getcwd()
        assert environment['DISTRIBUTED_LAUNCH'] == '-n 2 --hosts=left,right --address=127.0.0.1'


# Arguments

@pytest.mark.parametrize('argv, reason', [
    (['-n', '2'], 'SCRIPT'), (['train_mnist.py'], '--num_workers'), (['-n', '0', 'data/x'], '--num_workers'),
    (['-n', '2', 'nothing.py'], 'nothing.py is not a file'), (['-n', '2', '--port', '70000', __file__], '--port'),
    (['-n', '2', '--hosts', 'a,', __file__], '--hosts'),
    (['-n', '2', '--address', 'a..b', __file__], '--address: a..b'),
    (['-n', '2', '--address', '', __file__], '--address: it is empty'),
    (['-n', '2', '--hosts', 'a..b', __file__], '--hosts: a..b'),
    (['-n', '2', '--address', '203.0.113.1', __file__], 'cannot listen at 203.0.113.1')], ids=str)
def test_bad_options_of_the_launcher(workplace, capsys, monkeypatch, argv, reason):
    monkeypatch.setattr(launch.shutil, 'which', lambda name: name)  # as where there is an ssh
    assert reason in refusal(capsys, launch.main, *argv)


def test_port_in_use(workplace, capsys):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        assert f'cannot listen at 127.0.0.1, port {port}' in refusal(capsys, launch.main, '-n', '2', '--port', port,
                                                                    ROOT / 'train_mnist.py')
