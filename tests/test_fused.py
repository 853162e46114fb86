"""The fused operator against core.DRAW and the equations, and how its library is compiled and kept."""
import os
import stat
import subprocess
import sys
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

import core
import oracle
from dataset.stream import binarize
from dataset.synthetic import draw_synthetic
from fused import library
from fused.network import FusedDRAW, accelerate
from networks import (
    ATTENTION,
    MIXED,
    MODELS,
    NO_ATTENTION,
    assert_same,
    build,
    gradients,
    random_inputs,
    random_parameters,
    set_parameters,
    to_nd,
    train_forward_backward,
)
from runs import params

ROOT = Path(__file__).parent.parent
# (height, width), T, units, latent dimensions, batch, read filters, write filters
CASES = [((5, 7), 3, 6, 4, 3, 2, 3), ((9, 4), 1, 33, 17, 1, 1, 1), ((17, 35), 2, 40, 70, 5, 17, 4),
         ((3, 40), 4, 8, 3, 9, 1, 3)]


def make(sizes, case, seed=0):
    """A network of these sizes with random parameters, x and eps."""
    shape, T, units, latent, batch, read, write = case
    sizes = {'read_size': sizes['read_size'] and read, 'write_size': sizes['write_size'] and write}
    net = build(sizes, shape, T, units, latent)
    values = random_parameters(sizes, seed, image_shape=shape, units=units, latent_dim=latent)
    scale = min(1, (6 / units) ** 0.5)  # larger networks would amplify rounding
    values = {name: (scale * value).astype('float32').astype('float64') for name, value in values.items()}
    set_parameters(net, values)
    x, eps = random_inputs(batch, shape[0] * shape[1], T, latent, seed)
    return net, values, sizes, x, eps


def assert_equal_steps(net, fused, x, eps, rtol=2e-5):
    """Outputs, losses and every gradient of `fused` are those of `net`, up to a part of the largest number."""
    expected = train_forward_backward(net, core.DRAWLoss(), x, eps)
    wanted = gradients(net)
    actual = train_forward_backward(fused, core.DRAWLoss(), x, eps)
    found = gradients(net)
    for a, b in zip(expected, actual):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * max(1, abs(a).max()))
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=rtol * abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('sizes', MODELS)
def test_values_and_gradients_are_those_of_core(sizes, case):
    net, _, _, x, eps = make(sizes, case)
    assert_equal_steps(net, FusedDRAW(net, 2), x, eps)


@pytest.mark.parametrize('sizes', MODELS)
def test_values_are_those_of_the_equations(sizes):
    net, values, sizes, x, eps = make(sizes, CASES[0])
    expected = oracle.forward(values, x, eps, net.image_shape, **sizes)
    for name, actual in zip(('canvas', 'mu', 'log_sigma'), FusedDRAW(net, 1)(*to_nd(x, eps))):
        assert_same(actual, expected[name], rtol=1e-5, atol=1e-6, message=name)


@pytest.mark.parametrize('sizes', MODELS)
def test_gradients_are_those_of_the_equations(sizes):
    """Finite differences of the float64 oracle, along a random direction of each parameter."""
    net, values, sizes, x, eps = make(sizes, CASES[0])
    train_forward_backward(FusedDRAW(net, 1), core.DRAWLoss(), x, eps)

    def bound(name, change):
        changed = {**values, name: values[name] + change}
        outputs = oracle.forward(changed, x, eps, net.image_shape, **sizes)
        return sum(part.sum() for part in oracle.loss(outputs['canvas'], outputs['mu'], outputs['log_sigma'], x))

    rng = np.random.RandomState(3)
    for name, gradient in gradients(net).items():
        direction = 1e-5 * rng.normal(size=values[name].shape)
        slope = (bound(name, direction) - bound(name, -direction)) / 2
        assert (gradient * direction).sum() == pytest.approx(slope, rel=2e-4, abs=1e-8), name


@pytest.mark.parametrize('bias', [[0, 0, 25, 0, 0], [0, 0, -25, 14, 0], [9, -9, 1, -25, 1], [0, 0, -4, 2, -3]])
def test_extreme_and_clipped_windows(bias):
    """Beyond the limits of log sigma^2 and log delta~, outside the image, and narrower than a pixel."""
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    for block in (net.read, net.write):
        block.window.bias.set_data(nd.array(bias))
        block.window.weight.set_data(block.window.weight.data() * 0.1)
    assert_equal_steps(net, FusedDRAW(net, 2), x, eps)


