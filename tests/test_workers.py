"""Several devices and several workers: the same parameters as one, and an end in time when something fails."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import train_mnist
from dataset import stream
from distributed import launch, workers
from runs import storage

ROOT = Path(__file__).resolve().parent.parent
TIME_OUT = 90  # seconds, for one command
ARGV = ['-s', '3', '-u', '8', '-l', '4', '-b', '16', '-v', '20', '-f', '160', '--log_freq', '32', '--kl_warmup', '1',
        '-r', '0.01', '-t', '320']  # 20 steps
DIST = ['--kvstore', 'dist_sync', '--sync_timeout', '40']
FOR_EVER = ['-t', '1e8', '-f', '1e8', '--checkpoint_freq', '64', '--lr_decay', '0']


def train(*argv, logdir):
    """A training in this process; its folder."""
    assert train_mnist.main([*ARGV, *argv, '--logdir', logdir]) == 0
    return only_folder(logdir)


def only_folder(logdir):
    folder, = (path for path in Path(logdir).iterdir() if not path.name.startswith('.'))
    return folder


def launcher(num_workers, *argv, options=()):
    """The command of a training with so many workers."""
    return [sys.executable, '-m', 'distributed.launch', '-n', str(num_workers), *options, ROOT / 'train_mnist.py',
            *map(str, argv)]


def launched(num_workers, *argv, options=(), **kwargs):
    return subprocess.run(launcher(num_workers, *argv, options=options), capture_output=True, text=True,
                          timeout=TIME_OUT, **kwargs)


def assert_same_parameters(folder, other, name):
    """To float tolerance: Adam moves a weight whose gradient is nearly 0 by its rounding errors too, but 20 steps of
    0.01 take a weight up to 0.2 away."""
    ours, theirs = (load_file(path / name) for path in (folder, other))
    for key in theirs:
        difference = np.abs(ours[key] - theirs[key])
        assert difference.max() < 2e-4 and difference.mean() < 2e-7, (key, difference.max(), difference.mean())


def assert_close(folder, other):
    for name in ('last.safetensors', 'best.safetensors'):
        assert_same_parameters(folder, other, name)
    validation, expected = (storage.read_config(path)['validation'] for path in (folder, other))
    assert validation['num_images'] == expected['num_images']
    assert validation['bound'] == pytest.approx(expected['bound'], rel=1e-5)


def processes():
    """{process: arguments} of everything that works in this folder."""
    found = {}
    for entry in Path('/proc').iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.readlink(entry / 'cwd') == os.getcwd() and int(entry.name) != os.getpid():
                    found[int(entry.name)] = (entry / 'cmdline').read_bytes().decode().split('\0')
    return found


def assert_no_process_is_left(seconds=15):
    deadline = time.monotonic() + seconds
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints():
    return list(Path('results').glob('2*/checkpoint.safetensors'))


@contextlib.contextmanager
def running(num_workers, *argv, options=()):
    """A launcher whose training has written a checkpoint."""
    with open('output.txt', 'w+') as output:
        process = subprocess.Popen(launcher(num_workers, *ARGV, *FOR_EVER, *DIST, *argv, options=options),
                                   stdout=output, stderr=output)
        try:
            wait_for(lambda: checkpoints() or process.poll() is not None)
            assert process.poll() is None, Path('output.txt').read_text()
            yield process
        finally:
            process.kill()
            process.wait()


def role(name, rank=None):
    """The process that has this role, not its guard."""
    marks = [f'DMLC_ROLE={name}'] + ([] if rank is None else [f'DMLC_TASK_ID={rank}'])
    for process, argv in processes().items():
        with contextlib.suppress(OSError):
            environment = Path(f'/proc/{process}/environ').read_bytes().decode().split('\0')
            if '--guard' not in argv and all(mark in environment for mark in marks):
                return process
    raise AssertionError(f'no {name}')


# Exactness: 20 steps with the same images and the same noise

@pytest.mark.parametrize('kvstore', ['local', 'device'])
@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_two_cpu_contexts_train_as_one(workplace, attention, kvstore):
    one = train(*attention, logdir='one')
    two, again = (train(*attention, '--cpu_contexts', '2', '--kvstore', kvstore, logdir=name) for name in ('two', '2'))
    assert_close(two, one)
    assert (two / 'last.safetensors').read_bytes() == (again / 'last.safetensors').read_bytes()


@pytest.mark.parametrize('num_workers, more', [(2, ['--attention']), (4, []), (2, ['--cpu_contexts', '2'])], ids=str)
def test_workers_train_as_one_process(workplace, num_workers, more):
    one = train(*[flag for flag in more if flag == '--attention'], logdir='one')
    done = launched(num_workers, *ARGV, *DIST, *more)
    assert done.returncode == 0, done.stderr
    folder = only_folder('results')  # of worker 0 alone
    assert_close(folder, one)
    assert {path.name for path in folder.iterdir()} == {path.name for path in one.iterdir()}
    assert done.stdout.count('Run folder') == done.stdout.count('10 samples') == 1
    assert_no_process_is_left()


def test_resume_with_another_number_of_workers(workplace):
    """1 worker, then 2, then 1 with 2 contexts, end as 1 from the beginning to the end."""
    whole = train('--lr_decay', '0', logdir='whole')
    folder = train('--lr_decay', '0', '-t', '96', logdir='results')
    done = launched(2, '--resume', folder, '-t', '192', *DIST)
    assert done.returncode == 0, done.stderr
    assert train_mnist.main(['--resume', str(folder), '-t', '320', '--kvstore', 'local', '--cpu_contexts', '2']) == 0
    assert [sitting['samples_seen'] for sitting in storage.read_config(folder)['resumed']] == [96, 192]
    assert_same_parameters(folder, whole, 'last.safetensors')


class Alike:
    """Stands in for Workers: `rank` of `size`, and nobody there."""

    def __init__(self, rank, size):
        self.rank, self.size, self.kvstore = rank, size, 'local'

    def begin(self, trainer):
        pass


def test_every_image_of_an_epoch_is_read_once(workplace):
    """Also where batches straddle the epochs."""
    images = stream.load('mnist', 'data', (28, 28))['train']
    args = train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), [*ARGV, '-b', '12'])
    net = storage.build_net(vars(args))
    net.initialize()
    of_three = [train_mnist.Training(net, args, [mx.cpu()], Alike(rank, 3)) for rank in range(3)]
    numbers = []
    for _ in range(len(images) // 12 + 1):
        for training in of_three:
            position, count = training.next_images()
            numbers += range(position, position + count)
            training.seen += args.batch_size
    assert numbers == list(range(len(numbers))) and len(numbers) > len(images)


# Faults

@pytest.mark.parametrize('victim', [('worker', 1), ('worker', 0), ('server', None), ('scheduler', None)], ids=str)
def test_death_of_one_ends_all_and_resume_goes_on(workplace, victim):
    with running(2) as process:
        os.kill(role(*victim), signal.SIGKILL)
        assert process.wait(timeout=20) == 1
    assert_no_process_is_left()
    line = Path('output.txt').read_text().splitlines()[-1]
    name = victim[0] if victim[0] == 'scheduler' else f'{victim[0]} {victim[1] or 0}'
    assert f'{name} ended with exit code 137' in line
    if victim == ('worker', 1):
        folder = only_folder('results')
        seen = 64 + workers_seen(folder)
        assert train_mnist.main(['--resume', str(folder), '-t', str(seen), '-f', '64', '--kvstore', 'local']) == 0


def workers_seen(folder):
    """Samples seen at the checkpoint in `folder`."""
    seen = re.search(rb'samples_seen\\": (\d+)', (folder / 'checkpoint.safetensors').read_bytes())
    return int(seen.group(1))


def test_signal_stops_all_workers_at_one_step(workplace):
    with running(2) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    folder = only_folder('results')
    assert f'Stopped after {workers_seen(folder):,} training samples' in Path('output.txt').read_text()
    assert_no_process_is_left()


def test_second_signal_ends_all_at_once(workplace):
    with running(2) as process:
        os.kill(role('worker', 1), signal.SIGSTOP)  # so that worker 0 cannot stop in peace
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(timeout=20) == 130
    assert_no_process_is_left()


def test_signal_before_the_first_step(workplace):
    process = subprocess.Popen(launcher(2, *ARGV, *FOR_EVER, *DIST), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: sum('--guard' in argv for argv in processes().values()) == 4)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and 'Traceback' not in err
    assert_no_process_is_left()


def test_killed_launcher_leaves_nobody(workplace):
    with running(2) as process:
        process.kill()
    assert_no_process_is_left()


def test_silent_worker_is_given_up(workplace):
    """Without the launcher's help: worker 1 does not die, it stands still."""
    with running(2, '--sync_timeout', '10') as process:  # also the time in which the other worker must come
        os.kill(role('worker', 1), signal.SIGSTOP)
        assert process.wait(timeout=30) == 1
    assert 'worker 0 has not heard from the other workers for 10 seconds' in Path('output.txt').read_text()
    assert_no_process_is_left()


