"""Threads and contexts. What must be in the environment before mxnet is imported is set when this is imported."""
import os
import sys


def cpu_contexts(argv):
    """N of `--cpu_contexts N`, which is wanted before mxnet is imported, that is, before arguments are parsed."""
    for word, following in zip(argv, [*argv[1:], '']):
        name, equals, value = word.partition('=')
        if name == '--cpu_contexts':
            value = value if equals else following
            return int(value) if value.isdecimal() and int(value) else 1
    return 1


# MXNet takes half the processors unless told otherwise before it is imported; a user's own setting stands.
if not {'OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS'} & os.environ.keys():
    os.environ['OMP_NUM_THREADS'] = str(max(1, len(os.sched_getaffinity(0)) // cpu_contexts(sys.argv)))
# A large copy between NumPy and MXNet would start OpenMP threads of the main thread beside those of MXNet's engine;
# with more threads than processors every wait of OpenMP goes to sleep, and training takes twice as long from then on.
os.environ.setdefault('MXNET_CPU_PARALLEL_SIZE', str(2 ** 31 - 1))
# Operators take turns at this many pieces of scratch memory, and two with the same piece wait for each other. With the
# usual 4, all contexts of the CPU compute one after the other; more cost memory (53 MiB at the default sizes).
if cpu_contexts(sys.argv) > 1:
    os.environ.setdefault('MXNET_CPU_TEMP_COPY', '4096')


def context(parser, gpu):
    """The first GPU or the CPU; ends the program with one line where there is no GPU to use."""
    import mxnet as mx

    return _gpus(parser, '0')[0] if gpu else mx.cpu()


def contexts(parser, args):
    """What --gpu, --gpus or --cpu_contexts of train_mnist.py name; ends the program as `context` does."""
    import mxnet as mx

    if args.gpu or args.gpus:
        return _gpus(parser, args.gpus or '0')
    return [mx.cpu(number) for number in range(args.cpu_contexts)]


def _gpus(parser, text):
    import mxnet as mx

    if not mx.runtime.Features().is_enabled('CUDA'):
        parser.error('a GPU needs an MXNet built for CUDA (an mxnet-cu* package); without --gpu the CPU is used')
    wanted, there = [int(number) for number in text.split(',')], mx.context.num_gpus()
    if max(wanted) >= there:
        parser.error(f'GPU {max(wanted)} is not there, {there} are visible (nvidia-smi); without --gpu the CPU is used')
    return [mx.gpu(number) for number in wanted]
