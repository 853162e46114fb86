"""The fused operator against core.DRAW and the equations, and how its library is compiled and kept."""
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

import core
import oracle
from commands import python
from conftest import ROOT
from dataset.stream import binarize
from dataset.synthetic import draw_synthetic
from fused import library, network
from fused.network import FusedDRAW, accelerate
from networks import (
    ATTENTION,
    MIXED,
    MODELS,
    assert_close,
    assert_equal,
    assert_gradients_of_the_equations,
    assert_near,
    build,
    gradients,
    random_inputs,
    random_parameters,
    resident_mebibytes,
    step,
    to_nd,
)
from runs import params
from small_runs import fail_with

# (height, width), T, units, latent dimensions, batch, read filters, write filters
CASES = [((5, 7), 3, 6, 4, 3, 2, 3), ((9, 4), 1, 33, 17, 1, 1, 1), ((17, 35), 2, 40, 70, 5, 17, 4),
         ((3, 40), 4, 8, 3, 9, 1, 3)]


def make(sizes, case=CASES[0], seed=0):
    """A network of these sizes with random parameters, these parameters, its filters, x and eps."""
    shape, num_steps, units, latent, batch, read, write = case
    sizes = {'read_size': sizes['read_size'] and read, 'write_size': sizes['write_size'] and write}
    net = build(sizes, shape, num_steps, units, latent)
    values = random_parameters(net, seed, scale=0.4 * min(1, (6 / units) ** 0.5))  # larger ones amplify rounding
    params.set_arrays(net, values)
    return (net, values, sizes, *random_inputs(batch, shape[0] * shape[1], num_steps, latent, seed))


def assert_equal_steps(net, x, eps, **tolerance):
    """Outputs, losses and every gradient of the operator are those of core.DRAW."""
    assert_close(step(net, x, eps, FusedDRAW(net, 2)), step(net, x, eps), **tolerance)


# Values and gradients

@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('sizes', MODELS)
def test_values_and_gradients_are_those_of_core(sizes, case):
    net, _, _, x, eps = make(sizes, case)
    assert_equal_steps(net, x, eps)


@pytest.mark.parametrize('sizes', MODELS)
def test_values_and_gradients_are_those_of_the_equations(sizes):
    net, values, sizes, x, eps = make(sizes)
    expected = oracle.forward(values, x, eps, net.image_shape, **sizes)
    for name, actual in zip(('canvas', 'mu', 'log_sigma'), FusedDRAW(net, 1)(*to_nd(x, eps))):
        assert_near(actual, expected[name], rtol=1e-5, atol=1e-6, message=name)
    assert_gradients_of_the_equations(net, FusedDRAW(net, 1), values, x, eps, sizes)


def test_batches_of_different_sizes_share_no_memory():
    net, *_ = make(ATTENTION)
    fused = FusedDRAW(net, 2)
    for batch in (3, 9, 2, 3):
        inputs = random_inputs(batch, 35, 3, 4, seed=batch)
        assert_close(step(net, *inputs, fused), step(net, *inputs))


@pytest.mark.parametrize('bias', [[0, 0, 25, 0, 0], [0, 0, -25, 14, 0], [9, -9, 1, -25, 1], [0, 0, -4, 2, -3]])
def test_extreme_and_clipped_windows(bias):
    """Beyond the limits of log sigma^2 and log delta~, outside the image, and narrower than a pixel."""
    net, _, _, x, eps = make(ATTENTION)
    for block in (net.read, net.write):
        block.window.bias.set_data(nd.array(bias))
        block.window.weight.set_data(block.window.weight.data() * 0.1)
    assert_equal_steps(net, x, eps)


# With attention, 64 steps amplify rounding: both are about equally far from the float64 oracle.
@pytest.mark.parametrize('model, tolerance', [('draw_w_attn', 1e-3), ('draw_wo_attn', 1e-4)])
def test_trained_models_on_digits(model, tolerance):
    net = params.load_net(ROOT / 'assets' / model)
    digits = draw_synthetic()['test'][:4].reshape(4, -1)
    eps = np.random.RandomState(0).normal(size=(net.num_steps, 4, net.latent_dim))
    assert_equal_steps(net, binarize(digits, 'dynamic', np.random.default_rng(0)), eps, tolerance=tolerance)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('sizes', MODELS)
