"""A run: its folder, the one process that may train in it, what is written there, and how it ends."""
import contextlib
import fcntl
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
from importlib import metadata

from system import cli, files

import mxnet as mx

from dataset.load import same_images
from runs import config as configs
from runs import params
from runs.log import Log
from runs.training import NotFinite

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'train_mnist.py')


class Stopped(Exception):
    """A signal ended the training."""


class Run:
    """A context: a run of train_mnist.py from its lock to its exit code.

    However its body ends, leaving the context closes the log. If the run failed or was stopped, one line says what to
    do next; if it finished or was stopped, its curves are drawn. After an error in training it raises SystemExit; else
    `code` is the exit code. A new run that fails before its first step leaves no folder. Workers other than 0 have a
    temporary folder, so that all of them run the same code. Raises cli.UserError where the run to resume is in use, or
    had other images than those of `facts`.
    """

    def __init__(self, args, command, facts, group):
        self.args, self.config, self.folder, self.log = args, {}, args.resume, None
        self._command, self._facts, self._group = command, facts, group
        self.code = 0  # of the program, after the context
        self._training, self._began_at, self._stop, self._stack = None, 0, cli.Stop(), contextlib.ExitStack()
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
        if not self._resumes:
            return None
        path = self.path(params.CHECKPOINT)
        if not os.path.lexists(path):
            if 'validation' in self.config or os.path.lexists(self.path(params.BEST)):
                raise cli.UserError(f'{cli.shown(self.folder)} has no {params.CHECKPOINT}: start a new run from its '
                                    'model, with --init')
            return None
        arrays, state = params.load(path, net, params.PREFIXES)
        if state.get('is_best'):  # the process may have died before it wrote them
            self._save_best(net, arrays)
        elif state['best_bound'] is not None:
            params.load(self.path(params.BEST), net)  # the end of the run needs it
        return arrays, state

    def is_complete(self, training):
        """Whether the run has seen all training samples, and ended with its result; the same at all workers."""
        complete = (training.seen >= self.args.num_train_samples
                    and self.config.get('validation', {}).get('samples_seen') == training.seen)
        return self._group.any(complete)

    def begin(self, training):
        """Create the folder of a new run, open the log, and write config.json."""
        arguments = {name: value for name, value in vars(self.args).items() if name != 'resume'}
        kept = {name: self.config[name] for name in ('command', 'validation') if name in self.config}
        self.config = {'arguments': arguments, 'images': self._facts, 'versions': versions(), **kept,
                       'resumed_with' if self._resumes else 'command': self._command}
        self._training, self._began_at = training, training.seen
        if not self.folder:
            self.folder = create(self.args)
            self._stack.enter_context(lock(self.folder))
        for name in os.listdir(self.folder):
            if re.search(r'\.\d+\.tmp$', name):  # of a process that was killed
                os.remove(self.path(name))
        has_checkpoint = os.path.lexists(self.path(params.CHECKPOINT))
        self.log = Log(self.folder, arguments, training.seen if has_checkpoint else -1)  # -1: not even a point at 0
        files.write_json(self.path('config.json'), self.config)
        start = f', continued at {training.seen:,} training samples' if training.seen else ''
        cli.say(f'Run folder: {cli.shown(self.folder)}{start}')

    def path(self, name):
        return os.path.join(self.folder, name)

    def save_checkpoint(self, is_best=False):
        """Write checkpoint.safetensors, once everything logged so far is on the disk, and then best.safetensors too if
        these are the best parameters so far."""
        self.log.sync()
        arrays, state = self._training.state()
        params.save(self.path(params.CHECKPOINT), arrays, {**state, 'is_best': is_best})
        if is_best:
            self._save_best(self._training.net, arrays)

    def _save_best(self, net, arrays):
        """Write best.safetensors from the arrays of a checkpoint."""
        params.save(self.path(params.BEST), {name: arrays[name] for name in params.of(net)})

    def load_best(self):
        """Put the arrays of worker 0's best.safetensors into the network of every worker."""
        net = self._training.net
        arrays = params.arrays_of(net) if self._group.scratch else params.load(self.path(params.BEST), net)[0]
        params.set_arrays(net, {name: self._group.broadcast(array) for name, array in arrays.items()})

    def stops(self):
        """Whether a signal asks any worker to stop. All workers must call it the same number of times."""
        return self._group.any(self._stop.signal is not None)

    def finish(self, validation):
        """Write the result into config.json, which makes the run complete."""
        self.config['validation'] = validation
        files.write_json(self.path('config.json'), self.config)

    def __exit__(self, kind, error, trace):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # for a second at most; the stack restores the handlers
        with self._stack:
            trained = self._training is not None and self._training.seen > self._began_at
            line, code = self._ending(error, trained)
            if self.log:
                if code in (0, 130):
                    self.log.save_curves()
                self.log.close()
            if error and not trained and not self.args.resume and self.folder:
                shutil.rmtree(self.folder, ignore_errors=True)
            if line:
                cli.say(line, sys.stderr if code == 1 else sys.stdout)
        if code == 1 and line:
            raise SystemExit(1)
        self.code = code
        return bool(line)

    def _ending(self, error, trained):
        """The last line of the program, and its exit code, for what the body raised. No line for a bug, nor for an
        error before the first step: `main` prints that one."""
        seen, is_new = self._training.seen if self._training else 0, not self.args.resume
        if error is None:
            return '', 0
        script = (cli.python(), *self._group.launcher, cli.shown(SCRIPT))
        gpus = ['--gpu'] if self.args.gpu else ['--gpus', self.args.gpus] if self.args.gpus else []
        resume = self.folder and f'Continue with: {shlex.join([*script, "--resume", cli.shown(self.folder), *gpus])}'
        if isinstance(error, (Stopped, KeyboardInterrupt)):
            if is_new and not trained:
                return 'Stopped before the first step.', 130
            code = 0 if isinstance(error, Stopped) and self._stop.signal != signal.SIGINT else 130
            after = f' after {seen:,} training samples' if isinstance(error, Stopped) else ''  # which are saved
            return f'Stopped{after}. {resume}', code
        if isinstance(error, NotFinite) and seen:
            rate = f'-r {self.args.learning_rate / 10:g}'
            if os.path.exists(self.path(params.BEST)):
                again = shlex.join([cli.python(), cli.shown(SCRIPT), '--init', cli.shown(self.folder), *gpus])
                return f'train_mnist.py: {error}. The best parameters are kept; start from them with: {again} {rate}', 1
            return f'train_mnist.py: {error}. Try a smaller learning rate: {rate}', 1
        if trained and isinstance(error, (cli.UserError, OSError, MemoryError, mx.MXNetError)):
            return f'train_mnist.py: error: {cli.printable(cli.reason(error))}. {resume}', 1
        return '', 1


def versions():
    """Versions of Python and of the packages that a result depends on."""
    return {'python': platform.python_version(), 'mxnet': mx.__version__,
            **{name: metadata.version(name) for name in ('numpy', 'mxboard', 'pillow')}}


def create(args):
    """Create the folder logdir/date-time-name of a new run; no two runs ever get the same."""
    name = (args.name or ('attention' if args.attention else 'no_attention')).replace('/', '-')
    stem = os.path.join(args.logdir, f'{time.strftime("%Y%m%d-%H%M%S")}-{name}')
    for suffix in ('', *(f'-{k}' for k in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            os.makedirs(stem + suffix)
            return stem + suffix
    raise cli.UserError(f'no free folder name beside {stem}')


@contextlib.contextmanager
def lock(folder):
    """Lock a run's folder; the system releases the lock if the process dies. Raises cli.UserError if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise cli.UserError(f'{folder} is in use by another training run') from None
        except OSError as error:
            raise cli.UserError(f'{folder} cannot be locked: {error.strerror}') from None
        yield
