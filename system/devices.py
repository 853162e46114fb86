"""Threads and contexts of the CPU, and GPUs."""
import argparse
import os
import sys

from system import cli, compat, files

BATCH_SIZE = 64  # of a training, if not given; threads are shared out by it before the flags are read
_IMAGES_PER_CONTEXT = 32  # at least: smaller parts of a batch cost more than a processor brings
MAX_CONTEXTS = 64


def processors():
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def default_contexts(batch_size):
    """Contexts of the CPU for a batch: as many as the processors have room for, of at least 32 images each.

    With one thread each they hardly wait for each other; a team of threads waits for its slowest member at each of
    the thousands of operators of a step. A worker of several has one context: the workers share the processors.
    """
    if os.environ.get('DMLC_ROLE') == 'worker':
        return 1
    most = min(processors() // (threads() or 1), batch_size // _IMAGES_PER_CONTEXT, MAX_CONTEXTS)
    return next((n for n in range(most, 1, -1) if batch_size % n == 0), 1)


def threads():
    """Threads per context of the CPU, or None where the environment does not say. Raises compat.Unsupported."""
    for name in ('OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS'):
        text = os.environ.get(name, '').split(',')[0].strip()  # OpenMP takes a list, for nested loops
        if text and not (text.isdecimal() and 0 < int(text) < 2 ** 15):
            raise compat.Unsupported(f'the environment variable {name} must be a number of threads, not {text!r}')
        if text:
            return int(text)
    return None


class _Flags(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def planned_contexts(argv, default=default_contexts):
    """The contexts of the CPU that a command line will use; found out before it is read, which mxnet is needed for.

    `default` is a function of the batch size.
    """
    flags = _Flags(add_help=False, allow_abbrev=False)
    for name in ('--gpus', '--cpu_contexts', '--batch_size', '-b'):
        flags.add_argument(name)
    flags.add_argument('--gpu', action='store_true')
    of_training = os.path.basename(os.path.realpath(sys.argv[0])) != 'evaluate.py'  # its --resume takes no folder
    flags.add_argument('--resume', action='store' if of_training else 'store_true')
    try:
        given = flags.parse_known_args(argv)[0]
        stored = {}
        if of_training and given.resume:
            stored = files.read_json(os.path.join(given.resume, 'config.json'))['arguments']
        if given.gpu or given.gpus:
            return 1
        number = given.cpu_contexts or stored.get('cpu_contexts')
        batch_size = given.batch_size or given.b or stored.get('batch_size') or BATCH_SIZE
        return max(1, min(int(number), MAX_CONTEXTS)) if number else default(int(batch_size))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        # What is wrong is told when the command line is read.
        return 1


def set_environment():
    """Set what mxnet reads when it is imported; a user's own setting stands."""
    number = planned_contexts(sys.argv[1:])
    if not threads():  # MXNet would take half the processors
        os.environ['OMP_NUM_THREADS'] = str(max(1, processors() // number))
    # A large copy between NumPy and MXNet would start OpenMP threads of the main thread beside those of MXNet's engine;
    # with more threads than processors every wait of OpenMP goes to sleep, and training takes twice as long from then.
    os.environ.setdefault('MXNET_CPU_PARALLEL_SIZE', str(2 ** 31 - 1))
    # Operators take turns at this many pieces of scratch memory, and two with the same piece wait for each other. With
    # the usual 4 all contexts compute one after the other; more cost memory (53 MiB at the default sizes).
    if number > 1:
        os.environ.setdefault('MXNET_CPU_TEMP_COPY', '4096')


def add_flags(parser):
    """Add the flags that say what computes."""
    parser.add_argument('--gpu', action='store_true', help='use the first GPU instead of the CPU')
    parser.add_argument('--gpus', type=cli.numbers, metavar='LIST', help='share every batch among these GPUs, as 0,1')
    parser.add_argument(
        '--cpu_contexts', type=cli.count, metavar='N',
        help='share every batch, and the processors, among N contexts of the CPU, which compute at the same time; as '
             f'many as processors, with {_IMAGES_PER_CONTEXT} images each at least, if not given')


def check_flags(parser, args):
    """Choose the contexts of the CPU where the flags do not; ends the program with one line where they contradict."""
    if bool(args.gpu) + bool(args.gpus) + bool(args.cpu_contexts) > 1:
        parser.error('only one of --gpu, --gpus and --cpu_contexts can be given')
    if not (args.gpu or args.gpus or args.cpu_contexts):
        args.cpu_contexts = default_contexts(args.batch_size)
    if (args.cpu_contexts or 1) > MAX_CONTEXTS:
        parser.error(f'argument --cpu_contexts: at most {MAX_CONTEXTS}, not {args.cpu_contexts}')
    check_parts(parser, args)


def check_parts(parser, args, num_workers=1):
    """End the program with one line where a batch cannot be shared evenly."""
    parts = num_workers * (len(args.gpus.split(',')) if args.gpus else args.cpu_contexts or 1)
    if args.batch_size % parts:
        parser.error(f'argument --batch_size: {args.batch_size} images cannot be shared evenly by {parts} devices')


def contexts(parser, args):
    """What --gpu, --gpus or --cpu_contexts name; ends the program with one line where a GPU cannot be used."""
    import mxnet as mx  # not before set_environment
    goes_on = isinstance(getattr(args, 'resume', None), str)  # a run whose config.json says --gpu
    instead = f'{"give --cpu_contexts" if goes_on else "leave out --gpu"} to use the CPU'
    gpus = args.gpus or ('0' if args.gpu else None)
    if not gpus:
        return [mx.cpu(number) for number in range(args.cpu_contexts)]
    if not mx.runtime.Features().is_enabled('CUDA'):
        parser.error(f'a GPU needs an MXNet built for CUDA (an mxnet-cu* package); {instead}')
    wanted, there = [int(number) for number in gpus.split(',')], mx.context.num_gpus()
    if max(wanted) >= there:
        parser.error(f'GPU {max(wanted)} is not there, {there} are visible (nvidia-smi); {instead}')
    found = [mx.gpu(number) for number in wanted]
    for gpu in found:
        try:
            mx.nd.ones((1,), ctx=gpu).asnumpy()
        except mx.MXNetError as error:  # a GPU newer than this MXNet is counted, but has no code
            parser.error('MXNet, whose packages hold code for compute capability 5.0 to 8.9, cannot use '
                         f'GPU {gpu.device_id} ({cli.last_line(error)}); {instead}')
    return found