def test_parameters_that_are_not_finite_give_a_bound_that_is_not(sizes, value):
    net, values, _, x, eps = make(sizes)
    for name in values:
        spoilt = values[name].copy()
        spoilt.flat[0] = value
        params.set_arrays(net, {**values, name: spoilt})
        steps = step(net, x, eps), step(net, x, eps, FusedDRAW(net, 1))
        expected, actual = (np.isfinite(found['reconstruction'] + found['kl']) for found in steps)
        assert (actual == expected).all(), name
        assert not np.isnan(value) or not actual.all(), name


@pytest.mark.parametrize('sizes', MODELS)
def test_several_passes_in_one_record(sizes):
    """Gradients of up to nine passes add up, with those of another network between them."""
    nets = [make(sizes, seed=seed)[0] for seed in (0, 1)]
    fused, passes = [FusedDRAW(net, 2) for net in nets], [to_nd(*random_inputs(seed=k)) for k in range(9)]
    for number in (2, 9):
        found = []
        for blocks in (nets, fused):
            with autograd.record():
                total = sum(sum(core.DRAWLoss()(*block(x, eps), x)).sum()
                            for x, eps in passes[:number] for block in blocks)
            total.backward()
            found.append([gradients(net) for net in nets])
        for expected, actual in zip(*found):
            assert_close(actual, expected)


def test_forward_alone_keeps_nothing_and_equals_the_recorded_pass():
    net, _, _, x, eps = make(ATTENTION)
    fused, (x, eps) = FusedDRAW(net, 2), to_nd(x, eps)
    alone = [output.asnumpy() for output in fused(x, eps)]
    with autograd.record():
        recorded = fused(x, eps)
    for a, b in zip(alone, recorded):
        np.testing.assert_array_equal(a, b.asnumpy())
    small, large = (fused.library.draw_floats(fused.sizes(len(x), keep)) for keep in (False, True))
    assert small < large


def test_parameters_without_gradient_change_no_other():
    net, _, _, x, eps = make(ATTENTION)
    expected = step(net, x, eps, FusedDRAW(net, 1))
    net.r_to_enc.weight.grad_req = 'null'
    del expected['r_to_enc.weight']
    assert_equal(step(net, x, eps, FusedDRAW(net, 1)), expected)


def test_what_it_cannot_do_is_refused():
    net, _, _, x, eps = make(ATTENTION)
    fused, (x, eps) = FusedDRAW(net, 1), to_nd(x, eps)
    with pytest.raises(ValueError, match='eps must be'):
        fused(x, eps[:1])
    with autograd.record():
        total = fused(x, eps)[0].sum()
    total.backward(retain_graph=True)
    with pytest.raises(mx.MXNetError):  # its memory is used up
        total.backward()
        nd.waitall()
    net.h_enc_0.grad_req = 'add'
    with autograd.record(), pytest.raises(ValueError, match="grad_req 'add'"):
        fused(x, eps)


# Other networks, which core.py computes

class OtherDRAW(core.DRAW):
    pass


class OtherRead(core.SelectiveAttentionRead):
    pass


def other_network():
    net = build(ATTENTION)
    net.__class__ = OtherDRAW
    return net


def other_read():
    net = build(ATTENTION)
    net.read.__class__ = OtherRead
    return net


def other_parameters():
    net = build(ATTENTION)
    net.h_enc_to_enc = nn.Dense(4, in_units=4)
    return net


OTHERS = [*(lambda sizes=mixed.values[0]: build(sizes) for mixed in MIXED), other_network, other_read, other_parameters]


@pytest.mark.parametrize('make_net', OTHERS)
def test_other_networks_are_not_accelerated(make_net, capsys):
    net = make_net()
    assert accelerate(net, [mx.cpu()]) is net
    assert capsys.readouterr().out.count('\n') == 1


def test_a_compiler_that_never_ends_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(library, '_load', fail_with(subprocess.TimeoutExpired('cc', 300, stderr=b'a warning')))
    with pytest.raises(library.Unavailable, match='timed out'):
        library.load()