@pytest.mark.parametrize('model', ['draw_w_attn', 'draw_wo_attn'])
def test_trained_models_on_digits(model):
    net = params.load_net(ROOT / 'assets' / model)
    digits = draw_synthetic(['test'])['test'][:4].reshape(4, -1)
    x = binarize(digits, 'dynamic', np.random.default_rng(0))
    eps = np.random.RandomState(0).normal(size=(net.num_steps, 4, net.latent_dim))
    assert_equal_steps(net, FusedDRAW(net, 2), x, eps, rtol=1e-4)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('sizes', MODELS)
def test_parameters_that_are_not_finite_give_a_bound_that_is_not(sizes, value):
    for name in make(sizes, CASES[0])[0]._collect_params_with_prefix():
        net, values, _, x, eps = make(sizes, CASES[0])
        values[name].flat[0] = value
        set_parameters(net, values)
        expected = np.isfinite(sum(train_forward_backward(net, core.DRAWLoss(), x, eps)[3:]))
        actual = np.isfinite(sum(train_forward_backward(FusedDRAW(net, 1), core.DRAWLoss(), x, eps)[3:]))
        assert (actual == expected).all(), name
        assert not np.isnan(value) or not actual.all(), name


@pytest.mark.parametrize('sizes', MODELS)
def test_two_passes_in_one_record(sizes):
    """Gradients of up to nine passes add up, with those of another network between them."""
    net, _, _, x, eps = make(sizes, CASES[0])
    other, _, _, _, _ = make(sizes, CASES[0], seed=1)
    fused, fused_other, loss = FusedDRAW(net, 2), FusedDRAW(other, 2), core.DRAWLoss()
    passes = [to_nd(*random_inputs(seed=k)) for k in range(9)]
    for number in (2, 9):
        found = []
        for first, second in ((net, other), (fused, fused_other)):
            with autograd.record():
                total = sum(sum(loss(*block(x, eps), x)).sum()
                            for x, eps in passes[:number] for block in (first, second))
            total.backward()
            found.append({**gradients(net), **{f'{name} of the other': g for name, g in gradients(other).items()}})
        for name, gradient in found[0].items():
            np.testing.assert_allclose(found[1][name], gradient, rtol=0, atol=2e-5 * abs(gradient).max(), err_msg=name)


def test_forward_alone_keeps_nothing_and_equals_the_recorded_pass():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    fused, (x, eps) = FusedDRAW(net, 2), to_nd(x, eps)
    alone = [output.asnumpy() for output in fused(x, eps)]
    with autograd.record():
        recorded = fused(x, eps)
    for a, b in zip(alone, recorded):
        np.testing.assert_array_equal(a, b.asnumpy())
    small, large = (fused.library.draw_floats(fused.sizes(len(x), keep)) for keep in (False, True))
    assert small < large


def test_second_backward_pass_is_refused():
    net, _, _, x, eps = make(NO_ATTENTION, CASES[0])
    with autograd.record():
        total = FusedDRAW(net, 1)(*to_nd(x, eps))[0].sum()
    total.backward(retain_graph=True)
    with pytest.raises(mx.MXNetError):
        total.backward()
        nd.waitall()


def test_parameters_without_gradient_change_no_other():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    train_forward_backward(FusedDRAW(net, 1), core.DRAWLoss(), x, eps)
    expected = gradients(net)
    net.r_to_enc.weight.grad_req = 'null'
    train_forward_backward(FusedDRAW(net, 1), core.DRAWLoss(), x, eps)
    for name, parameter in net._collect_params_with_prefix().items():
        if name != 'r_to_enc.weight':
            np.testing.assert_array_equal(parameter.grad().asnumpy(), expected[name], err_msg=name)


def test_what_it_cannot_do_is_refused():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    fused, (x, eps) = FusedDRAW(net, 1), to_nd(x, eps)
    with pytest.raises(ValueError, match='eps must be'):
        fused(x, eps[:1])
    net.h_enc_0.grad_req = 'add'
    with autograd.record(), pytest.raises(ValueError, match="grad_req 'add'"):
        fused(x, eps)
    for parameters in MIXED:
        mixed = build(parameters.values[0])
        assert accelerate(mixed, [mx.cpu()]) is mixed


@pytest.mark.parametrize('sizes', MODELS)
def test_same_bits_for_any_number_of_threads(sizes):
    net, _, _, x, eps = make(sizes, ((28, 28), 4, 48, 20, 37, 2, 5))
    results = []
    for num_threads in (1, 2, 5):
        outputs = train_forward_backward(FusedDRAW(net, num_threads), core.DRAWLoss(), x, eps)
        results.append([*outputs, *gradients(net).values()])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)


STEP = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import system, zlib, numpy as np
from fused import library
if {path!r}:
    import ctypes; library.load = lambda: ctypes.CDLL({path!r})
