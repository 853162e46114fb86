"""Several workers train as one process does, and all of them end when one fails."""
import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

from system import cli

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands import TIME_OUT, python
from conftest import ROOT
from distributed import workers
from launching import SCHEDULER, find, launched, launcher, running, worker
from small_runs import SIZES, assert_same_end, checkpoint_of, config_of, new_folder, only_folder, resume, train

DIST = ['--kvstore', 'dist_sync', '--sync_timeout', '40']
ARGV = [*SIZES, '-v', '8', '-f', '80', '--log_freq', '16', '-t', '160']  # 20 steps
SCRIPT = ROOT / 'train_mnist.py'


# A group

# What each of three workers gets; all but worker 0 print to nobody and have a temporary folder.
MEMBER = '''
import json, os, sys
from system import cli
import numpy as np
from mxnet import gluon
from distributed import workers

def refused(group, facts):
    try:
        group.check_same(facts)
    except cli.UserError as error:
        return str(error)

with workers.join('dist_sync', 60) as group:
    print('worker', group.rank)
    parameters = [gluon.Parameter(name, shape=(3,)) for name in 'ab']
    for parameter in parameters:
        parameter.initialize()
        parameter.grad()[:] = 10. ** group.rank
    group.sum_gradients(parameters)
    own = np.random.default_rng(group.rank).normal(size=(50, 20))
    with open(f'{group.rank}.json', 'w') as file:
        json.dump({'gradients': [parameter.grad().asnumpy().tolist() for parameter in parameters],
                   'sum': group.sum(own).tolist(), 'broadcast': group.broadcast(own).tolist(),
                   'any': [group.any(False), group.any(group.rank == 2)], 'launcher': group.launcher,
                   'refused': [refused(group, {'one': 1, 'two': two}) for two in (2, group.rank // 2)],
                   'scratch': group.scratch, 'is there': os.path.isdir(group.scratch or '')}, file)
'''


@pytest.mark.exhaustive
def test_three_workers(workplace):
    Path('member.py').write_text(MEMBER)
    done = launched(3, 'member.py')
    assert (done.returncode, done.stdout, done.stderr) == (0, 'worker 0\n', '')
    of_each = [np.random.default_rng(rank).normal(size=(50, 20)) for rank in range(3)]
    for rank in range(3):
        found = json.loads(Path(f'{rank}.json').read_text())
        assert found['gradients'] == 2 * [3 * [111.]]
        np.testing.assert_array_equal(found['broadcast'], of_each[0])  # bit for bit, float64 too
        np.testing.assert_array_equal(found['sum'], sum(of_each))
        assert found['any'] == [False, True]
        assert found['refused'] == [None, 'worker 2 differs from worker 0 in two']
        assert found['launcher'] == ['-m', 'distributed.launch', '-n', '3']
        assert found['is there'] == (rank > 0) and not os.path.exists(found['scratch'] or 'nothing')


# Between two sums it works for longer than it would wait for others.
BUSY = '''
import time
from distributed import workers

with workers.join('dist_sync', 60) as group:
    group._timeout = 1
    time.sleep(2.5)
    group._timeout = 60
    print(group.any(True))
'''


def test_a_worker_that_is_busy_waits_for_nobody(workplace):
    Path('busy.py').write_text(BUSY)
    done = launched(1, 'busy.py')
    assert (done.returncode, done.stdout, done.stderr) == (0, 'True\n', '')


WORKER = {'DMLC_ROLE': 'worker', 'DMLC_PS_ROOT_URI': '127.0.0.1', 'DMLC_PS_ROOT_PORT': '9', 'DMLC_NUM_SERVER': '1',
          'DMLC_NUM_WORKER': '2', 'DMLC_NODE_HOST': '127.0.0.1'}


@pytest.mark.parametrize('environment, kvstore, reason', [
    ({}, 'dist_sync', 'what distributed.launch sets'), (WORKER, 'dist_sync', r"sets \('DMLC_TASK_ID'"),
    ({**WORKER, 'DMLC_TASK_ID': 'one'}, 'dist_sync', "'one'"), (WORKER, 'device', 'use dist_sync')])
