"""The processes that train one network together: one alone, or several through MXNet's distributed KVStore."""
import os
import socket
import sys
import threading
import time
import traceback
import zlib

from system import cli

import mxnet as mx
import numpy as np
from mxnet import nd

_ENVIRONMENT = ('DMLC_ROLE', 'DMLC_PS_ROOT_URI', 'DMLC_PS_ROOT_PORT', 'DMLC_NUM_SERVER', 'DMLC_NUM_WORKER',
                'DMLC_TASK_ID')
_FIRST_KEY = 10 ** 6  # of the KVStore; those of Trainer's parameters are 0, 1, ...


class WorkersError(cli.UserError):
    """The workers cannot train together; the message is one line for the user."""


def join(kvstore, timeout):
    """The group of --kvstore and --sync_timeout: a Workers with 'dist_sync', Alone otherwise. Raises WorkersError."""
    if kvstore == 'dist_sync':
        rank, size = _rank_and_size()
        return Workers(rank, size, timeout) if size > 1 else Alone()
    if os.environ.get('DMLC_ROLE') == 'worker':
        raise WorkersError(f'started as one of several workers, but with --kvstore {kvstore}: use dist_sync')
    return Alone(kvstore)


class Alone:
    """A group of one: worker 0, whose sums are what it gives.

    Parameters
    ----------
    kvstore : str
        What adds up the gradients of this process's devices: 'local' or 'device'.

    Attributes
    ----------
    rank : int
        Number of this worker in its group. Worker 0 alone prints and writes.
    size : int
        Number of workers.
    kvstore : str or mxnet.kvstore.KVStore
        What gluon.Trainer takes.
    """

    rank, size = 0, 1

    def __init__(self, kvstore='device'):
        self.kvstore = kvstore

    def connect(self):
        """Find the others."""

    def begin(self, trainer):
        """Make a Trainer ready for the first step; all workers have the same parameters already."""

    def sum(self, array):
        """The sum of the workers' NumPy arrays, in their own precision; all call it in the same order."""
        return array

    def any(self, flag):
        """Whether `flag` is true at one worker or more."""
        return bool(self.sum(np.array([flag], dtype=np.float32))[0])

    def broadcast(self, array):
        """The array of worker 0; the others give one of the same shape and type."""
        return self.sum(array if self.rank == 0 else np.zeros_like(array))

    def check_same(self, facts):
        """Raises WorkersError, at every worker, where one has other facts (a dict) than worker 0."""

    def num_here(self):
        """Number of the workers that this host has, this one among them."""
        return 1

    def leave(self):
        """End the common work; returns when all others have come here too."""

    def abandon(self, code):
        """End this process with an exit code, if others would wait for it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        pass


class Workers(Alone):
    """This process and the other workers of its group: --kvstore dist_sync.

    A context: a worker that leaves it with an error ends at once. MXNet would wait for the others, and they for it.

    Parameters
    ----------
    rank, size : int
    timeout : float
        Seconds. A worker that hears nothing from the others for so long ends with one line and exit code 1.
    """

    def __init__(self, rank, size, timeout):
        self.rank, self.size = rank, size
        self._timeout, self._keys, self._heard = timeout, {}, None
        self._left, self._watchman = threading.Event(), threading.Thread(target=self._watch, daemon=True)

    def connect(self):
        """Find the others. Raises WorkersError where there is no scheduler."""
        address = os.environ['DMLC_PS_ROOT_URI'], int(os.environ['DMLC_PS_ROOT_PORT'])
        self._heard = time.monotonic()
        _wait_for(address, self._heard + self._timeout)  # MXNet would wait for ever
        self._heard = time.monotonic()
        self._watchman.start()
        self.kvstore = mx.kv.create('dist_sync')

    def begin(self, trainer):
        """Give the KVStore the parameters before the first step.

        Without a wait for each other, a fast worker's first gradients overtake the parameters that a slow one still
        waits for, and it goes on with a gradient in their place.
        """
        trainer._init_kvstore()  # Trainer has no public way to do this before the first step
        trainer._init_params()
        nd.waitall()
        self.kvstore._barrier()

    def sum(self, array):
        value = nd.array(array, dtype=array.dtype)
        kind = array.shape, array.dtype.str
        if kind not in self._keys:
            self._keys[kind] = _FIRST_KEY + len(self._keys)
            self.kvstore.init(self._keys[kind], nd.zeros_like(value))
        self.kvstore.pushpull(self._keys[kind], value, out=value)
        total = value.asnumpy()
        self._heard = time.monotonic()
        return total

    def check_same(self, facts):
        """Raises WorkersError, at every worker, where one has other facts (a dict) than worker 0."""
        table = np.zeros((self.size, 1 + len(facts)))  # of checksums, a row per worker
        table[self.rank] = [1, *(zlib.crc32(repr(fact).encode()) for fact in facts.values())]
        table = self.sum(table)
        if (table[:, 0] != 1).any():
            raise WorkersError(f'DMLC_TASK_ID must be 0 ... {self.size - 1}, once each')
        for rank, name in ((rank, name) for rank in range(self.size) for k, name in enumerate(facts, start=1)
                           if table[rank, k] != table[0, k]):
            raise WorkersError(f'worker {rank} differs from worker 0: {name} is not the same (here: {facts[name]!r})')

    def num_here(self):
        hosts = np.zeros(self.size)
        hosts[self.rank] = zlib.crc32(socket.gethostname().encode())
        hosts = self.sum(hosts)
        return int((hosts == hosts[self.rank]).sum())

    def leave(self):
        """End the common work; returns when all others have come here too."""
        self.any(False)
        self._left.set()
        if self._watchman.is_alive():
            self._watchman.join()  # it holds the KVStore, whose threads MXNet must end before the process does

    def abandon(self, code):
        """End this process at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            if not isinstance(error, SystemExit):
                traceback.print_exception(kind, error, trace)
            self.abandon(error.code if isinstance(error, SystemExit) else 1)

    def _watch(self):
        while not self._left.wait(max(0.1, self._heard + self._timeout - time.monotonic())):
            if time.monotonic() > self._heard + self._timeout:
                cli.complain(f'worker {self.rank} has not heard from the other workers for {self._timeout:g} seconds. '
                             'Go on from the last checkpoint with --resume')
                self.abandon(1)


def _rank_and_size():
    """(rank, number of workers) from the environment.

    The rank is DMLC_TASK_ID, which the launcher gives, so that the host of worker 0 is known; the rank that MXNet gives
    follows from the ports that the workers happen to get.
    """
    missing = [name for name in _ENVIRONMENT if not os.environ.get(name)]
    if missing:
        raise WorkersError(f'--kvstore dist_sync needs {", ".join(missing)} in the environment; distributed.launch '
                           'sets them; --kvstore device trains alone')
    for name in _ENVIRONMENT[2:]:
        if not os.environ[name].isdecimal():
            raise WorkersError(f'{name} must be a number, not {os.environ[name]!r}')
    rank, size = (int(os.environ[name]) for name in ('DMLC_TASK_ID', 'DMLC_NUM_WORKER'))
    if rank >= size:
        raise WorkersError(f'DMLC_TASK_ID is {rank}, but with {size} workers at most {size - 1}')
    return rank, size


def _wait_for(address, deadline):
    while True:
        try:
            socket.create_connection(address, timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise WorkersError(f'no scheduler answers at {address[0]}:{address[1]}: '
                                   f'{error.strerror or error}') from None
            time.sleep(0.2)
