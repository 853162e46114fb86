"""What the programs of the comparison share, so that all do the same work on one clock. Needs no framework."""
import json
import statistics
import time

import numpy as np

# The flags that decide how much work a step is, with the defaults of train_mnist.py.
SIZES = {'batch_size': 64, 'input_height': 28, 'input_width': 28, 'num_steps': 64, 'num_recurrent_units': 256,
         'latent_dim': 100, 'read_size': 2, 'write_size': 5}
STATES = 'h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'
_STEPS_PER_BLOCK = 4


def add_flags(parser, sizes=(*SIZES,), count=int):
    """Add the sizes, by default all of them, and the number of timed steps."""
    for name in sizes:
        parser.add_argument(f'--{name}', type=count, metavar='N', default=SIZES[name], help='as in train_mnist.py')
    parser.add_argument('--blocks', type=count, metavar='N', default=5,
                        help=f'timed blocks of {_STEPS_PER_BLOCK} training steps')


def parse_args(parser, argv=None, count=int):
    """The command line of a program that times one training step."""
    parser.add_argument('--attention', action='store_true', help='read and write with selective attention')
    add_flags(parser, count=count)
    return parser.parse_args(argv)


def size_flags(args):
    """The flags of train_mnist.py that give it the sizes in `args`."""
    names = [name for name in SIZES if args.attention or name not in ('read_size', 'write_size')]
    return ['--attention'] * args.attention + [f'--{name}={getattr(args, name)}' for name in names]


def parameter_shapes(args):
    """Names and shapes of the network's parameters; weights are (outputs, inputs), gates in the order i, f, o, g."""
    units, gates, num_pixels = args.num_recurrent_units, 4 * args.num_recurrent_units, _num_pixels(args)
    num_read = 2 * args.read_size ** 2 if args.attention else num_pixels
    shapes = dict.fromkeys(STATES, (1, units))
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


def random_images(args, number):
    """Random binary images, (number, height * width), a fifth of their pixels 1."""
    return (np.random.RandomState(0).rand(number, _num_pixels(args)) > 0.8).astype('float32')


def _num_pixels(args):
    return args.input_height * args.input_width


def measure(build, args):
    """Time training steps.

    Parameters
    ----------
    build : callable
        Makes the network and its optimizer, and returns two functions: one starts a training step, the other waits for
        all steps that were started.
    args : argparse.Namespace

    Returns
    -------
    dict
        `first_step_s`: from the call of `build` to the end of the first step. `samples_per_s`: from the median over
        blocks of steps, each waited for; the second step is not counted. `peak_memory_mib` of the process.
    """
    def seconds(num_steps):
        started = time.perf_counter()
        for _ in range(num_steps):
            step()
        wait()
        return time.perf_counter() - started

    started = time.perf_counter()
    step, wait = build()
    seconds(1)
    first_step_s = time.perf_counter() - started
    seconds(1)
    step_s = statistics.median(seconds(_STEPS_PER_BLOCK) for _ in range(args.blocks)) / _STEPS_PER_BLOCK
    return {'first_step_s': round(first_step_s, 3), 'samples_per_s': round(args.batch_size / step_s, 2),
            'peak_memory_mib': round(peak_memory_mib(), 1)}


def peak_memory_mib():
    """VmHWM of this process; ru_maxrss would include the parent's before exec."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024


def print_result(version, result):
    """Print a result as one line of JSON, the last one of the output."""
    print(json.dumps({'version': version, **result}), flush=True)
