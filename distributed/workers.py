"""The processes that train one network: one alone, or several through MXNet's distributed KVStore."""
import contextlib
import os
import shlex
import sys
import tempfile
import threading
import time
import zlib

from system import cli

import mxnet as mx
import numpy as np


def join(kvstore, timeout):
    """The group for --kvstore and --sync_timeout: Workers with 'dist_sync', Alone otherwise. Raises cli.UserError."""
    if kvstore == 'dist_sync':
        return Workers(timeout)
    if os.environ.get('DMLC_ROLE') == 'worker':
        raise cli.UserError(f'started as one of several workers, but with --kvstore {kvstore}: use dist_sync')
    return Alone(kvstore)


class Alone(contextlib.AbstractContextManager):
    """A group of one worker, and what Workers inherit from it.

    All workers run the same code, each on its part of every batch, and call the same methods in the same order.
    """

    rank, size = 0, 1
    scratch = None  # a temporary folder to use instead of the run's, at every worker but worker 0
    launcher = []  # words between `python` and a script that start a group like this one

    def __init__(self, kvstore='device'):
        self._kvstore, self._keys = mx.kv.create(kvstore), set()

    def __exit__(self, kind, error, trace):
        pass

    def sum_gradients(self, parameters):
        """Replace the gradients of parameters, in every context, with their sum over all contexts and workers."""
        gradients = [parameter.list_grad() for parameter in parameters]
        if self.size > 1 or len(gradients[0]) > 1:
            self._add_up([parameter.name for parameter in parameters], gradients)

    def _add_up(self, keys, arrays):
        if keys[0] not in self._keys:
            self._keys.add(keys[0])
            self._kvstore.init(keys, [copies[0] for copies in arrays])  # for the shapes; the first sum replaces these
        self._kvstore.pushpull(keys, arrays)

    def gather(self, array, number):
        """The NumPy arrays of the first `number` workers, bit for bit; all give one of the same shape and type."""
        return array[np.newaxis]

    def sum(self, array):
        """The sum of the workers' NumPy arrays."""
        return self.gather(array, self.size).sum(axis=0)

    def any(self, flag):
        """Whether `flag` is true at one worker or more."""
        return bool(self.gather(np.array(flag), self.size).any())

    def broadcast(self, array):
        """The NumPy array of worker 0; the others give one of the same shape and type."""
        return self.gather(array, 1)[0]

    def check_same(self, facts):
        """Raise cli.UserError, at every worker, if one has other facts (a dict) than worker 0."""
        sums = (zlib.crc32(repr(fact).encode()) for fact in facts.values())
        table = self.gather(np.array([self.rank + 1, *sums], np.uint32), self.size)
        if (table[:, 0] != np.arange(self.size) + 1).any():
            raise cli.UserError(f'DMLC_TASK_ID must be 0 ... {self.size - 1}, once each')
        for rank, k in np.argwhere(table[:, 1:] != table[0, 1:]):
            raise cli.UserError(f'worker {rank} differs from worker 0 in {list(facts)[k]}')


class Workers(Alone):
    """Several workers (--kvstore dist_sync): a context whose end waits for all of them.

    An exception ends the process at once, with the code of a SystemExit, or a traceback and code 1: otherwise MXNet
    would wait for the other workers, and they for this one. A wait of `timeout` seconds ends it too.
    """

    def __init__(self, timeout):
        try:  # MXNet's own rank follows from the workers' ports; DMLC_TASK_ID puts worker 0 on the first host
            self.rank, self.size = (int(os.environ[name]) for name in ('DMLC_TASK_ID', 'DMLC_NUM_WORKER'))
        except (KeyError, ValueError) as error:
            raise cli.UserError(f'--kvstore dist_sync needs what distributed.launch sets ({error}); to resume in one '
                                'process: --kvstore device') from None
        self.launcher = shlex.split(os.environ.get('DISTRIBUTED_LAUNCH', f'-m distributed.launch -n {self.size}'))
        self._timeout, self._waits_since, self._keys = timeout, float('inf'), set()

    def __enter__(self):
        threading.Thread(target=self._watch, daemon=True).start()
        with self._waiting():  # for all processes
            self._kvstore = mx.kv.create('dist_sync')
        if self.rank:
            self._folder = tempfile.TemporaryDirectory()
            self.scratch = self._folder.name
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # worker 0 prints the same
        return self

    def __exit__(self, kind, error, trace):
        if kind not in (None, SystemExit):
            sys.excepthook(kind, error, trace)
        if kind and (kind is not SystemExit or error.code):
            sys.stdout.flush()
            os._exit(error.code if kind is SystemExit else 1)
        self.any(False)  # waits for the others
        with self._waiting():
            self._kvstore = None  # MXNet signs off at the scheduler

    @contextlib.contextmanager
    def _waiting(self):
        """Its body waits for other processes, and may take `timeout` seconds."""
        self._waits_since = time.monotonic()
        yield
        self._waits_since = float('inf')

    def sum_gradients(self, parameters):
        gradients = [gradient for parameter in parameters for gradient in parameter.list_grad()]
        for gradient in gradients:
            gradient.wait_to_read()  # for this worker's own work
        with self._waiting():
            super().sum_gradients(parameters)
            for gradient in gradients:
                gradient.wait_to_read()

    def gather(self, array, number):
        table = np.zeros((number, array.nbytes), np.float32)  # of bytes: MXNet's servers round to float32
        if self.rank < number:
            table[self.rank] = np.frombuffer(array.tobytes(), np.uint8)
        sums = mx.nd.array(table)
        with self._waiting():
            self._add_up([str(table.shape)], [[sums]])
            table = sums.asnumpy().astype(np.uint8)
        return table.view(array.dtype).reshape(number, *array.shape)

    def _watch(self):
        while time.monotonic() < self._waits_since + self._timeout:
            time.sleep(0.2)
        cli.say(f'train_mnist.py: worker {self.rank} has heard nothing from the others for {self._timeout:g} seconds',
                sys.stderr)
        sys.stdout.flush()
        os._exit(1)
