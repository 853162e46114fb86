"""A run: its folder, the one process that may train in it, what is written there, and how it ends."""
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata

from system import cli, devices, files

import mxnet as mx

from dataset.load import same_images
from runs import config as configs
from runs import params
from runs.log import Log
from runs.training import NotFinite


class Stopped(Exception):
    """A signal ended the training."""


class Run:
    """A run of train_mnist.py from its lock to its exit code.

    A context. However its body ends, leaving it closes the log, writes config.json, prints the one line that says what to
    do next, and ends the program with the exit code. Workers other than 0 have a temporary folder, so that all of them
    run the same code.

    Parameters
    ----------
    args : argparse.Namespace
        With `resume`, the folder of that run is locked and its config.json is read.
    command : str
    facts : dict
        What `dataset` says of the images. A resumed run must have the same ones.
    group : distributed.workers.Alone

    Raises
    ------
    cli.UserError
        Nothing was changed.
    """

    def __init__(self, args, command, facts, group):
        self.args, self.config, self.folder, self.log = args, {}, args.resume, None
        self._command, self._facts, self._group = command, facts, group
        self.code = 0  # of the program, after the context
        self._training, self._stop, self._stack = None, cli.Stop(), contextlib.ExitStack()
        self._resumes = bool(args.resume) and not group.scratch

    def __enter__(self):
        with self._stack:  # undone where one of these fails
            if self._group.scratch:
                self.folder = self._group.scratch
            elif self.args.resume:
                self._stack.enter_context(lock(self.folder))
                self.config = configs.read(self.folder)
                same_images(self.config.get('images'), self._facts)
            self._stack.enter_context(self._stop)
            self._stack = self._stack.pop_all()
        return self

    def checkpoint(self, net):
        """The checkpoint to continue from, (arrays, state), or None. Raises cli.UserError."""
        path = self.path('checkpoint.safetensors') if self._resumes else ''
        if not os.path.lexists(path):
            return None
        arrays, state = params.load(path, net, params.GROUPS)
        if not all(type(state.get(name)) is int and 0 < state[name] < 2 ** 53 for name in ('samples_seen', 'num_updates')):
            raise cli.UserError(f'{path} is damaged: it does not say how far the run had come')
        if state.get('best_bound') is not None:
            params.load(self.path('best.safetensors'), net)  # the end of the run needs it
        return arrays, state

    def is_complete(self, training):
        """Whether the run has seen all training samples, and ended with its result; the same at all workers."""
        complete = (training.seen >= self.args.num_train_samples
                    and self.config.get('validation', {}).get('samples_seen') == training.seen)
        return self._group.any(complete)

    def begin(self, training):
        """Write config.json into the run's folder, which is created if this is a new run, and open the log."""
        self._training, computed = training, training.description()
        before = self.config.get('computed_by', computed)
        self.config.update(arguments={k: v for k, v in vars(self.args).items() if k != 'resume'}, images=self._facts,
                           computed_by=computed, versions=versions())
        self.config['resumed_with' if self._resumes else 'command'] = self._command
        if not self.folder:
            self.folder = create(self.args)
            self._stack.enter_context(lock(self.folder))
        self._write_config()
        self.log = Log(self.folder, self.config['arguments'], training.seen)
        if before != computed:
            cli.say(f'Note: computed by {before} before, by {computed} now; the parameters will differ in their last bits '
                    'from those of an uninterrupted run.')
        cli.say(f'Run folder: {cli.shown(self.folder)}' + (f', from {training.seen:,} training samples on' if training.seen else ''))

    def path(self, name):
        return os.path.join(self.folder, name)

    def save_best(self):
        """Write best.safetensors."""
        params.save(self.path('best.safetensors'), self._training.net, params.arrays_of(self._training.net))

    def save_checkpoint(self):
        """Write checkpoint.safetensors; everything logged so far is on the disk before."""
        self.log.sync()
        params.save(self.path('checkpoint.safetensors'), self._training.net, *self._training.state())

    def load_best(self):
        """The arrays of best.safetensors of worker 0, put into the network of every worker."""
        net = self._training.net
        arrays = params.load(self.path('best.safetensors'), net)[0]
        params.set_arrays(net, {name: self._group.broadcast(array) for name, array in arrays.items()})

    def stops(self):
        """Whether a signal asks any worker to stop. Every worker must call it equally often."""
        return self._group.any(self._stop.signal is not None)

    def finish(self, validation):
        """Keep the result, which makes the run complete."""
        self.config['validation'] = validation

    def _write_config(self):
        config = {**self.config, 'samples_seen': self._training.seen}
        files.write_json(self.path('config.json'), config)

    def __exit__(self, kind, error, trace):
        with self._stack:
            line, code = self._ending(error)
            if self.log:
                if code in (0, 130):
                    self.log.save_curves()
                self.log.close()
            if self._training:
                with contextlib.suppress(OSError):  # a full disk, which was reported
                    self._write_config()
        if kind and not line:
            return False
        if line:
            cli.say(line, sys.stderr if code in (1, 2) else sys.stdout)
        if code in (1, 2):
            raise SystemExit(code)
        self.code = code
        return True

    def _ending(self, error):
        """The last line of the program, and its exit code, for what the body raised."""
        seen = self._training.seen if self._training else 0
        resume = cli.command('python', *self._group.launcher, 'train_mnist.py', '--resume', cli.shown(self.folder)) if self.folder else ''
        if error is None:
            return '', 0
        if isinstance(error, (Stopped, KeyboardInterrupt)):
            code = 0 if self._stop.signal in (signal.SIGTERM, signal.SIGHUP) and isinstance(error, Stopped) else 130
            return f'Stopped after {seen:,} training samples. Continue with: {resume}' if resume else 'Stopped.', code
        if isinstance(error, NotFinite):
            rate = f'-r {self.args.learning_rate / 10:g}'
            if os.path.exists(self.path('best.safetensors')):
                again = cli.command('python', 'train_mnist.py', '--init', cli.shown(self.folder))
                return f'train_mnist.py: {error}. The best parameters are kept; start from them with: {again} {rate}', 1
            return f'train_mnist.py: {error}. Try a smaller learning rate: {rate}', 1
        if isinstance(error, (cli.UserError, OSError, MemoryError, mx.MXNetError)):
            text = f'train_mnist.py: error: {cli.printable(cli.reason(error))}'
            if not self._training or not seen:
                if self._training and not self._resumes:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self._training = None
                return text, 2
            return f'{text}. Continue with: {resume}', 1
        return '', 1


