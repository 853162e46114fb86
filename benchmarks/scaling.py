"""Time synchronous training steps of one worker or several, and their exchange of gradients alone.

    python -m benchmarks.scaling --attention -b 128
    python -m distributed.launch -n 2 benchmarks.scaling --attention -b 128 --kvstore dist_sync

Takes the flags of train_mnist.py. Worker 0 prints one line of JSON; the peak memory is that of all workers together.
"""
import json
import statistics
import time

from system import cli, devices

import numpy as np
from mxnet import nd

from benchmarks import common, draw_gluon
from distributed import workers
from runs import config, params

_REPEATS = 10


def median_ms(action):
    """Median milliseconds of an action, the first two not counted."""
    seconds = []
    for _ in range(2 + _REPEATS):
        started = time.perf_counter()
        action()
        nd.waitall()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(seconds[2:]), 2)


def measure(args, group):
    training, step = draw_gluon.make_step(args, group)
    parameters = list(params.of(training.net).values())
    num_weights = sum(parameter.data().size for parameter in parameters)
    step_ms = median_ms(step)
    return {'workers': group.size, 'threads': devices.threads(), 'attention': args.attention,
            'batch_size': args.batch_size, 'samples_per_s': round(1e3 * args.batch_size / step_ms, 1),
            'exchange_ms': median_ms(lambda: group.sum_gradients(parameters)),
            'small_sum_ms': median_ms(lambda: group.sum(np.zeros(2))), 'weights': num_weights,
            'mbytes_each_way': round(4e-6 * num_weights, 2),
            'peak_memory_mib': round(float(group.sum(np.array(common.peak_memory_mib()))), 1)}


def main(argv=None):
    args = config.parse_args(argv, __doc__)
    args.input_height, args.input_width = config.image_shape(args) or (28, 28)
    with cli.one_line(config.build_parser()), workers.join(args.kvstore, args.sync_timeout) as group:
        config.check_sizes(args)
        result = measure(args, group)
        if group.rank == 0:
            print(json.dumps(result))


if __name__ == '__main__':
    cli.start(main)