def test_bad_environment(monkeypatch, environment, kvstore, reason):
    for name in (*WORKER, 'DMLC_TASK_ID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cli.UserError, match=reason):
        workers.join(kvstore, 60)


# Exactness: 20 steps with the same images and the same noise

def assert_nearly_same_end(folder, other):
    """To float tolerance: rounding alone makes Adam move a weight whose gradient is nearly 0, but 20 steps of 0.01 can
    move one by 0.2."""
    ours, theirs = (load_file(path / 'best.safetensors') for path in (folder, other))
    for key in theirs:
        difference = np.abs(ours[key] - theirs[key])
        assert difference.max() < 2e-4 and difference.mean() < 2e-7, (key, difference.max(), difference.mean())
    validation, expected = (config_of(path)['validation'] for path in (folder, other))
    assert validation['num_images'] == expected['num_images']
    assert validation['bound'] == pytest.approx(expected['bound'], rel=1e-5)


@pytest.mark.exhaustive
def test_closed_output(workplace):
    line = shlex.join(launcher(2, SCRIPT, *ARGV, *DIST))
    done = subprocess.run(f'{line} >&-', shell=True, stderr=subprocess.PIPE, text=True, timeout=TIME_OUT)
    assert (done.returncode, done.stderr) == (0, '') and 'validation' in config_of(only_folder())


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """A model, and a run of one process that starts with it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_folder(tmp_path_factory)
        patch.chdir(folder)
        model = folder / train(*ARGV, '--attention', '-t', '16', logdir='model')
        return model, folder / train(*ARGV, '--attention', '--seed', '3', '--init', model)


@pytest.mark.exhaustive
@pytest.mark.parametrize('num_workers', [1, 2, 4])
def test_workers_train_as_one_process(workplace, one, num_workers):
    model, whole = one
    done = launched(num_workers, SCRIPT, '--attention', '--seed', '3', '--init', model, *ARGV, *DIST)
    assert (done.returncode, done.stderr) == (0, '')
    folder = only_folder('results')
    assert_nearly_same_end(folder, whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert done.stdout.count('Run folder') == done.stdout.count('10 samples') == 1


@pytest.mark.exhaustive
def test_resume_with_another_number_of_workers(workplace):
    """1 worker, then 2, then 1 end as 1 from the beginning to the end."""
    folder = train(*ARGV, '-t', '48', '--lr_decay', '0')
    done = launched(2, SCRIPT, '--resume', folder, '-t', '96', *DIST)
    assert (done.returncode, done.stderr) == (0, '')
    assert resume(folder, '-t', '160', '--kvstore', 'device') == 0
    assert_nearly_same_end(folder, train(*ARGV, '--lr_decay', '0', logdir='whole'))


@pytest.mark.exhaustive
def test_two_workers_resume_to_the_same_bits(workplace):
    argv = [*ARGV, '-f', '16', '--lr_decay', '0', *DIST]
    for total, logdir in ('96', 'whole'), ('48', 'stopped'):
        assert launched(2, SCRIPT, *argv, '-t', total, '--logdir', logdir).returncode == 0
    assert launched(2, SCRIPT, '--resume', only_folder('stopped'), '-t', '96', *DIST).returncode == 0
    assert_same_end(only_folder('stopped'), only_folder('whole'))


# Ends

def endless_training():
    """A launcher whose two workers train endlessly, and have saved a checkpoint."""
    line = launcher(2, SCRIPT, *ARGV, '-t', '1e8', '-f', '1e8', '--checkpoint_freq', '64', *DIST)
    return running(line, lambda: list(Path('results').glob('2*/checkpoint.safetensors')))


# A training whose images never come.
LOADING = '''
import os, time
from system import cli
import train_mnist

def load(*_):
    open(f'ready-{os.environ["DMLC_TASK_ID"]}', 'w').close()
    time.sleep(300)

train_mnist.load = load
cli.start(train_mnist.main)
'''


@pytest.mark.exhaustive
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_while_the_images_are_loaded(workplace, number, code):
    Path('loading.py').write_text(LOADING)
    line = launcher(2, 'loading.py', *ARGV, *DIST)
    with running(line, lambda: len(list(Path().glob('ready-*'))) == 2) as process:
        process.send_signal(number)
        assert process.wait(timeout=20) == code
    assert Path('output.txt').read_text() == '' and not list(Path('results').glob('*'))


def assert_continues(folder):
    """One process makes one more step after the checkpoint, and ends the run."""
    total = checkpoint_of(folder)[1]['samples_seen'] + 8
    assert resume(folder, '-t', total, '-f', '80', '--kvstore', 'device') == 0
    assert config_of(folder)['validation']['samples_seen'] == total


@pytest.mark.exhaustive
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_stops_all_workers_at_one_step(workplace, number, code):
    with endless_training() as process:
        process.send_signal(number)
        assert process.wait(timeout=20) == code
    folder, output = only_folder('results'), Path('output.txt').read_text()
    _, state = checkpoint_of(folder)
    assert output.count(f'Stopped after {state["samples_seen"]:,} training samples') == 1
    assert f'-m distributed.launch -n 2 {SCRIPT} --resume {folder}' in output
    assert_continues(folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize('rank', [0, 1])
def test_death_of_one_ends_the_training(workplace, rank):
    with endless_training() as process:
        os.kill(find(*worker(rank)), signal.SIGKILL)
        assert process.wait(timeout=20) == 1
    output = Path('output.txt').read_text()
    assert output.count(f'worker {rank} ended with exit code 137; all others were ended too') == 1
    assert 'Traceback' not in output
    assert_continues(only_folder('results'))


@pytest.mark.exhaustive
def test_bound_that_is_not_finite_ends_all(workplace):
    done = launched(2, SCRIPT, *ARGV, *DIST, '-r', '1e30')
    assert done.returncode == 1 and done.stderr.count('not finite') == 1 and 'Traceback' not in done.stderr


# Stops when there is a file `stop`, and says so.
STEPPING = '''
import os
from distributed import workers
from mxnet import gluon

weight = gluon.Parameter('weight', shape=(3,))
weight.initialize()

with workers.join('dist_sync', 5) as group:
    group.any(False)  # the first sum needs the scheduler
    open(f'ready-{group.rank}', 'w').close()
    while not group.any(os.path.exists('stop')):
        while os.path.exists('gradients'):
            group.sum_gradients([weight])
    print('finished', flush=True)
'''


@pytest.mark.exhaustive
@pytest.mark.parametrize('victim, finished, gradients', [
    (SCHEDULER, 1, False), (worker(1), 0, False), (worker(1), 0, True)], ids=['scheduler', 'worker', 'gradients'])
def test_process_that_stands_still_is_given_up(workplace, victim, finished, gradients):
    """MXNet would wait forever: for a worker at the next sum, and for the scheduler at the end."""
    Path('stepping.py').write_text(STEPPING)
    if gradients:
        Path('gradients').touch()
    with running(launcher(2, 'stepping.py'), lambda: len(list(Path().glob('ready-*'))) == 2) as process:
        os.kill(find(*victim), signal.SIGSTOP)
        if finished:  # worker 1 may have sent its part of the sum, and worker 0 would then finish too
            Path('stop').touch()
        assert process.wait(timeout=20) == 1
    output = Path('output.txt').read_text()
    assert output.count('finished') == finished
    assert output.count('worker 0 has heard nothing from the others for 5 seconds') == 1
    assert len(output.split('\n', finished)[-1].strip().splitlines()) == 2  # that line, and the launcher's


def test_no_scheduler(workplace):
    Path('stepping.py').write_text(STEPPING)
    done = python('stepping.py', **WORKER, DMLC_TASK_ID='0')
    assert done.returncode == 1 and 'heard nothing from the others' in done.stderr
