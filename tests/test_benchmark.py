"""benchmarks/: the programs run, count right, refuse bad flags, and do the same work as their peers."""
import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

import core
from benchmarks import common, throughput
from runs import arguments, storage, training

ROOT = Path(__file__).resolve().parents[1]

TINY = {'batch_size': 3, 'input_height': 4, 'input_width': 5, 'num_steps': 2, 'num_recurrent_units': 6,
        'latent_dim': 2, 'read_size': 2, 'write_size': 3}
TINY_FLAGS = [text for name, value in TINY.items() for text in (f'--{name}', str(value))]
PEERS = all(map(importlib.util.find_spec, ('torch', 'jax')))


def start(script, *flags):
    return subprocess.run([sys.executable, *script.split(), *TINY_FLAGS, *flags], capture_output=True, text=True,
                          timeout=120)


def last_json(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('flags', [(), ('--attention',), ('--attention', '--cpu_contexts', '3')])
def test_throughput(flags):
    result = last_json(start('-m benchmarks.throughput', '--iterations', '5', *flags))
    for key in ('samples_per_s', 'first_step_s', 'step_s', 'peak_memory_mib', 'sgemm_gflops'):
        assert 0 < result[key] < float('inf'), key
    assert 0 <= result['floor_share'] < 1
    assert result['samples_per_s'] == pytest.approx(TINY['batch_size'] / result['step_s'], rel=0.01)
    assert result['attention'] == bool(flags)
    assert {key: result[key] for key in TINY} == TINY


@pytest.mark.parametrize('num_workers', [1, 3])
def test_scaling(num_workers):
    command = ['-m', 'benchmarks.scaling', *TINY_FLAGS, '--attention', '--iterations', '2']
    if num_workers > 1:
        command = ['-m', 'distributed.launch', '-n', str(num_workers), *command, '--kvstore', 'dist_sync']
    result = last_json(subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120))
    weights = sum(int(np.prod(shape)) for shape in common.parameter_shapes(Namespace(**TINY, attention=True)).values())
    assert (result['workers'], result['weights'], result['batch_size']) == (num_workers, weights, TINY['batch_size'])
    assert result['mbytes_each_way'] == pytest.approx(4e-6 * weights, abs=0.01)
    assert all(0 < result[name] < float('inf') for name in ('samples_per_s', 'first_step_s', 'peak_memory_mib'))
    assert (result['exchange_ms'] > 0) == (num_workers > 1)


def test_profile_names_single_operators():
    done = start('-m benchmarks.throughput', '--attention', '--profile', '--iterations', '2')
    result = last_json(done)
    assert result['operators_ms']['FullyConnected'] > 0
    assert result['operators_ms']['_backward_FullyConnected'] > 0
    assert not [name for name in result['operators_ms'] if ',' in name]  # a bulk is a list of names
    assert len(done.stdout.splitlines()) == 1 + 15 + 1 + 1 + 1  # header, operators, others, total, JSON


def test_memory_steps():
    memory = last_json(start('-m benchmarks.throughput', '--memory_steps', '101'))['memory_mib']
    assert list(memory) == ['100', '101']
    assert all(mib > 20 for mib in memory.values())


@pytest.mark.parametrize('flags, words', [
    (['--iterations', '0'], '--iterations'),
    (['--memory_steps', '-1'], '--memory_steps'),
    (['--attention', '--read_size', '5'], '--read_size'),
    (['--compile'], '--peers'),
    (['--gpu', '--peers'], '--gpu'),
    (['--profile', '--peers'], '--profile'),
])
def test_bad_flags_get_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        throughput.main([*TINY_FLAGS, *flags])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.err.count('\n') == 1 and words in captured.err and not captured.out


@pytest.mark.parametrize('error, code', [
    (training.NotFinite('the bound is not finite'), 2), (mx.MXNetError('Stack:\n  no memory'), 2),
    (KeyboardInterrupt(), 130)], ids=repr)
