"""How fast a training step can be: its matrix products, and the rates at which the processor multiplies and adds."""
import ctypes
import math
import os
import shutil
import tempfile
import time

from system import cli

from mxnet import nd

from benchmarks import common
from fused import library

_REPEATS = 20


def multiply_adds(args):
    """Multiply-adds of the matrix products of one training step, for the whole batch.

    Those of Eqns. 1-8, 21 and 27-29. The backward pass has two products for each one of the forward pass, but one where
    x is a factor. Products that stand for elementwise work (the filters, expansions) are not counted.
    """
    N, M, height, width = args.read_size, args.write_size, args.input_height, args.input_width
    per_step = {name: math.prod(shape) for name, shape in common.parameter_shapes(args).items() if 'weight' in name}
    per_image = per_step.pop('x_to_enc.weight', 0)                                       # Eqn. 5: x, once
    if args.attention:
        per_step['read'] = 2 * (N * height * width + N * width * N)                      # Eqn. 27, for x and x_hat
        per_step['write'] = M * M * width + height * M * width                           # Eqn. 29
    return args.batch_size * (2 * per_image + 3 * args.num_steps * sum(per_step.values()))


def peak_rate(threads):
    """Multiply-adds per second with all operands in registers: what no program can exceed. Raises cli.UserError."""
    compiler = next(filter(None, map(shutil.which, library.COMPILERS)), None)
    if not compiler:
        raise cli.UserError('the peak of the processor is measured in C, and there is no compiler (cc, gcc or clang)')
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'peak.c')
    with tempfile.TemporaryDirectory() as folder:
        library.compile_to(f'{folder}/peak.so', compiler, source=source)
        measured = ctypes.CDLL(f'{folder}/peak.so').multiply_adds
    measured.restype, result = ctypes.c_double, ctypes.c_float()
    rounds, factor = ctypes.c_long(10 ** 6), ctypes.c_float(0.5)
    return _best(lambda: measured(rounds, threads, factor, ctypes.byref(result)))


def sgemm_rate():
    """Multiply-adds per second of a float32 product of two matrices in MXNet (oneDNN): what a good library reaches."""
    size = 1024
    a = nd.ones((size, size))

    def product():
        nd.FullyConnected(a, a, num_hidden=size, no_bias=True).wait_to_read()
        return size ** 3

    return _best(product)


def _best(action):
    """The best rate of an action that returns how many multiply-adds it made."""
    rates = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        rates.append(action() / (time.perf_counter() - started))
    return max(rates)
