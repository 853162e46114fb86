"""The command line: parser, number types, one line for an error, signals, and progress."""
import argparse
import contextlib
import os
import shlex
import signal
import sys
import time

from tqdm import tqdm

_MAX_MESSAGE = 5000  # characters, longer than any path


class UserError(Exception):
    """What the user can mend; the message is one line."""


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        no_default = action.default in (None, False, argparse.SUPPRESS)
        return action.help if no_default else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, ends with one line and exit code 2 for bad input, and shows the docstring `doc` as help."""

    def __init__(self, prog, doc=''):
        super().__init__(prog, description=doc, allow_abbrev=False, formatter_class=_Formatter)

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f'unknown argument {unknown[0]!r}; --help lists all')
        return args

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {printable(message)}\n')


def printable(text):
    """The text as one line that every terminal can show."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:_MAX_MESSAGE])


def reason(error):
    """An OSError as 'file: reason'; the last line of any other exception's message (MXNet's have thirty)."""
    if isinstance(error, OSError) and error.strerror:
        return ': '.join(str(part) for part in (error.filename, error.strerror) if part)
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


last_line = reason


@contextlib.contextmanager
def one_line(parser):
    """Turn errors in the body into one line and exit code 2, and Ctrl-C into exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130)
    except (UserError, OSError, MemoryError) as error:
        parser.error(reason(error) if str(error) else 'out of memory')
    except RuntimeError as error:
        if type(error).__name__ != 'MXNetError':
            raise
        parser.error(f'MXNet: {reason(error)}')


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


def say(text, file=None):
    """Print a line above any progress bar. Output that cannot be written ends no run: it is thrown away."""
    file = file or sys.stdout
    try:
        with tqdm.external_write_mode(file):
            print(text.encode(file.encoding or 'utf-8', 'backslashreplace').decode(file.encoding or 'utf-8'), file=file)
            file.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def start(main):
    """Run a command's `main` and end with its exit code. SIGTERM ends it as Ctrl-C does."""
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())


class Progress(tqdm):
    """A bar that fits 80 columns, shown in a terminal only; after a while, one line with an estimate of the time.

    `extra` is work that follows the bar, in its units.
    """

    def __init__(self, what, total, unit, initial=0, extra=0):
        self._unit, self._extra, self._calls, self._started = f' {unit}', extra, 0, None
        super().__init__(desc=what, total=total, initial=initial, unit=f' {unit}', smoothing=0.1, dynamic_ncols=True,
                         bar_format='{desc} {percentage:3.0f}%|{bar:10}| {remaining}, {rate_fmt}{postfix}',
                         disable=not sys.stderr.isatty())
        self._position, self._mark = initial, (time.perf_counter(), initial)

    def update(self, count=1):
        super().update(count)
        self._calls, self._position = self._calls + 1, self._position + count
        if self._calls == 1:  # compiles or builds what the later ones use
            self._started, self._first = time.perf_counter(), self._position
        elif self._calls == 100:
            rate = (self._position - self._first) / (time.perf_counter() - self._started)
            rest = (self.total - self._position + self._extra) / rate
            if rest >= 5:
                say(f'{rate:,.0f}{self._unit}/s, about {duration(rest)} to go')


    def count(self, iterable):
        """The items of an iterable, each counted."""
        for item in iterable:
            yield item
            self.update()

    def rate(self):
        """Units per second since the last call."""
        now, position = time.perf_counter(), self._position
        before, self._mark = self._mark, (now, position)
        return (position - before[1]) / (now - before[0])


def duration(seconds):
    """Seconds in words: 40 s, 5 min, 2 h 10 min."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(round(seconds / 60), 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def shown(path):
    """A path as it can be typed in the working folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith('..') else relative


def command(*words):
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, words))


def text(value):
    """Text that is not empty, as "$RUN" is where RUN is not set."""
    if not value:
        raise argparse.ArgumentTypeError('it is empty')
    return value


def path(value):
    """The absolute path, with ~ expanded."""
    if '\0' in text(value):
        raise argparse.ArgumentTypeError('it contains a null character')
    return os.path.abspath(os.path.expanduser(value))


def _number(value, kind, low, high, words):
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        number = None
    if number is None or not low <= number <= high:
        raise argparse.ArgumentTypeError(f'{value!r} is not {words}')
    return number


def _whole(value):
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(value) if value.strip('+-').isdecimal() else int(number)


def count(value):
    """A whole number from 1 to 2^53 - 1, also written as 1e6."""
    return _number(value, _whole, 1, 2 ** 53 - 1, 'a whole number from 1 on, such as 10000 or 1e4')


def seed(value):
    """A whole number from 0 to 2^32 - 1."""
    return _number(value, int, 0, 2 ** 32 - 1, 'a whole number from 0 to 2^32 - 1')


def positive(value):
    """A number above 0 that float32 can hold."""
    return _number(value, float, 1e-30, 1e30, 'a number from 1e-30 to 1e30')


def fraction(value):
    """A number from 0 to 1."""
    return _number(value, float, 0, 1, 'a number from 0 to 1')


def numbers(value):
    """Different whole numbers with commas between them, such as 0,1."""
    parts = value.split(',')
    if not all(part.isdecimal() and len(part) < 5 for part in parts) or len({*map(int, parts)}) < len(parts):
        raise argparse.ArgumentTypeError(f'{value!r} is not a list of different whole numbers, such as 0,1')
    return value
