"""Kill a run with SIGKILL at random moments and resume it, again and again; prints what happened as JSON.

    python tests/kill.py KILLS                     # in a folder with images.npy

Every training is a fork of this process, so that none waits for imports.
"""
import contextlib
import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback

import numpy as np

import conftest  # noqa: F401
import train_mnist
from pictures import curves
from runs.training import Training
from small_runs import SIZES, checkpoint_of, code_of, only_folder

ARGV = [*SIZES, '-t', '1e6', '-f', '32', '-v', '8', '--log_freq', '8', '--checkpoint_freq', '8', '--lr_decay', '0']
SEEN = mmap.mmap(-1, 8)  # training samples, shared with the forks


def train(*argv):
    """Fork a training that notes in SEEN how far it is; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 99
    with contextlib.suppress(BaseException):
        with open('output.txt', 'a') as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        try:
            code = code_of(train_mnist.main, *argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(kills):
    def noted(training, losses, update=Training.update):
        numbers = update(training, losses)
        SEEN[:] = struct.pack('<q', training.seen)
        return numbers

    Training.update, curves.png = noted, lambda table: b'a figure'
    rng, refusals, lost, moments, run = np.random.default_rng(0), 0, [], [], None
    while len(moments) < kills:
        SEEN[:], first = struct.pack('<q', 0), moments[-1] if moments else 0
        process = train('--resume', run) if run else train(*ARGV, '--logdir', 'killed')
        if len(moments) % 2:  # at any moment, the start too
            time.sleep(rng.uniform(0.01, 0.3))
        else:  # after some steps, so that there is progress on a slow machine too
            steps, deadline = rng.integers(3, 8), time.monotonic() + 60
            while struct.unpack('<q', SEEN)[0] < first + 8 * steps and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        refusals += os.WIFEXITED(os.waitpid(process, 0)[1])  # it ended by itself
        if not run:
            run = str(only_folder('killed'))
        seen, = struct.unpack('<q', SEEN)
        moments.append(checkpoint_of(run)[1]['samples_seen'])
        lost.append(seen - moments[-1])
    total, codes = moments[-1] + 40, []
    for argv in (['--resume', run, '-t', total], [*ARGV, '--logdir', 'whole', '-t', total]):
        codes.append(os.waitstatus_to_exitcode(os.waitpid(train(*argv), 0)[1]))
    print(json.dumps({'refusals': refusals, 'codes': codes, 'lost': lost, 'moments': moments, 'run': run,
                      'whole': str(only_folder('whole'))}))


if __name__ == '__main__':
    main(int(sys.argv[1]))
