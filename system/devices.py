"""Threads of the CPU, and GPUs."""
import math
import os

from system import cli, compat


def processors():
    """Processors that this process may use: by its affinity, and by the CPU quota of its container (cgroup v2)."""
    available = len(os.sched_getaffinity(0))
    try:
        with open('/sys/fs/cgroup/cpu.max') as file:
            quota, period = map(int, file.read().split())
    except (OSError, ValueError):  # no cgroup v2, or no quota ('max')
        return available
    return max(1, min(available, math.ceil(quota / period)))


def threads():
    """Threads that this process computes with: OMP_NUM_THREADS, which `set_environment` sets if the user did not."""
    return int(os.environ['OMP_NUM_THREADS'])


def set_environment():
    """Set what MXNet reads when it is imported; several workers on a host share its processors. Raises
    compat.Unsupported."""
    first = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()  # MXNet aborts on a list
    if first and not (first.isdecimal() and 0 < int(first) < 1024):
        raise compat.Unsupported(f'OMP_NUM_THREADS must be a number of threads, not {first!r}')
    os.environ['OMP_NUM_THREADS'] = first or str(max(1, processors() // int(os.environ.get('DISTRIBUTED_SHARE', 1))))
    # No threads for large copies: where there are more threads than processors, OpenMP sleeps at every barrier.
    os.environ.setdefault('MXNET_CPU_PARALLEL_SIZE', str(2 ** 31 - 1))


def add_flags(parser, painting=False):
    """Add the flags that choose the device: for painting, which takes one device and core.py itself, --gpu alone."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument('--gpu', action='store_true', help='use the first GPU')
    if painting:
        parser.set_defaults(gpus=None)
    else:
        one.add_argument('--gpus', metavar='LIST', help='divide every batch among these GPUs, such as 0,1')
        parser.add_argument(
            '--fused', choices=('auto', 'on', 'off'), default='auto',
            help='on the CPU, compute with the operator in fused/, which needs a C compiler; auto: if there is one')


def contexts(args):
    """The devices that args.gpu and args.gpus name, or the CPU. Raises cli.UserError."""
    import mxnet as mx  # after set_environment
    if not args.gpu and args.gpus is None:
        return [mx.cpu()]
    numbers = ['0'] if args.gpu else args.gpus.split(',')
    if not all(number.isdecimal() for number in numbers) or len({*map(int, numbers)}) < len(numbers):
        raise cli.UserError(f'argument --gpus: {args.gpus!r} is not a list of numbers, such as 0,1')
    if not mx.runtime.Features().is_enabled('CUDA'):
        raise cli.UserError('a GPU needs an MXNet built for CUDA: see docs/gpu.md')
    gpus = [mx.gpu(int(number)) for number in numbers]
    for gpu in gpus:
        try:
            mx.nd.ones((1,), ctx=gpu).asnumpy()
        except mx.MXNetError as error:  # not there, or newer than this MXNet, which then has no kernels for it
            raise cli.UserError(f'MXNet cannot use GPU {gpu.device_id}; it has kernels for compute capability 5.0 to '
                                f'8.9 ({cli.reason(error)})') from None
    return gpus
