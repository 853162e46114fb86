"""Time synchronous training steps of one worker or several, and their exchange of gradients alone.

    python benchmarks/scaling.py --attention -b 128
    python launch.py -n 2 benchmarks/scaling.py --attention -b 128 --kvstore dist_sync

Takes the flags of train_mnist.py. Worker 0 prints one line of JSON; the peak memory
is that of all workers together.
"""
import json
import statistics
import time

import common  # isort: skip  (makes the project importable, and sets the number of threads before mxnet is imported)
import mxnet as mx
import numpy as np
from mxnet import nd

import cli
import run_folder
import train_mnist
import training
from workers import Workers


def median_ms(iterations, action):
    """Median milliseconds of an action, the first two not counted."""
    seconds = []
    for _ in range(2 + iterations):
        started = time.perf_counter()
        action()
        nd.waitall()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(seconds[2:]), 2)


def measure(args, workers):
    mx.random.seed(args.seed)
    net = run_folder.build_net(vars(args))
    net.initialize()
    workers.connect()
    trained = training.Training(net, args, [mx.cpu()], workers)
    x = common.random_images(args)[:trained.part]
    result = common.measure(lambda: trained.step(x), wait=nd.waitall, args=args)
    exchange = median_ms(args.iterations, trained._trainer.allreduce_grads)
    small = median_ms(args.iterations, lambda: workers.sum(np.zeros(2, dtype=np.float32)))
    num_weights = sum(parameter.data().size for parameter in net.collect_params().values())
    peak = workers.sum(np.array([result['peak_memory_mib']], dtype=np.float32))[0]
    return {'workers': workers.size, 'threads': common.num_threads(), 'attention': args.attention,
            'batch_size': args.batch_size, **result, 'peak_memory_mib': round(float(peak), 1), 'exchange_ms': exchange,
            'small_sum_ms': small, 'weights': num_weights, 'mbytes_each_way': round(4e-6 * num_weights, 2)}


def main(argv=None):
    parser = cli.Parser(prog='scaling.py', description=__doc__.splitlines()[0])
    common.add_iterations(parser)
    args = train_mnist.parse_args(parser, argv)
    with Workers(args.kvstore, args.sync_timeout) as workers:
        result = measure(args, workers)
        if workers.rank == 0:
            print(json.dumps(result))
        workers.leave()


if __name__ == '__main__':
    main()