def versions():
    """Versions of Python and of the packages that a result depends on."""
    return {'python': platform.python_version(), 'mxnet': mx.__version__,
            **{name: metadata.version(name) for name in ('numpy', 'mxboard', 'pillow')}}


def check_writable(folder):
    """Create `folder` if it is missing, and try to write there; returns whether it was missing. Raises cli.UserError."""
    is_new = not os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cli.UserError(f'cannot write in {folder}: {error.strerror}') from None
    return is_new


def create(args):
    """Create the folder logdir/date-time-name of a new run; no two runs ever get the same."""
    name = args.name or ('attention' if args.attention else 'no_attention')
    stem = os.path.join(args.logdir, f'{time.strftime("%Y%m%d-%H%M%S")}-{name}')
    for suffix in ('', *(f'-{k}' for k in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            os.makedirs(stem + suffix)
            return stem + suffix
    raise cli.UserError(f'no free folder name beside {stem}')


@contextlib.contextmanager
def lock(folder):
    """Hold a run's folder for this process. The system releases it when the process ends, however it does.

    Raises cli.UserError where another process holds it, or where there is no such folder.
    """
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cli.UserError(f'{folder} is not the folder of a run: {error.strerror}') from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise cli.UserError(f'{folder} is in use by another training run') from None
    finally:
        os.close(file)
