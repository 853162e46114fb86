"""The command line: the parser and its types, errors as one line, signals, and what is printed."""
import argparse
import contextlib
import os
import shutil
import signal
import sys
import threading

from tqdm import tqdm


class UserError(Exception):
    """Something that the user can correct; the message is one line."""


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None or action.nargs == 0 else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit code 2 for bad input, takes no abbreviated flags, and shows `doc` above its flags."""

    def __init__(self, prog, doc=''):
        super().__init__(prog, argparse.SUPPRESS, doc, formatter_class=_Formatter, allow_abbrev=False)

    def error(self, message):
        hint = '; --help lists the flags' if message.startswith('unrecognized') else ''
        self.exit(2, f'{self.prog}: error: {printable(message)}{hint}\n')

    def _print_message(self, message, file=None):
        say(message.rstrip('\n'), file or sys.stderr)


def printable(text):
    """The text as one line that every terminal can show."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:5000])


def reason(error):
    """A UserError's message, an OSError as 'file: reason', or the last line of any other: MXNet puts a trace first."""
    if isinstance(error, UserError):
        return str(error)  # a path in it may have line breaks
    if isinstance(error, OSError) and error.strerror:
        return ': '.join(str(part) for part in (error.filename, error.strerror) if part)
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


@contextlib.contextmanager
def one_line(parser):
    """End the program with one line and exit code 2 where the body raises an error, and with 130 at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130)
    except Exception as error:
        if not isinstance(error, (UserError, OSError, MemoryError)) and type(error).__name__ != 'MXNetError':
            raise  # a bug; MXNetError cannot be imported here
        parser.error(reason(error))


class Stop:
    """A context in which the first SIGINT (Ctrl-C), SIGTERM or SIGHUP only sets `signal`. A second one raises
    KeyboardInterrupt."""

    def __init__(self):
        self.signal, self._before = None, {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, _):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def start(main):
    """Run a command's `main`, and exit with what it returns. SIGTERM acts like Ctrl-C."""
    if hasattr(sys, 'ps1'):  # Jupyter's %run: the process outlives the command
        sys.exit(main())

    def report(unraisable):
        if unraisable.exc_type is KeyboardInterrupt:  # raised and lost in the __del__ of an NDArray: raise it again
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        # Ctrl-C can leave half-built MXNet objects, whose __del__ then fails.
        elif not str(getattr(unraisable.object, '__module__', '')).startswith('mxnet'):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    if code in (1, 2):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(code)  # at a normal exit, MXNet may abort, or print its last error again
    sys.exit(code)


def say(text, file=None):
    """Print a line above any progress bar. A line that cannot be written is lost; the program goes on."""
    file = file or sys.stdout
    encoding = getattr(file, 'encoding', None) or 'utf-8'
    try:
        tqdm.write(text.encode(encoding, 'backslashreplace').decode(encoding), file)
        file.flush()
    except (OSError, ValueError, AttributeError):  # a full disk, a closed pipe, or no stream at all
        with contextlib.suppress(OSError, ValueError, AttributeError):  # or Python would try to flush the rest at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def progress(what, total, unit, initial=0, iterable=None):
    """A bar that fits 80 columns, in a terminal only."""
    return tqdm(iterable, what, total, initial=initial, unit=f' {unit}', smoothing=0.1, dynamic_ncols=True,
                bar_format='{desc} {percentage:3.0f}%|{bar:10}| {remaining} left, {rate_fmt}{postfix}',
                disable=not (sys.stderr and sys.stderr.isatty()))


def shown(path):
    """A path as it can be typed in the working folder."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working folder was deleted
        return path
    return path if relative.startswith('..') else relative


def python():
    """How the user can start this Python."""
    return 'python' if shutil.which('python') == sys.executable else shown(sys.executable)


def path(value):
    """The absolute path that a flag names, as text; a leading ~ is the home folder."""
    if not value:  # as "$RUN" is where RUN is not set
        raise argparse.ArgumentTypeError('the path is empty')
    try:
        return os.path.abspath(os.path.expanduser(value))
    except OSError:
        raise argparse.ArgumentTypeError('the working folder was deleted') from None


def _number(kind, low, high):
    def convert(value):
        with contextlib.suppress(ValueError):
            number = float(value)
            if low <= number <= high and (kind is float or number.is_integer()):
                return kind(number)
        raise argparse.ArgumentTypeError(f'{value!r} is not {words} from {low:,} to {high:,}')

    words = 'a whole number' if kind is int else 'a number'
    return convert


count = _number(int, 1, 10 ** 15)  # also written as 1e6
seed = _number(int, 0, 2 ** 32 - 1)
positive = _number(float, 1e-30, 1e30)  # float32 can hold these
fraction = _number(float, 0, 1)
scale = _number(int, 1, 100)