def test_bound_that_is_not_finite_ends_all(workplace):
    done = launched(2, *ARGV, '-r', '1e30', *DIST)
    assert done.returncode == 1 and 'not finite' in done.stderr and 'Traceback' not in done.stderr
    assert_no_process_is_left()


def test_full_disk_of_worker_0_ends_all(workplace):
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = launched(2, *ARGV, *FOR_EVER, *DIST, preexec_fn=small_files)
    assert done.returncode == 1 and 'is the disk full' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert_no_process_is_left()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def by_hand(port, *lines):
    """A scheduler, a server and workers with these arguments, as the README says without the launcher."""
    common = {**os.environ, 'DMLC_PS_ROOT_URI': '127.0.0.1', 'DMLC_PS_ROOT_PORT': str(port), 'DMLC_NUM_SERVER': '1',
              'DMLC_NUM_WORKER': str(len(lines)), 'DMLC_NODE_HOST': '127.0.0.1'}
    services = [subprocess.Popen([sys.executable, '-c', 'import system, mxnet'], env={**common, 'DMLC_ROLE': name})
                for name in ('scheduler', 'server')]
    started = [subprocess.Popen([sys.executable, ROOT / 'train_mnist.py', *argv], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={**common, 'DMLC_ROLE': 'worker', 'DMLC_TASK_ID': task})
               for task, argv in lines]
    try:
        yield started
    finally:
        for process in (*services, *started):
            process.kill()
            process.wait()