@pytest.mark.parametrize('sizes', MODELS)
@pytest.mark.parametrize('edit', [lambda F, c: 0.99 * c, lambda F, c: F.BlockGrad(c), lambda F, c: F.clip(c, -5, 5)],
                         ids=['value', 'gradient', 'clip'])
def test_an_edited_core_is_not_accelerated(sizes, edit, monkeypatch, capsys):
    net, usual = build(sizes), core.lstm
    assert accelerate(net, [mx.cpu()]) is not net
    monkeypatch.setattr(core, 'lstm', lambda F, gates, c: usual(F, gates, edit(F, c)))
    network._compare.cache_clear()
    assert accelerate(net, [mx.cpu()]) is net
    assert 'core.py does not compute what fused/draw.c does' in capsys.readouterr().out
    with pytest.raises(cli.UserError, match='core.py'):
        accelerate(net, [mx.cpu()], 'on')


@pytest.mark.parametrize('limits', ['_LOG_SIGMA2_LIMITS', '_LOG_DELTA_LIMITS'])
def test_a_clip_in_core_is_noticed(limits, monkeypatch):
    monkeypatch.setattr(core, limits, (-4, 4))
    network._compare.cache_clear()
    net = build(ATTENTION)
    assert accelerate(net, [mx.cpu()]) is net


def test_on_a_gpu_the_graph_computes():
    net = build(ATTENTION)
    assert accelerate(net, [mx.gpu()]) is net
    with pytest.raises(cli.UserError, match='CPU'):
        accelerate(net, [mx.gpu()], 'on')


def test_the_comparison_draws_none_of_mxnets_random_numbers():
    network._compare.cache_clear()
    net = build(ATTENTION)
    mx.random.seed(3)
    accelerate(net, [mx.cpu()])
    found = nd.random.normal(shape=4).asnumpy()
    mx.random.seed(3)
    np.testing.assert_array_equal(found, nd.random.normal(shape=4).asnumpy())


# The same bits

@pytest.mark.parametrize('sizes', MODELS)
def test_same_bits_for_any_number_of_threads(sizes):
    net, _, _, x, eps = make(sizes, ((28, 28), 4, 48, 20, 37, 2, 5))
    one, *others = (step(net, x, eps, FusedDRAW(net, num_threads)) for num_threads in (1, 2, 5))
    for other in others:
        assert_equal(other, one)


STEPS = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import system, zlib
from fused import library
if {path!r}:
    import ctypes; library.load = lambda: ctypes.CDLL({path!r})
from test_fused import *
for sizes, in (model.values for model in MODELS):
    for case in (*CASES, ((28, 28), 6, 256, 100, 37, 2, 5)):
        net, _, _, x, eps = make(sizes, case)
        print(zlib.crc32(b''.join(array.tobytes() for array in step(net, x, eps, FusedDRAW(net, 2)).values())))
"""


def run_steps(path='', **environment):
    """The checksums of outputs and gradients of all cases, computed by the library at `path` in a new process."""
    code = STEPS.format(root=str(ROOT), tests=str(ROOT / 'tests'), path=str(path))
    done = python('-c', code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_subnormal_numbers_are_zero_in_the_operator_alone():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    net.h_enc_to_q.weight.set_data(nd.zeros_like(net.h_enc_to_q.weight.data()))
    net.h_enc_to_q.bias.set_data(nd.array(np.full(net.h_enc_to_q.bias.shape, 1e-40)))
    _, mu, _ = FusedDRAW(net, 1)(*to_nd(x, eps))
    assert not mu.asnumpy().any() and np.float32(1e-40) * np.float32(0.5) > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize('processor', ['haswell', 'znver2'])  # Intel's and AMD's, both with AVX2
@pytest.mark.skipif('avx512f' not in Path('/proc/cpuinfo').read_text(), reason='no AVX-512 to compare with')
def test_same_bits_with_avx2(tmp_path, processor):
    library.compile_to(tmp_path / 'avx2.so', 'gcc', f'-march={processor}')
    library.load()  # it prints a line where it compiles
    assert run_steps(tmp_path / 'avx2.so') == run_steps()


@pytest.mark.exhaustive
def test_sanitizers_find_nothing(tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer, all cases, forward and backward."""
    flags = '-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'
    library.compile_to(tmp_path / 'draw.so', 'gcc', *flags)
    libraries = [subprocess.check_output(['gcc', f'-print-file-name=lib{name}.so'], text=True).strip()
                 for name in ('asan', 'ubsan')]
    assert len(run_steps(tmp_path / 'draw.so', LD_PRELOAD=' '.join(libraries), ASAN_OPTIONS='detect_leaks=0')) == 10


