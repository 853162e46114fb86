"""system/memory.py: how much memory there is, and trainings that need more."""
import os
import subprocess
import sys

from system import memory

import pytest

import train_mnist
from commands import ARGV, BATCH, ROOT, parse, refusal
from distributed.workers import Alone
from runs import storage


def test_of_the_machine():
    assert 0 < memory.available() <= os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def test_below_a_limit_on_the_address_space():
    line = f'ulimit -v 1000000; {sys.executable} -c "from system import memory; print(memory.available())"'
    done = subprocess.run(['bash', '-c', line], cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          capture_output=True, text=True, timeout=60)
    assert 0 <= int(done.stdout) < 1024 * 10 ** 6, done.stderr


STAT = 'anon 6000\nfile 900\ninactive_file 500\nactive_file 400\n'


@pytest.mark.parametrize('most, stat, free', [
    (9000, STAT, 9000 - 7000 + 500), (7000, STAT, 500), (5000, STAT, 0), ('max', STAT, None), (9000, 'anon 6\n', 2000)])
def test_in_a_container(tmp_path, monkeypatch, most, stat, free):
    """None: as many as the machine has."""
    monkeypatch.setattr(memory, '_CONTAINER', f'{tmp_path}/memory.')
    of_the_machine = memory.available()
    (tmp_path / 'memory.max').write_text(f'{most}\n')
    (tmp_path / 'memory.current').write_text('7000\n')
    (tmp_path / 'memory.stat').write_text(stat)
    assert memory.available() == free if free is not None else memory.available() > of_the_machine / 2


def test_what_a_training_needs(workplace):
    nets = [storage.build_net(vars(parse(*ARGV, '-s', steps, '-u', '8', '-l', '4'))) for steps in ('3', '6')]
    three, six = (train_mnist.memory_needed(net, 16, 1) for net in nets)
    assert six - three == 4 * 16 * 3 * 2 * (2 * 784 + 2 * 4 + 12 * 8)  # bytes, images, steps, gradients too
    assert train_mnist.memory_needed(nets[0], 16, 2) - three == 16 * storage.num_weights(nets[0])


def test_a_training_that_needs_more_is_refused(workplace, capsys, monkeypatch):
    monkeypatch.setattr(train_mnist.memory, 'available', lambda: 2 ** 15)
    line = refusal(capsys, train_mnist.main, *ARGV)
    assert 'of memory or more, but there are 0.0' in line
    assert os.listdir('results') == []


def test_the_workers_of_a_host_need_memory_for_their_parts_of_the_batch(workplace, capsys, monkeypatch):
    group, asked = Alone(), []
    group.size, group.num_here = 4, lambda: 2
    monkeypatch.setattr(train_mnist.workers, 'join', lambda *_: group)
    monkeypatch.setattr(train_mnist, 'memory_needed', lambda net, batch_size, _: asked.append(batch_size) or 2 ** 60)
    assert 'needs 2,147,483,648.0 GiB' in refusal(capsys, train_mnist.main, *ARGV)
    assert asked == [BATCH // 4]