def test_workers_with_different_arguments(workplace):
    with by_hand(free_port(), ('0', [*ARGV, *DIST]), ('1', [*ARGV, *DIST, '--clip_norm', '3'])) as started:
        outputs = [process.communicate(timeout=TIME_OUT) for process in started]
    for process, (out, err) in zip(started, outputs):
        assert process.returncode == 2 and not out
        assert 'worker 1 differs from worker 0: clip_norm is not the same' in err and len(err.splitlines()) == 1
    assert not os.path.exists('results') or os.listdir('results') == []


def test_workers_with_the_same_number(workplace):
    with by_hand(free_port(), ('1', [*ARGV, *DIST]), ('1', [*ARGV, *DIST])) as started:
        outputs = [process.communicate(timeout=TIME_OUT) for process in started]
    for process, (_, err) in zip(started, outputs):
        assert process.returncode == 2 and 'DMLC_TASK_ID must be 0 ... 1, once each' in err


def test_workers_with_other_packages_or_images(monkeypatch):
    group, facts = workers.Workers(0, 2, 60), {'mxnet': '1.9.1', 'training images (CRC-32)': 1}
    for k, name in enumerate(facts, start=1):
        monkeypatch.setattr(group, 'sum', lambda table, k=k: table + [[0] * 3, table[0] + np.eye(3)[k]])
        with pytest.raises(workers.WorkersError, match=re.escape(f'worker 1 differs from worker 0: {name} is')):
            group.check_same(facts)
    monkeypatch.setattr(group, 'sum', lambda table: table + [[0] * 3, table[0]])
    group.check_same(facts)