@pytest.mark.exhaustive
def test_memory_stays_flat():
    net, _, _, x, eps = make(ATTENTION)
    fused, resident = FusedDRAW(net, 2), {}
    for number in range(1, 5001):
        step(net, x, eps, fused)
        nd.waitall()  # as an update would: backward passes that wait hold memory
        if number % 1000 == 0:
            resident[number] = resident_mebibytes()
    assert resident[5000] - resident[1000] < 16, resident


# The library

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a library that was not loaded yet."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(library, 'FLAGS', [flag.replace('-O3', '-O0') for flag in library.FLAGS])  # compiles faster
    library.load.cache_clear()
    yield tmp_path / 'cache' / 'draw-mxnet'
    library.load.cache_clear()


def compiles(capsys):
    """Load the library as a new process would, and tell whether it is compiled."""
    library.load.cache_clear()
    capsys.readouterr()
    library.load()
    return 'Compiling the fused operator' in capsys.readouterr().out


def test_library_is_compiled_once_and_again_if_damaged(cache):
    code = [sys.executable, '-c', 'from fused import library; library.load()']
    for printed in ('Compiling', '', 'Compiling', ''):
        assert subprocess.check_output(code, cwd=ROOT, text=True)[:9] == printed
        kept, = cache.iterdir()
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and kept.suffix == '.so'
        if printed == '':
            kept.write_bytes(b'torn')


def test_other_flags_or_sources_make_another_library(cache, tmp_path, monkeypatch, capsys):
    assert compiles(capsys) and not compiles(capsys)
    monkeypatch.setattr(library, 'FLAGS', [*library.FLAGS, '-g'])
    assert compiles(capsys)
    sources = [shutil.copy(path, tmp_path) for path in library.SOURCES]
    monkeypatch.setattr(library, 'SOURCES', sources)
    assert not compiles(capsys)
    with open(sources[1], 'a') as file:
        file.write('// edited')
    assert compiles(capsys) and len([*cache.iterdir()]) == 3


def test_cache_that_cannot_be_written(cache, capsys):
    cache.parent.write_text('a file')
    assert compiles(capsys) and compiles(capsys)


def script(path, *lines):
    path.write_text('\n'.join(['#!/bin/sh', *lines]))
    path.chmod(0o755)


def test_a_compiler_is_called_by_its_name_and_hears_no_ctrl_c(cache, tmp_path, monkeypatch, capsys):
    """ccache is one program with many names. A compiler that a signal ends would look like a bad one."""
    script(tmp_path / 'ccache', 'trap "" INT', 'kill -INT 0',
           f'[ "${{0##*/}}" = cc ] && exec {shutil.which("gcc")} "$@"')
    (tmp_path / 'cc').symlink_to('ccache')
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    library.load()
    assert f'with {tmp_path / "cc"}:' in capsys.readouterr().out


ODD = ('[ $# = 1 ] && exit\nfor last; do :; done\n'
       f'echo "int x;" | PATH=/usr/bin {shutil.which("gcc")} -shared -xc - -o "$last"')


@pytest.mark.parametrize('compiler, reason', [
    ('', 'no C compiler'), ('echo "cc: error: no such option" >&2\nexit 1', 'cc: error: no such option'),
    ('printf "error \\351\\n" >&2\nexit 1', 'error'), (ODD, 'undefined symbol')])
def test_without_a_compiler_the_graph_computes(cache, tmp_path, monkeypatch, capsys, compiler, reason):
    if compiler:
        script(tmp_path / 'cc', compiler)
    monkeypatch.setenv('PATH', str(tmp_path))
    net = build(ATTENTION)
    assert accelerate(net, [mx.cpu()]) is net
    out = capsys.readouterr().out
    assert reason in out and out.count('\n') <= 2
    with pytest.raises(cli.UserError, match=reason):
        accelerate(net, [mx.cpu()], 'on')
