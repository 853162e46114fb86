"""Several devices and several workers: the same parameters as one, and an end in time when something fails."""
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import train_mnist
from commands import (
    ROOT,
    SIZES,
    TIME_OUT,
    change_arguments,
    config_of,
    new_folder,
    only_folder,
    parse,
    resume,
    samples_seen,
)
from dataset import stream
from distributed import workers
from idx import write_mnist
from launching import DIST, assert_no_process_is_left, launched, launcher, role, running
from runs import storage

pytestmark = pytest.mark.usefixtures('no_figures')

ARGV = [*SIZES, '-v', '20', '-f', '160', '--log_freq', '32', '-r', '0.01', '-t', '320']  # 20 steps
FOR_EVER = ['-t', '1e8', '-f', '1e8', '--checkpoint_freq', '64', '--lr_decay', '0']


def train(*argv, logdir):
    """A training in this process; its folder."""
    assert train_mnist.main([*ARGV, *argv, '--logdir', logdir]) == 0
    return only_folder(logdir)


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


# Exactness: 20 steps with the same images and the same noise

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """{attention: a run of one process with one context}."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        for attention in (False, True):
            folder = new_folder(tmp_path_factory)
            patch.chdir(folder)
            runs[attention] = folder / train(*['--attention'] * attention, logdir='results')
    return runs


@pytest.mark.parametrize('attention, kvstore', [(False, 'device'), (True, 'local')])
def test_two_cpu_contexts_train_as_one(workplace, one, attention, kvstore):
    argv = [*['--attention'] * attention, '--cpu_contexts', '2', '--kvstore', kvstore]
    two, again = (train(*argv, logdir=name) for name in ('two', 'again'))
    assert_close(two, one[attention])
    assert (two / 'last.safetensors').read_bytes() == (again / 'last.safetensors').read_bytes()


@pytest.mark.parametrize('num_workers, more', [
    (2, ['--attention', '--cpu_contexts', '2']),
    *(pytest.param(number, more, marks=pytest.mark.exhaustive) for number, more in (
        (2, ['--attention']), (4, []), (2, ['--cpu_contexts', '2']), (1, [])))], ids=str)
def test_workers_train_as_one_process(workplace, one, num_workers, more):
    done = launched(num_workers, *ARGV, *more)
    assert done.returncode == 0 and 'ended' not in done.stderr, done.stderr
    folder, whole = only_folder('results'), one['--attention' in more]  # of worker 0 alone
    assert_close(folder, whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert done.stdout.count('Run folder') == done.stdout.count('10 samples') == 1
    assert_no_process_is_left()


def test_resume_with_another_number_of_workers(workplace):
    """1 worker, then 2, then 1 with 2 contexts, end as 1 from the beginning to the end; from the same model."""
    model = train('-t', '16', logdir='model')
    argv = ['--lr_decay', '0', '--init', str(model), '--seed', '3']
    whole = train(*argv, logdir='whole')
    folder = train(*argv, '-t', '96', logdir='results')
    done = launched(2, '--resume', folder, '-t', '192')
    assert done.returncode == 0, done.stderr
    one = 'CPU (contexts x threads: 1 x 1)'
    assert f'Note: {one} before, 2 workers, each {one} now.' in done.stdout
    assert resume(folder, '-t', '320', '--kvstore', 'local', '--cpu_contexts', '2') == 0
    assert [sitting['samples_seen'] for sitting in config_of(folder)['resumed']] == [96, 192]
    assert_same_parameters(folder, whole, 'last.safetensors')


class Alike(workers.Alone):
    """Stands in for Workers: `rank` of `size`, and nobody there."""

    def __init__(self, rank, size):
        super().__init__()
        self.rank, self.size = rank, size


def test_every_image_of_an_epoch_is_read_once(workplace):
    """Also where batches straddle the epochs."""
    images = stream.load('mnist', 'data', (28, 28))['train']
    args = parse(*ARGV, '-b', '12')
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


@pytest.mark.parametrize('stored, argv, expected', [
    ({'gpus': '0,1', 'cpu_contexts': None}, ['--cpu_contexts', '1'], (False, None, 1)),
    ({'gpu': True, 'cpu_contexts': None}, ['--gpus=0,1'], (False, '0,1', None)),
    ({'cpu_contexts': 2}, ['--gpu'], (True, None, None)), ({'cpu_contexts': 2}, [], (False, None, 2))], ids=str)
def test_resume_on_other_devices(run, stored, argv, expected):
    change_arguments(run, **stored)
    args = parse('--resume', str(run), *argv)
    assert (args.gpu, args.gpus, args.cpu_contexts) == expected


# Faults of a training

def has_checkpoint():
    return bool(list(Path('results').glob('2*/checkpoint.safetensors')))


def two_for_ever(*argv, options=()):
    """A launcher whose training has written a checkpoint."""
    line = launcher(2, ROOT / 'train_mnist.py', *ARGV, *FOR_EVER, *DIST, *argv, options=options)
    return running(line, has_checkpoint)


def test_death_of_one_ends_all_and_resume_goes_on(workplace):
    with two_for_ever() as process:
        os.kill(role('worker', 1), signal.SIGKILL)
        assert process.wait(timeout=20) == 1
    assert_no_process_is_left()
    assert 'worker 1 ended with exit code 137' in Path('output.txt').read_text().splitlines()[-1]
    folder = only_folder('results')
    assert resume(folder, '-t', samples_seen(folder) + 64, '-f', '64', '--kvstore', 'local') == 0


def test_signal_stops_all_workers_at_one_step(workplace):
    with two_for_ever(options=['-s', '2']) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    folder, output = only_folder('results'), Path('output.txt').read_text()
    assert f'Stopped after {samples_seen(folder):,} training samples' in output
    assert f'-m distributed.launch -n 2 --num_servers=2 {ROOT / "train_mnist.py"} --resume {folder}' in output
    assert_no_process_is_left()


def test_the_only_worker_of_a_launcher_goes_on_with_it(monkeypatch):
    """Its run has --kvstore dist_sync, which nothing but a launcher can start."""
    assert 'launch' not in train_mnist.go_on('run', workers.Alone())
    monkeypatch.setenv('DMLC_ROLE', 'worker')
    assert '-m distributed.launch -n 1' in train_mnist.go_on('run', workers.Alone())


GROUP_THAT_HEARS_NOTHING = '''
import time
from distributed import workers
group = workers.Workers(0, 2, 0.2)
group._heard = time.monotonic()
group._watchman.start()
time.sleep(60)
'''


def test_silence_is_given_up():
    done = subprocess.run([sys.executable, '-c', GROUP_THAT_HEARS_NOTHING], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and 'Go on from the last checkpoint with --resume' in done.stderr
    assert 'worker 0 has not heard from the other workers for 0.2 seconds' in done.stderr


@pytest.mark.exhaustive
def test_silent_worker_is_given_up(workplace):
    """Without the launcher's help: worker 1 does not die, it stands still."""
    with two_for_ever('--sync_timeout', '10') as process:  # also the time in which the other worker must come
        os.kill(role('worker', 1), signal.SIGSTOP)
        assert process.wait(timeout=40) == 1
    assert 'worker 0 has not heard from the other workers for 10 seconds' in Path('output.txt').read_text()
    assert_no_process_is_left()