def test_end_in_the_middle_gets_one_line(monkeypatch, capsys, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(throughput, 'time_steps', fail)
    try:
        ended = throughput.main(TINY_FLAGS)
    except SystemExit as stop:
        ended = stop.code
    assert ended == code and capsys.readouterr().err.count('\n') == (code < 130)


def test_output_that_nobody_reads():
    line = f'{sys.executable} -m benchmarks.throughput {" ".join(TINY_FLAGS)} --iterations 1 | true'
    done = subprocess.run(['bash', '-c', f'set -o pipefail; {line}'], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0 and not done.stderr


def test_python_without_the_peers_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(throughput.importlib.util, 'find_spec', lambda name: None if name == 'jax' else name)
    with pytest.raises(SystemExit) as caught:
        throughput.main(['--peers'])
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.count('\n') == 1 and 'jax cannot' in message and 'benchmarks/requirements.txt' in message


def test_busy_process_computes_until_the_end():
    with throughput.busy_process() as process:
        for _ in range(600):  # a minute at most, on a machine that has other work
            ticks = int(Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()[11])
            if ticks > 20:
                break
            time.sleep(0.1)
    assert ticks > 20 and process.returncode == -signal.SIGKILL


def test_busy_runs_beside_the_steps(monkeypatch):
    started = []
    monkeypatch.setattr(throughput, 'busy_process', lambda: started.append('busy') or contextlib.nullcontext())
    monkeypatch.setattr(throughput, 'time_steps', lambda *_: started.append('steps'))
    assert throughput.main(['--busy', '--cpu_contexts', '1']) == 0
    assert throughput.main(['--cpu_contexts', '1']) == 0
    assert started == ['busy', 'steps', 'steps']


def test_rounds_alternate_and_take_medians(monkeypatch, capsys):
    order, speeds = [], iter([10, 5, 20, 30, 8, 20, 20, 2, 20])

    def run(command, **_):
        order.append(command[1])
        result = {'samples_per_s': next(speeds), 'first_step_s': 1, 'peak_memory_mib': 1}
        return subprocess.CompletedProcess(command, 0, f'text\n{json.dumps(result)}\n', '')

    monkeypatch.setattr(throughput.subprocess, 'run', run)
    throughput.compare(Namespace(**TINY, attention=True, iterations=1, rounds=3, compile=False, cpu_contexts=1))
    assert order == ['-m', *(str(ROOT / 'benchmarks' / name) for name in ('draw_torch.py', 'draw_jax.py'))] * 3
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result['samples_per_s'] == 20
    assert {name: row['ratio'] for name, row in result['medians'].items()} == {'ours': 1, 'torch': 4, 'jax': 1}


def test_contexts_have_as_many_threads_together_as_a_peer(monkeypatch, capsys):
    started = []

    def run(command, env, **_):
        started.append((Path(command[1]).name, '--cpu_contexts' in command, env['OMP_NUM_THREADS']))
        result = {'samples_per_s': 1, 'first_step_s': 1, 'peak_memory_mib': 1}
        return subprocess.CompletedProcess(command, 0, json.dumps(result), '')

    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setattr(throughput.subprocess, 'run', run)
    throughput.compare(Namespace(**TINY, attention=True, iterations=1, rounds=1, compile=False, cpu_contexts=3))
    assert started == [('-m', False, '6'), ('-m', True, '2'), ('draw_torch.py', False, '6'),
                       ('draw_jax.py', False, '6')]


def test_a_failing_peer_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(throughput, 'check_peers', lambda *_: None)
    monkeypatch.setattr(throughput.subprocess, 'run',
                        lambda command, **_: subprocess.CompletedProcess(command, 3, '', 'Traceback\nout of memory\n'))
    assert throughput.main(['--peers', '--cpu_contexts', '1']) == 1
    assert capsys.readouterr().err == 'throughput.py: ours failed with exit code 3: out of memory\n'


def test_multiply_adds_by_hand():
    # 6 units, 24 gates, z of 2, 4x5 images. Once per image: 20 * 24 = 480. Per step: encoder (20 + 12) * 24 = 768,
    # q 6 * 4 = 24, decoder (2 + 6) * 24 = 192, write 6 * 20 = 120; in all 1104.
    assert throughput.multiply_adds(Namespace(**TINY, attention=False)) == 3 * 3 * (480 + 2 * 1104)
    # Per step: encoder (8 + 12) * 24 = 480, q 24, decoder 192, two windows 2 * 30 = 60, patch 6 * 9 = 54, two glimpses
    # of 2*4 * 5 + 2*5 * 2 = 60, i.e. 120, write 3*3 * 5 + 4*3 * 5 = 105; in all 1035.
    assert throughput.multiply_adds(Namespace(**TINY, attention=True)) == 3 * 3 * 2 * 1035


def make_net(attention):
    net = storage.build_net({**TINY, 'attention': attention})
    net.initialize()
    return net, net._collect_params_with_prefix()


@pytest.mark.parametrize('attention', [False, True])
def test_peers_have_our_parameters(attention):
    _, parameters = make_net(attention)
    assert common.parameter_shapes(Namespace(**TINY, attention=attention)) == {
        name: parameter.shape for name, parameter in parameters.items()}


def test_peers_have_our_defaults():
    args = arguments.parse_args(throughput.cli.Parser(prog='test'), [])
    assert {name: getattr(args, name) for name in common.SIZES} == common.SIZES


@pytest.mark.skipif(not PEERS, reason='needs benchmarks/requirements.txt')
@pytest.mark.parametrize('peer', ['torch', 'jax'])
@pytest.mark.parametrize('attention', [False, True])
def test_peers_agree_on_loss_and_gradients(peer, attention, tmp_path):
    net, parameters = make_net(attention)
    rng = np.random.default_rng(3)
    for parameter in parameters.values():
        parameter.set_data(nd.array(rng.normal(scale=0.5, size=parameter.shape)))
    x = (rng.random((TINY['batch_size'], 20)) > 0.5).astype(np.float32)
    eps = rng.standard_normal((TINY['num_steps'], TINY['batch_size'], TINY['latent_dim'])).astype(np.float32)
    with autograd.record():
        reconstruction, kl = core.DRAWLoss()(*net(nd.array(x), nd.array(eps)), nd.array(x))
        loss = (reconstruction + kl).mean()
    loss.backward()
    arrays = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    np.savez(tmp_path / 'same.npz', x=x, eps=eps, **arrays)

    done = start(f'{ROOT}/benchmarks/draw_{peer}.py', '--agreement', str(tmp_path / 'same'),
                 *['--attention'] * attention)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / 'same.out.npz') as theirs:
        assert set(theirs) == {'loss', *parameters}
        np.testing.assert_allclose(theirs['loss'], loss.asscalar(), rtol=1e-5)
        for name, parameter in parameters.items():
            ours = parameter.grad().asnumpy()
            assert np.abs(ours).max() > 1e-6, name
            np.testing.assert_allclose(theirs[name], ours, rtol=1e-3, atol=1e-5 * np.abs(ours).max() + 1e-6,
                                       err_msg=name)


@pytest.mark.skipif(not PEERS, reason='needs benchmarks/requirements.txt')
def test_comparison_with_the_peers():
    result = last_json(start('-m benchmarks.throughput', '--peers', '--rounds', '1', '--iterations', '1'))
    assert list(result['medians']) == ['ours', 'torch', 'jax']
    assert len({run['num_parameters'] for runs in result['runs'].values() for run in runs}) == 1