def test_no_scheduler(workplace, monkeypatch, capsys):
    for name, value in {'ROLE': 'worker', 'PS_ROOT_URI': '127.0.0.1', 'PS_ROOT_PORT': str(free_port()),
                        'NUM_SERVER': '1', 'NUM_WORKER': '2', 'TASK_ID': '0'}.items():
        monkeypatch.setenv(f'DMLC_{name}', value)
    done = subprocess.run([sys.executable, ROOT / 'train_mnist.py', *ARGV, *DIST, '--sync_timeout', '2'],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and 'no scheduler answers at 127.0.0.1:' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_worker_that_refuses_ends_all(workplace):
    shutil.rmtree('data')
    done = launched(2, *ARGV, *DIST, env={**os.environ, 'DRAW_MNIST_MIRROR': 'http://127.0.0.1:9/', 'no_proxy': '*'})
    assert done.returncode == 2 and 'data does not hold MNIST' in done.stderr
    assert_no_process_is_left()


def test_one_worker_is_enough(workplace):
    done = launched(1, *ARGV, *DIST)
    assert done.returncode == 0 and 'ended' not in done.stderr, done.stderr
    assert_close(only_folder('results'), train(logdir='one'))
    assert_no_process_is_left()


def test_workers_share_the_processors(workplace, monkeypatch):
    """Unless the user has set the number of threads; a service gets one."""
    Path('show.py').write_text('import os; print("threads", os.environ.get("OMP_NUM_THREADS"))')
    processors, shown = len(os.sched_getaffinity(0)), []
    for name, value in (('OMP_NUM_THREADS', None), ('OMP_NUM_THREADS', '7'), ('MXNET_OMP_MAX_THREADS', '3')):
        environment = {key: text for key, text in os.environ.items() if key != 'OMP_NUM_THREADS'}
        command = [sys.executable, '-m', 'distributed.launch', '-n', '2', 'show.py']
        done = subprocess.run(command, env={**environment, **({name: value} if value else {})}, text=True,
                              stdout=subprocess.PIPE, timeout=TIME_OUT)
        shown.append(done.stdout.split('\n')[:-1])
    threads = f'threads {max(1, processors // 2)}'
    assert shown == [[threads, threads], ['threads 7', 'threads 7'], ['threads None', 'threads None']]


@pytest.mark.parametrize('stored, argv, expected', [
    ({'gpus': '0,1'}, ['--cpu_contexts', '1'], (False, None, 1)), ({'gpu': True}, ['--gpus=0,1'], (False, '0,1', 1)),
    ({'cpu_contexts': 2}, ['--gpu'], (True, None, 1)), ({'cpu_contexts': 2}, [], (False, None, 2))], ids=str)
def test_resume_on_other_devices(workplace, stored, argv, expected):
    folder = train(logdir='results')
    config = storage.read_config(folder)
    config['arguments'].update(stored)
    storage.write_config(folder, config)
    args = train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), ['--resume', str(folder), *argv])
    assert (args.gpu, args.gpus, args.cpu_contexts) == expected


def test_run_from_before_the_new_arguments(workplace):
    folder = train('--lr_decay', '0', logdir='results')
    config = storage.read_config(folder)
    for name in ('lr_decay', 'gpus', 'cpu_contexts', 'kvstore', 'sync_timeout'):
        del config['arguments'][name]
    storage.write_config(folder, config)
    assert train_mnist.main(['--resume', str(folder), '-t', '640']) == 0
    assert_same_parameters(folder, train('--lr_decay', '0', '-t', '640', logdir='whole'), 'last.safetensors')


# Arguments