@pytest.mark.exhaustive
def test_bound_that_is_not_finite_ends_all(workplace):
    done = launched(2, *ARGV, '-r', '1e30')
    assert done.returncode == 1 and 'not finite' in done.stderr and 'Traceback' not in done.stderr
    assert_no_process_is_left()


@pytest.mark.exhaustive
def test_full_disk_of_worker_0_ends_all(workplace):
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = launched(2, *ARGV, *FOR_EVER, preexec_fn=small_files)
    assert done.returncode == 1 and 'File too large' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert_no_process_is_left()


def test_worker_that_refuses_ends_all(workplace):
    shutil.rmtree('data')
    done = launched(2, *ARGV)
    assert done.returncode == 2 and done.stderr.count("MNIST is not in 'data'") == 1
    assert len(done.stderr.splitlines()) == 2 and 'ended with exit code 2' in done.stderr
    assert_no_process_is_left()


def free_ports(number):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(('127.0.0.1', 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port():
    return free_ports(1)[0]


@contextlib.contextmanager
def by_hand(*lines, script=ROOT / 'train_mnist.py', environments=({}, {})):
    """A scheduler, a server and two workers with these arguments, as the README says without the launcher."""
    common = {**os.environ, 'DMLC_PS_ROOT_URI': '127.0.0.1', 'DMLC_PS_ROOT_PORT': str(free_port()),
              'DMLC_NUM_SERVER': '1', 'DMLC_NUM_WORKER': '2', 'DMLC_NODE_HOST': '127.0.0.1'}
    services = [subprocess.Popen([sys.executable, '-c', 'import system, mxnet'], env={**common, 'DMLC_ROLE': name})
                for name in ('scheduler', 'server')]
    started = [subprocess.Popen([sys.executable, script, *argv], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                env={**common, 'DMLC_ROLE': 'worker', 'DMLC_TASK_ID': str(task), **own})
               for task, (argv, own) in enumerate(zip(lines, environments))]
    try:
        yield started
    finally:
        for process in (*services, *started):
            process.kill()
            process.wait()


def test_workers_with_different_arguments(workplace):
    with by_hand([*ARGV, *DIST], [*ARGV, *DIST, '--clip_norm', '3']) as started:
        outputs = [process.communicate(timeout=TIME_OUT) for process in started]
    for process, (out, err) in zip(started, outputs):
        assert process.returncode == 2 and not out
        assert 'worker 1 differs from worker 0: clip_norm is not the same' in err and len(err.splitlines()) == 1
    assert not os.path.exists('results') or os.listdir('results') == []


TOLD = '''
import sys
import train_mnist
from distributed import workers

def connected(group, connect=workers.Workers.connect):
    connect(group)
    with open(f'worker-{group.rank}', 'w') as file:
        file.write(f'{group.kvstore.rank} in MXNet')

workers.Workers.connect = connected
sys.exit(train_mnist.main())
'''


def test_init_of_worker_0_is_that_of_all(workplace):
    """Also where MXNet counts worker 1 first, as it does when that one listens at the smaller port."""
    (workplace / 'told.py').write_text(TOLD)
    model = train('-t', '16', logdir='model')
    argv = [*ARGV, '--init', str(model), '--seed', '3', '-t', '48']
    whole = train(*argv, logdir='whole')
    environments = [{'PORT': str(port)} for port in sorted(free_ports(2), reverse=True)]
    with by_hand(*2 * [[*argv, *DIST]], script=workplace / 'told.py', environments=environments) as started:
        outputs = [process.communicate(timeout=TIME_OUT) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [Path(f'worker-{rank}').read_text() for rank in (0, 1)] == ['1 in MXNet', '0 in MXNet']
    assert_close(only_folder('results'), whole)


def test_workers_with_other_packages_or_images(monkeypatch):
    group, facts = workers.Workers(0, 2, 60), {'mxnet': '1.9.1', 'training images (CRC-32)': 1}
    for k, name in enumerate(facts, start=1):
        monkeypatch.setattr(group, 'sum', lambda table, k=k: table + [[0] * 3, table[0] + np.eye(3)[k]])
        with pytest.raises(workers.WorkersError, match=re.escape(f'worker 1 differs from worker 0: {name} is')):
            group.check_same(facts)
    monkeypatch.setattr(group, 'sum', lambda table: table + [[0] * 3, table[0]])
    group.check_same(facts)


def test_what_workers_compare(workplace, monkeypatch):
    found = []
    monkeypatch.setattr(workers.Alone, 'check_same', lambda group, facts: found.append(facts))
    train('-t', '16', logdir='one')
    write_mnist(workplace / 'data', seed=1)
    train('-t', '16', logdir='other')
    one, other = found
    assert {'seed', 'clip_norm', 'python', 'mxnet', 'numpy'} <= one.keys() and 'data_dir' not in one
    assert [name for name in one if one[name] != other[name]] == ['training images (CRC-32)']


def test_a_sum_is_a_word_from_the_others():
    group = workers.Workers(0, 2, 60)
    group._heard = 0.
    group.kvstore = SimpleNamespace(init=lambda *args: None, pushpull=lambda *args, **kwargs: None)
    group.sum(np.ones(2, np.float32))
    assert time.monotonic() - group._heard < 60


def test_workers_of_one_host(monkeypatch):
    group = workers.Workers(1, 4, 60)
    monkeypatch.setattr(group, 'sum', lambda own: own + [own[1], 0, 17, 0])
    assert group.num_here() == 2 and workers.Alone().num_here() == 1


def test_workers_with_the_same_number(monkeypatch):
    group = workers.Workers(1, 2, 60)
    monkeypatch.setattr(group, 'sum', lambda table: 2 * table)
    with pytest.raises(workers.WorkersError, match=r'DMLC_TASK_ID must be 0 ... 1, once each'):
        group.check_same({'mxnet': '1.9.1'})


def test_no_scheduler(monkeypatch):
    monkeypatch.setenv('DMLC_PS_ROOT_URI', '127.0.0.1')
    monkeypatch.setenv('DMLC_PS_ROOT_PORT', str(free_port()))
    with pytest.raises(workers.WorkersError, match=r'no scheduler answers at 127\.0\.0\.1:\d+: '):
        workers.Workers(0, 2, 0.5).connect()
