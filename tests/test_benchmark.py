"""benchmarks/: the peers do the same work, and the comparison counts right."""
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from argparse import Namespace

import mxnet as mx
import numpy as np
import pytest

from benchmarks import chart, common, draw_gluon, limits, scaling, throughput
from distributed.workers import Alone
from runs import config, params
from runs.training import Training
from small_runs import refusal

TINY = {'batch_size': 3, 'input_height': 4, 'input_width': 5, 'num_steps': 2, 'num_recurrent_units': 6,
        'latent_dim': 2, 'read_size': 2, 'write_size': 3}
FLAGS = [f'--{name}={value}' for name, value in TINY.items()]
PEERS = [name for name in ('torch', 'jax') if importlib.util.find_spec(name)]
SIZES = {attention: Namespace(**TINY, attention=attention) for attention in (False, True)}
both_models = pytest.mark.parametrize('attention', SIZES, ids=['none', 'attention'])


def start_training(attention):
    return Training(config.parse_args([*common.size_flags(SIZES[attention]), '-t=9']), [mx.cpu()], Alone())


@both_models
def test_peers_have_our_sizes_and_parameters(attention):
    arrays = params.arrays_of(start_training(attention).net)
    assert {name: array.shape for name, array in arrays.items()} == common.parameter_shapes(SIZES[attention])
    defaults = config.parse_args(['--attention', '--input_height=28', '--input_width=28'])
    assert common.SIZES.items() <= vars(defaults).items()


PEER = '''import argparse, sys, numpy
from benchmarks import common, draw_{} as peer
values = dict(numpy.load(sys.argv[1]))
x, eps = values.pop('x'), values.pop('eps')
loss, gradients = peer.loss_and_gradients(common.parse_args(argparse.ArgumentParser(), sys.argv[2:]), values, x, eps)
numpy.savez(sys.argv[1], loss=loss, **gradients)'''


@both_models
@pytest.mark.parametrize('peer', PEERS or [pytest.param('', marks=pytest.mark.skip('neither PyTorch nor JAX is here'))])
def test_peers_agree_on_loss_and_gradients(peer, attention, tmp_path):
    training, rng, path = start_training(attention), np.random.default_rng(3), tmp_path / 'values.npz'
    arrays = {name: rng.normal(scale=0.5, size=array.shape).astype('float32')
              for name, array in params.arrays_of(training.net).items()}
    params.set_arrays(training.net, arrays)
    x, eps = (rng.random((3, 20)) > 0.5).astype('float32'), rng.standard_normal((2, 3, 2), 'float32')
    with mx.autograd.record():
        loss = sum(training.loss(*training.forward(mx.nd.array(x), mx.nd.array(eps)), mx.nd.array(x))).mean()
    loss.backward()
    np.savez(path, x=x, eps=eps, **arrays)
    subprocess.run([sys.executable, '-c', PEER.format(peer), path, *FLAGS, *['--attention'] * attention], check=True)
    theirs = np.load(path)
    np.testing.assert_allclose(theirs['loss'], loss.asscalar(), rtol=1e-5)
    for name, parameter in params.of(training.net).items():
        ours = parameter.grad().asnumpy()
        assert np.abs(ours).max() > 1e-6, name
        np.testing.assert_allclose(theirs[name], ours, rtol=1e-3, atol=1e-5 * np.abs(ours).max() + 1e-6, err_msg=name)


def test_multiply_adds_by_hand():
    # 6 units, 24 gates, z of 2, 4x5 images. Once per image: 20 * 24 = 480. Per step: encoder (20 + 12) * 24 = 768,
    # q 6 * 4 = 24, decoder (2 + 6) * 24 = 192, write 6 * 20 = 120; in all 1104.
    assert limits.multiply_adds(SIZES[False]) == 3 * (2 * 480 + 3 * 2 * 1104)
    # Per step: encoder (8 + 12) * 24 = 480, q 24, decoder 192, two windows 2 * 30 = 60, patch 6 * 9 = 54, two glimpses
    # of 2*4 * 5 + 2*5 * 2 = 60, i.e. 120, write 3*3 * 5 + 4*3 * 5 = 105; in all 1035.
    assert limits.multiply_adds(SIZES[True]) == 3 * 3 * 2 * 1035