import core, test_fused
from networks import *
for sizes in (ATTENTION, NO_ATTENTION):
    for case in (*test_fused.CASES, ((28, 28), 6, 256, 100, 37, 2, 5)):
        net, _, _, x, eps = test_fused.make(sizes, case)
        outputs = train_forward_backward(test_fused.FusedDRAW(net, 2), core.DRAWLoss(), x, eps)
        print(zlib.crc32(b''.join(a.tobytes() for a in (*outputs, *gradients(net).values()))))
"""


def run_step(path='', **environment):
    """The checksums of outputs and gradients of all cases, computed by the library at `path` in a new process."""
    code = STEP.format(root=str(ROOT), tests=str(ROOT / 'tests'), path=str(path))
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, **environment}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def runs_avx512():
    return 'avx512f' in Path('/proc/cpuinfo').read_text()



def test_subnormal_numbers_are_zero_in_the_operator_alone():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    FusedDRAW(net, 1)(*to_nd(x, eps))
    assert np.float32(1e-40) * np.float32(0.5) > 0


@pytest.mark.exhaustive
@pytest.mark.skipif(not runs_avx512(), reason='this processor has no AVX-512 to compare with')
def test_same_bits_with_avx2(tmp_path):
    library.compile_to(tmp_path / 'avx2.so', 'gcc', '-march=haswell')
    assert run_step(tmp_path / 'avx2.so') == run_step()


@pytest.mark.exhaustive
def test_sanitizers_find_nothing(tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer, all cases, forward and backward."""
    flags = '-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'
    library.compile_to(tmp_path / 'draw.so', 'gcc', *flags)
    libraries = [subprocess.check_output(['gcc', f'-print-file-name=lib{name}.so'], text=True).strip()
                 for name in ('asan', 'ubsan')]
    assert len(run_step(tmp_path / 'draw.so', LD_PRELOAD=' '.join(libraries), ASAN_OPTIONS='detect_leaks=0')) == 10


@pytest.mark.exhaustive
def test_memory_stays_flat():
    net, _, _, x, eps = make(ATTENTION, CASES[0])
    fused, loss, resident = FusedDRAW(net, 2), core.DRAWLoss(), {}
    for step in range(1, 5001):
        train_forward_backward(fused, loss, x, eps)
        nd.waitall()  # as an update would: backward passes that wait hold memory
        if step % 1000 == 0:
            resident[step] = int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2 ** 20
    assert resident[5000] - resident[1000] < 16, resident  # MiB


# The library


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a library that was not loaded yet."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(library, 'FLAGS', [flag.replace('-O3', '-O0') for flag in library.FLAGS])  # compiles faster
    library.load.cache_clear()
    yield tmp_path / 'cache' / 'draw-mxnet'
    library.load.cache_clear()


def test_compiled_once(cache, capsys):
    library.load()
    assert 'Compiling the fused operator' in capsys.readouterr().out
    kept, = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(kept.stat().st_mode) == 0o700
    library.load.cache_clear()
    library.load()
    assert capsys.readouterr().out == ''


def test_libraries_that_others_could_have_written_are_not_loaded(cache, capsys):
    library.load()
    kept, = cache.iterdir()
    for path, mode in ((kept, 0o722), (cache, 0o777)):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        if path == kept:
            path.write_bytes(b'not a library')
        library.load.cache_clear()
        capsys.readouterr()
        library.load()
        assert 'Compiling' in capsys.readouterr().out
        path.chmod(before)


def test_cache_that_cannot_be_written(cache, capsys):
    cache.parent.write_text('a file')
    library.load()
    assert 'Compiling' in capsys.readouterr().out


def test_damaged_library_is_replaced(cache):
    command = [sys.executable, '-c', 'from fused import library; library.load()']
    for printed in ('Compiling', '', 'Compiling', ''):
        assert subprocess.check_output(command, cwd=ROOT, text=True)[:9] == printed
        kept, = cache.iterdir()
        if printed == '':
            kept.write_bytes(b'torn')


def test_no_compiler(cache, monkeypatch, capsys):
    net = build(ATTENTION)
    monkeypatch.setenv('PATH', str(cache))
    assert accelerate(net, [mx.cpu()]) is net
    assert 'no C compiler' in capsys.readouterr().out
    with pytest.raises(cli.UserError, match='no C compiler'):
        accelerate(net, [mx.cpu()], 'on')


def test_compiler_that_fails(cache, tmp_path, monkeypatch, capsys):
    tools = tmp_path / 'bin'
    tools.mkdir()
    (tools / 'cc').write_text('#!/bin/sh\necho "cc: error: no such option" >&2\nexit 1\n')
    (tools / 'cc').chmod(0o755)
    monkeypatch.setenv('PATH', str(tools))
    net = build(ATTENTION)
    assert accelerate(net, [mx.cpu()]) is net
    out = capsys.readouterr().out
    assert 'cc: error: no such option' in out and out.count('\n') <= 2
