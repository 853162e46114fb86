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
    except (OSError, ValueError):  # no cgroup v2, or 'max'
        return available
    return max(1, min(available, math.ceil(quota / period)))


def threads():
    """Threads that this process computes with: OMP_NUM_THREADS, which `set_environment` sets if the user did not."""
    return int(os.environ['OMP_NUM_THREADS'])


def set_environment():
    """Set what MXNet reads when it is imported. Raises compat.Unsupported."""
    text = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()  # MXNet aborts at a list, as for nested loops
    if text and not (text.isdecimal() and 0 < int(text) < 1024):
        raise compat.Unsupported(f'the environment variable OMP_NUM_THREADS must be a number of threads, not {text!r}')
    os.environ['OMP_NUM_THREADS'] = text or str(processors())
    # With more threads than processors, OpenMP sleeps at every barrier: large copies must not start threads of their own.
    os.environ.setdefault('MXNET_CPU_PARALLEL_SIZE', str(2 ** 31 - 1))


def add_flags(parser):
    """Add the flags that choose the device."""
    parser.add_argument('--gpu', action='store_true', help='use the first GPU')
    parser.add_argument('--gpus', type=cli.numbers, metavar='LIST', help='split every batch among these GPUs: 0,1')
    parser.add_argument('--fused', choices=('auto', 'on', 'off'), default='auto',
                        help='on the CPU, compute the network with the operator in fused/, which needs a C compiler; '
                             'auto: if there is one')


def contexts(args):
    """The devices that args.gpu and args.gpus name, or the CPU. Raises cli.UserError."""
    import mxnet as mx  # after set_environment
    wanted = [int(number) for number in args.gpus.split(',')] if args.gpus else [0] if args.gpu else []
    if not wanted:
        return [mx.cpu()]
    if not mx.runtime.Features().is_enabled('CUDA'):
        raise cli.UserError('a GPU needs an MXNet built for CUDA, see "GPU" in README.md')
    if max(wanted) >= mx.context.num_gpus():
        raise cli.UserError(f'there is no GPU {max(wanted)}: MXNet sees {mx.context.num_gpus()} (nvidia-smi)')
    for gpu in map(mx.gpu, wanted):
        try:
            mx.nd.ones((1,), ctx=gpu).asnumpy()
        except mx.MXNetError as error:  # a GPU that is newer than this MXNet is counted, but has no kernels
            raise cli.UserError(f'MXNet cannot use GPU {gpu.device_id}; its packages contain kernels for compute '
                                f'capability 5.0 to 8.9 ({cli.last_line(error)})') from None
    return list(map(mx.gpu, wanted))
