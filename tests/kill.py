"""Kill a run with SIGKILL at random moments and resume it, again and again; prints what happened as JSON.

    python tests/kill.py KILLS                     # in a folder with images.npy

Every training is a fork of this process, so that none waits for imports.
"""
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import conftest  # noqa: F401
import train_mnist
from pictures import plot
from runs import curves
from small_runs import SIZES, checkpoint_of, code_of, only_folder

ARGV = [*SIZES, '-t', '1e6', '-f', '32', '-v', '8', '--log_freq', '8', '--checkpoint_freq', '8', '--lr_decay', '0']


def train(*argv):
    """Train in this process, which prints to a file."""
    with open('output.txt', 'a') as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(code_of(train_mnist.main, *argv))


def start(*argv):
    process = multiprocessing.get_context('fork').Process(target=train, args=argv)
    process.start()
    return process


def samples_logged():
    """Training samples at the last point of the curves; 0 where there is no run yet."""
    paths = [*Path('killed').glob('*/curves.csv')]
    return int(curves.read(paths[0])['samples_seen'].max(initial=0)) if paths else 0


def main(kills):
    plot.figure, plot.png = (lambda table: None), (lambda figure: b'a figure')
    rng, refusals, lost, moments = np.random.default_rng(0), 0, [], []
    while len(moments) < kills:
        first = moments[-1] if moments else 0
        process = start('--resume', only_folder('killed')) if moments else start(*ARGV, '--logdir', 'killed')
        if len(moments) % 2:  # at any moment, the start too
            time.sleep(rng.uniform(0.01, 0.3))
        else:  # after some steps, so that there is progress on a slow machine too
            enough = first + 8 * rng.integers(3, 8)
            while samples_logged() < enough and process.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        refusals += process.exitcode != -signal.SIGKILL  # it ended by itself
        run = only_folder('killed')
        moments.append(checkpoint_of(run)[1]['samples_seen'])
        lost.append(samples_logged() - moments[-1])
    total, codes = moments[-1] + 40, []
    for argv in (['--resume', run, '-t', total], [*ARGV, '--logdir', 'whole', '-t', total]):
        process = start(*argv)
        process.join()
        codes.append(process.exitcode)
    print(json.dumps({'refusals': refusals, 'codes': codes, 'lost': lost, 'moments': moments, 'run': str(run),
                      'whole': str(only_folder('whole'))}))


if __name__ == '__main__':
    main(int(sys.argv[1]))