def test_profile_divides_a_step(monkeypatch, capsys):
    clock = (2 ** (k % 14) / 1000 for k in itertools.count())  # a step looks at it fourteen times
    monkeypatch.setattr(draw_gluon, 'time', Namespace(perf_counter=lambda: next(clock)))
    draw_gluon.main([*FLAGS, '--blocks=1', '--profile'])
    rows = re.findall(r'^\| (\w.*?) \| ([\d.]+) \| .*\| ([\d.]*) \|$', capsys.readouterr().out, re.MULTILINE)
    stages = [('images and noise', 4 - 2, ''), ('forward', 64 - 8, 32 - 16), ('loss', 256 - 128, ''),
              ('backward', 8192 - 1 - 2 - 56 - 128 - 2048, 1024 - 512), ('clipping and Adam', 4096 - 2048, '')]
    assert rows == [(name, f'{ms:.1f}', f'{inside:.1f}' if inside else '') for name, ms, inside in stages]


def test_scaling_of_one_worker(capsys):
    scaling.main(common.size_flags(SIZES[True]))
    result = json.loads(capsys.readouterr().out)
    assert result['weights'] == sum(map(np.prod, common.parameter_shapes(SIZES[True]).values()))
    assert result['workers'] == 1 and result['samples_per_s'] > 0


@pytest.mark.parametrize('program, load', [('fused', 'quiet'), ('graph', 'busy'), *((peer, 'quiet') for peer in PEERS)])
def test_programs_run(program, load, tmp_path):
    throughput.main([str(tmp_path / 'r.json'), *FLAGS[1:], '--batch_sizes=3', '--models=attention', '--threads=1',
                     f'--loads={load}', f'--programs={program}', '--rounds=1', '--blocks=1'])
    run, = json.loads((tmp_path / 'r.json').read_text())['runs']
    assert [run[name] for name in ('program', *chart.CASE)] == [program, 'attention', 2, 3, 1, load]
    assert min(run['samples_per_s'], run['first_step_s'], run['peak_memory_mib']) > 0
    if program == 'fused':  # multiply-adds per image, as counted above
        assert run['share_of_peak'] == pytest.approx(2e-9 * 6210 * run['samples_per_s'] / run['peak_gflops'], rel=0.01)


def test_rounds_alternate_and_medians_are_compared(monkeypatch, tmp_path, capsys):
    path, speeds = tmp_path / 'r.json', {'fused': iter([30., 10., 20.]), 'jax': iter([2., 8., 5.])}
    monkeypatch.setattr(throughput.importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(throughput, 'run', lambda program, _: {
        'version': program, 'samples_per_s': next(speeds[program]), 'first_step_s': 1., 'peak_memory_mib': 100.})
    throughput.main([str(path), '--models=none', '--loads=quiet', '--programs', 'fused', 'jax'])
    runs = json.loads(path.read_text())['runs']
    assert [run['program'] for run in runs] == ['fused', 'jax'] * 3
    assert '| quiet | 20 | 5 | 4.00 |' in capsys.readouterr().out
    chart.main([str(path), str(tmp_path / 'speed.png')])
    assert (tmp_path / 'speed.png').read_bytes().startswith(b'\x89PNG')
    assert [bar.get_width() for bar in chart.figure(runs).axes[0].patches] == [20, 5]


@pytest.mark.parametrize('flags, words', [
    ([], 'jax'), (['--rounds', '0'], '--rounds'), (['--programs=fused', '--num_steps=50000'], 'steps of 28x28')])
def test_bad_input_gets_one_line(flags, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(throughput.importlib.util, 'find_spec', lambda name: None if name == 'jax' else name)
    with pytest.raises(SystemExit, match='2'):
        throughput.main([str(tmp_path / 'r.json'), *flags])
    assert words in (error := capsys.readouterr().err) and error.count('\n') == 1


@pytest.mark.parametrize('program, flags, words', [
    (draw_gluon, ['--blocks=0'], '--blocks'), (scaling, ['--attention', '-ar', '40'], '--read_size')])
def test_bad_sizes_get_one_line(program, flags, words, capsys):
    assert words in refusal(capsys, program.main, *flags)