def refusal(capsys, main, *argv):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize('argv, reason', [
    (['--gpus', '0,0'], "'0,0' is not a list of different whole numbers"),
    (['--gpus', '0,'], "'0,'"), (['--gpus', '-1'], '--gpus'), (['--gpus', 'all'], "'all'"),
    (['--gpu', '--gpus', '0'], 'only one of'), (['--cpu_contexts', '2', '--gpu'], 'only one of'),
    (['--kvstore', 'horovod'], 'horovod'), (['--kvstore', 'dist_sync'], 'distributed.launch sets them'),
    (['--cpu_contexts', '3'], '64 images cannot be shared evenly by 3 devices'),
    (['--cpu_contexts', '65'], 'at most 64'), (['--sync_timeout', '1e6'], 'at most 86400'),
    (['--sync_timeout', '0'], '--sync_timeout')], ids=str)
def test_bad_options_of_training(workplace, capsys, argv, reason):
    assert reason in refusal(capsys, train_mnist.main, *argv)
    assert os.listdir() == ['data']


@pytest.mark.parametrize('changes, reason', [
    ({'DMLC_TASK_ID': None}, 'needs DMLC_TASK_ID'), ({'DMLC_TASK_ID': '2'}, 'DMLC_TASK_ID is 2, but with 2 workers'),
    ({'DMLC_NUM_WORKER': 'two'}, "DMLC_NUM_WORKER must be a number, not 'two'"),
    ({'DMLC_TASK_ID': None, '--kvstore': 'device'}, 'use dist_sync'),
    ({'DMLC_NUM_WORKER': '3'}, '64 images cannot be shared evenly by 3 devices')], ids=str)
def test_bad_environment(workplace, monkeypatch, capsys, changes, reason):
    changes = dict(changes)
    kvstore = changes.pop('--kvstore', 'dist_sync')
    for name, value in {'DMLC_ROLE': 'worker', 'DMLC_PS_ROOT_URI': '127.0.0.1', 'DMLC_PS_ROOT_PORT': '9',
                        'DMLC_NUM_SERVER': '1', 'DMLC_NUM_WORKER': '2', 'DMLC_TASK_ID': '0', **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert reason in refusal(capsys, train_mnist.main, '--kvstore', kvstore)


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
def test_gpus_without_cuda(workplace, capsys):
    assert 'CUDA' in refusal(capsys, train_mnist.main, '--gpus', '0,1')


@pytest.mark.parametrize('argv, reason', [
    (['-n', '2'], 'SCRIPT'), (['train_mnist.py'], '--num_workers'), (['-n', '0', 'data/x'], '--num_workers'),
    (['-n', '2', 'nothing.py'], 'nothing.py is not a file'), (['-n', '2', '--port', '70000', __file__], '--port'),
    (['-n', '2', '--hosts', 'a,', __file__], '--hosts'),
    (['-n', '2', '--address', '203.0.113.1', __file__], 'cannot listen at 203.0.113.1')], ids=str)
def test_bad_options_of_the_launcher(workplace, capsys, argv, reason):
    assert reason in refusal(capsys, launch.main, *argv)


def test_port_in_use(workplace, capsys):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        assert f'cannot listen at 127.0.0.1, port {port}' in refusal(capsys, launch.main, '-n', '2', '--port', port,
                                                                    ROOT / 'train_mnist.py')


def test_hosts_are_reached_by_ssh(workplace, monkeypatch):
    """With a stand-in for ssh that runs the command here and notes the host."""
    Path('bin').mkdir()
    Path('bin/ssh').write_text('#!/bin/sh\necho "$5" >> hosts.txt\nexec sh -c "$6"\n')
    Path('bin/ssh').chmod(0o755)
    monkeypatch.setenv('PATH', f'{Path("bin").resolve()}:{os.environ["PATH"]}')
    monkeypatch.setenv('DMLC_NODE_HOST', '127.0.0.1')
    done = launched(2, *ARGV, *DIST, options=['--hosts', 'left,right', '--address', '127.0.0.1'])
    assert done.returncode == 0, done.stderr
    assert sorted(Path('hosts.txt').read_text().split()) == ['left', 'left', 'right']  # a server too
    assert json.loads((only_folder('results') / 'config.json').read_text())['samples_seen'] == 320
    assert_no_process_is_left()
