"""Kill a training with SIGKILL at random moments and resume it, again and again; prints what happened as JSON.

    python tests/kill.py FOLDER KILLS

FOLDER has MNIST files in data/. Every training is a fork of this process, so that none waits for imports.
"""
import json
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from system import cli  # noqa: F401, I001  (before mxnet)
import numpy as np
from runs import storage
import train_mnist

BATCH, CHECKPOINT_FREQ = 8, 16
ARGV = ['--attention', '-s', '2', '-u', '8', '-l', '2', '-b', str(BATCH), '-f', '64', '-v', '8', '--log_freq', '32',
        '--checkpoint_freq', str(CHECKPOINT_FREQ), '-t', '1e6', '--lr_decay', '0']


def train(argv, progress):
    """Fork a training that notes the samples seen in `progress` after each step; its process id."""
    process = os.fork()
    if process:
        return process
    try:
        with open('output.txt', 'a') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        step = train_mnist.Training.step

        def noted(training, x):
            numbers = step(training, x)
            progress[:8] = struct.pack('<q', training.seen)
            return numbers

        train_mnist.Training.step = noted
        code = train_mnist.main(argv)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def seen_in_checkpoint(folder):
    path = os.path.join(folder, 'checkpoint.safetensors')
    if not os.path.exists(path):
        return 0
    net = storage.build_net(storage.read_config(folder)['arguments'])
    return storage.load_checkpoint(folder, 'checkpoint', net)[1]['samples_seen']


def wait_for_steps(progress, number):
    deadline, first = time.monotonic() + 60, None
    while time.monotonic() < deadline:
        seen, = struct.unpack('<q', progress[:8])
        first = first or seen
        if seen >= first + number * BATCH > number * BATCH:
            return
        time.sleep(0.001)


def main(folder, kills):
    os.chdir(folder)
    rng, progress = np.random.default_rng(0), mmap.mmap(-1, 8)
    refusals, lost, moments, run = 0, [], [], None
    while len(moments) < kills:
        progress[:8] = struct.pack('<q', 0)
        process = train([*ARGV, '--logdir', 'killed'] if run is None else ['--resume', run], progress)
        if rng.random() < 0.5:  # at any moment, the start too
            time.sleep(rng.uniform(0.02, 0.6))
        else:  # after some steps, so that there is progress on a slow machine too
            wait_for_steps(progress, rng.integers(3, 10))
            time.sleep(rng.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if run is None:
            runs = [name for name in os.listdir('killed') if name[0] != '.'] if os.path.isdir('killed') else []
            if not runs:
                continue  # killed before it had a folder: nothing to resume
            run = os.path.join('killed', runs[0])
        refusals += os.WIFEXITED(status)  # it ended by itself
        seen, = struct.unpack('<q', progress[:8])
        moments.append(seen_in_checkpoint(run))
        lost.append(max(0, seen - moments[-1]))
    total = moments[-1] + 10 * BATCH
    codes = []
    for argv in (['--resume', run, '-t', str(total)], [*ARGV, '--logdir', 'whole', '-t', str(total)]):
        codes.append(os.waitstatus_to_exitcode(os.waitpid(train(argv, progress), 0)[1]))
    whole = os.path.join('whole', os.listdir('whole')[0])
    same = {name: Path(run, name).read_bytes() == Path(whole, name).read_bytes()
            for name in ('last.safetensors', 'best.safetensors')}
    print(json.dumps({'kills': kills, 'refusals': refusals, 'codes': codes, 'largest_loss': max(lost), 'same': same,
                      'moments': moments, 'run': run, 'whole': whole}))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
