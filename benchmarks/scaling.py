"""Time synchronous training steps of one worker or several, and their exchange of gradients alone.

    python -m benchmarks.scaling --attention -b 128
    python -m distributed.launch -n 2 -m benchmarks.scaling --attention -b 128 --kvstore dist_sync

Takes the flags of train_mnist.py. Worker 0 prints one line of JSON; the peak memory
is that of all workers together.
"""
import json
import statistics
import time

from system import cli, devices

import numpy as np
from mxnet import nd

from benchmarks import common, throughput
from distributed import workers
from runs import arguments, storage


def median_ms(iterations, action):
    """Median milliseconds of an action, the first two not counted."""
    seconds = []
    for _ in range(2 + iterations):
        started = time.perf_counter()
        action()
        nd.waitall()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(seconds[2:]), 2)


def measure(args, contexts, group):
    group.connect()
    trained = throughput.make_training(args, contexts, group)
    x = common.random_images(args)[:trained.part]
    result = common.measure(lambda: trained.step(x), wait=nd.waitall, args=args)
    exchange = median_ms(args.iterations, trained._trainer.allreduce_grads)
    small = median_ms(args.iterations, lambda: group.sum(np.zeros(2, dtype=np.float32)))
    num_weights = storage.num_weights(trained.net)
    peak = group.sum(np.array([result['peak_memory_mib']], dtype=np.float32))[0]
    return {'workers': group.size, 'threads': common.num_threads(), 'attention': args.attention,
            'batch_size': args.batch_size, **result, 'peak_memory_mib': round(float(peak), 1), 'exchange_ms': exchange,
            'small_sum_ms': small, 'weights': num_weights, 'mbytes_each_way': round(4e-6 * num_weights, 2)}


def main(argv=None):
    parser = cli.Parser(prog='scaling.py', doc=__doc__)
    common.add_iterations(parser, cli.count)
    args = arguments.parse_args(parser, argv)
    with cli.one_line(parser):
        group = workers.join(args.kvstore, args.sync_timeout)
    contexts = devices.contexts(parser, args)
    devices.check_parts(parser, args, group.size)
    with group:
        with cli.one_line(parser):
            result = measure(args, contexts, group)
        if group.rank == 0:
            print(json.dumps(result))
        group.leave()


if __name__ == '__main__':
    cli.start(main)
