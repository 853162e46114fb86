"""What the three programs of the benchmark share, so that they do the same work on one clock. Needs no framework."""
import argparse
import json
import os
import time

import numpy as np

# The flags that decide how much work a step is, with the defaults of train_mnist.py.
SIZES = {'batch_size': 64, 'input_height': 28, 'input_width': 28, 'num_steps': 64, 'num_recurrent_units': 256,
         'latent_dim': 100, 'read_size': 2, 'write_size': 5}
_STEPS_PER_BLOCK = 4


def add_iterations(parser, count=int):
    parser.add_argument('--iterations', type=count, metavar='N', default=20,
                        help=f'timed steps, in blocks of up to {_STEPS_PER_BLOCK}')


def parse_peer_args(prog, doc, argv=None, compiles=False):
    parser = argparse.ArgumentParser(prog=prog, description=doc)
    parser.add_argument('--attention', action='store_true', help='read and write with selective attention')
    for name, default in SIZES.items():
        parser.add_argument(f'--{name}', type=int, metavar='N', default=default, help='as in train_mnist.py')
    add_iterations(parser)
    parser.add_argument('--agreement', metavar='FILE', help='for the tests: the loss and gradients at FILE.npz')
    if compiles:
        parser.add_argument('--compile', action='store_true', help='torch.compile; the first step takes minutes')
    return parser.parse_args(argv)


def arguments(args):
    """The command line of the flags that decide how much work is timed; all three programs take it."""
    flags = ['--attention'] if args.attention else []
    for name in (*SIZES, 'iterations'):
        flags += [f'--{name}', str(getattr(args, name))]
    return flags


def num_threads():
    return int(os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0)))


def parameter_shapes(args):
    """Names and shapes of the network's parameters; weights are (outputs, inputs), gates in the order i, f, o, g."""
    units, gates, num_pixels = args.num_recurrent_units, 4 * args.num_recurrent_units, _num_pixels(args)
    num_read = 2 * args.read_size ** 2 if args.attention else num_pixels
    shapes = {f'{state}_0': (1, units) for state in ('h_enc', 'c_enc', 'h_dec', 'c_dec')}
    layers = {'r_to_enc': (gates, num_read), 'h_enc_to_q': (2 * args.latent_dim, units),
              'z_to_dec': (gates, args.latent_dim)}
    if args.attention:
        layers.update({'read.window': (5, units), 'write.window': (5, units),
                       'write.patch': (args.write_size ** 2, units)})
    else:
        layers['write.image'] = num_pixels, units
        shapes['x_to_enc.weight'] = gates, num_pixels
    for name, shape in layers.items():
        shapes.update({f'{name}.weight': shape, f'{name}.bias': shape[:1]})
    shapes.update({f'{name}.weight': (gates, units) for name in ('h_dec_to_enc', 'h_enc_to_enc', 'h_dec_to_dec')})
    return shapes


def random_parameters(args):
    """Initial parameters, {name: float32 array}: weights of variance 1 / inputs, the rest zero."""
    rng = np.random.RandomState(1)
    return {name: (rng.randn(*shape) / np.sqrt(shape[1])).astype('float32') if name.endswith('weight')
            else np.zeros(shape, 'float32') for name, shape in parameter_shapes(args).items()}


def random_images(args):
    """Random binary images, (batch_size, height * width), the same in every program."""
    return (np.random.RandomState(0).rand(args.batch_size, _num_pixels(args)) > 0.8).astype('float32')


def _num_pixels(args):
    return args.input_height * args.input_width


def measure(step, wait, args):
    """Time training steps.

    Parameters
    ----------
    step : callable
        Starts one step.
    wait : callable
        Returns when all started steps are done.
    args : argparse.Namespace

    Returns
    -------
    dict
        `first_step_s` with the building of graphs, `step_s` and `samples_per_s` from the median over blocks of steps,
        each block waited for; `peak_memory_mib` of the process.
    """
    def seconds(num_steps):
        started = time.perf_counter()
        for _ in range(num_steps):
            step()
        wait()
        return (time.perf_counter() - started) / num_steps

    first = seconds(1)
    seconds(1)
    blocks = [seconds(min(_STEPS_PER_BLOCK, args.iterations - done))
              for done in range(0, args.iterations, _STEPS_PER_BLOCK)]
    step_s = float(np.median(blocks))
    return {'first_step_s': round(first, 4), 'step_s': round(step_s, 6),
            'samples_per_s': round(args.batch_size / step_s, 1), 'peak_memory_mib': round(memory_mib('VmHWM'), 1)}


def memory_mib(field):
    """VmRSS (resident now) or VmHWM (its peak) of this process; ru_maxrss would include the parent's before exec."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def print_result(program, args, result):
    """A line for people, then a line of JSON."""
    print(f'{program}: {result["samples_per_s"]:,} samples/s, first step {result["first_step_s"]:.2f} s, '
          f'peak memory {result["peak_memory_mib"]:,.0f} MiB')
    settings = {'attention': args.attention, **{name: getattr(args, name) for name in SIZES}}
    print(json.dumps({'program': program, **settings, 'threads': num_threads(), **result}), flush=True)


def peer_agreement(path, loss_and_gradients):
    """Read parameters, `x` and `eps` from <path>.npz; write the loss and the gradients to <path>.out.npz."""
    with np.load(f'{path}.npz') as file:
        params = dict(file)
    x, eps = params.pop('x'), params.pop('eps')
    loss, gradients = loss_and_gradients(params, x, eps)
    np.savez(f'{path}.out.npz', loss=loss, **gradients)
