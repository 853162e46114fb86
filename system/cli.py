"""The command line: parser, number types, one line for an error, and the signals that stop a training."""
import argparse
import contextlib
import difflib
import os
import re
import shlex
import shutil
import signal
import sys
import time

from tqdm import tqdm

_PATIENCE = 2  # seconds
_LONGEST = 5000  # characters of a message, more than the longest path has
_TIMED_UPDATES = 100  # of a bar, before it is said how long the whole takes


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A fixed width, so that the help reads the same everywhere, and `(default: ...)` where there is one."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=36, width=110)

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f'{", ".join(action.option_strings)} {value}'  # before Python 3.13, the value came after each name

    def _get_help_string(self, action):
        without = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return action.help if without else f'{action.help} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
    """No abbreviations, one line with exit code 2 for what is wrong, and the first line of `doc` as description."""

    def __init__(self, prog=None, doc=''):
        super().__init__(prog, description=doc.partition('\n')[0], allow_abbrev=False, formatter_class=_Formatter)

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            close = difflib.get_close_matches(unknown[0].partition('=')[0], re.findall(r'--\w+', self.format_help()), 1)
            self.error(f'unknown argument {unknown[0]!r}{f", did you mean {close[0]}?" if close else ""}; --help lists '
                       'all')
        return args

    def error(self, message):
        if os.environ.get('DMLC_TASK_ID', '0') != '0':
            time.sleep(_PATIENCE)  # worker 0 says the same as a rule, and the launcher then ends this one
        if len(message) > _LONGEST:  # of a value in a file of somebody else's, say
            message = f'{message[:_LONGEST]} ...'
        line = ''.join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # of a file name, say
        self.exit(2, f'{self.prog}: error: {line}\n')


class UserError(Exception):
    """What the user can mend; the message is one line."""


def reason(error):
    """An OSError in words: the file and what is wrong with it. Of others, the message."""
    parts = getattr(error, 'filename', None), getattr(error, 'strerror', None) or error
    return ': '.join(str(part) for part in parts if part)


def last_line(error):
    """The last line of an exception's message, what it is about; MXNet's have thirty lines."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


@contextlib.contextmanager
def one_line(parser):
    """End the program with one line and exit code 2 where the body raises a UserError or OSError; Ctrl-C: 130."""
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(reason(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != 'MXNetError':  # mxnet may not be imported yet
            raise
        parser.error(f'too little memory, as a rule: {last_line(error)}')


class Stopped(Exception):
    """A signal asks for the end."""


class Stop:
    """A context in which a first SIGINT (Ctrl-C), SIGTERM or SIGHUP only sets `signal`; a second: KeyboardInterrupt.

    So a training ends between two steps, with a state that can be saved.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, _):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Output:
    """A stream whose text is thrown away once nobody reads it, or its disk is full: that ends no training."""

    def __init__(self, stream, number):
        self._stream, self._number = stream or os.fdopen(number, 'w'), number  # None where the program began without it
        self._stream.reconfigure(errors='backslashreplace')  # for names that the encoding does not have

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            return self._stream.write(text)
        except OSError:
            self._throw_away()

    def flush(self):
        try:
            self._stream.flush()
        except OSError:
            self._throw_away()

    def _throw_away(self):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._number)
        os.close(null)


def start(main):
    """Run a command's `main`, and end with its exit code."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # started with it closed: the next file would get its number, and all that is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _Output(sys.stdout, 1), _Output(sys.stderr, 2)
    sys.exit(main())


class Progress(tqdm):
    """A bar that says what is waited for, and a line that says how long it will take.

    Without a terminal there is no bar, and nothing at all if silent.
    """

    def __init__(self, what, total, unit, initial=0, silent=False):
        self._silent, self._unit, self._remaining, self._updates = silent, f' {unit}', total - initial, 0
        super().__init__(desc=what, total=total, initial=initial, unit=self._unit, smoothing=0.1, dynamic_ncols=True,
                         disable=silent or not sys.stderr.isatty())

    def update(self, count=1):
        super().update(count)
        self._updates += 1
        self._remaining -= count
        if self._updates == 1:  # its time does not count: MXNet builds its graphs
            self._started = time.perf_counter()
        elif self._updates == _TIMED_UPDATES:
            speed = count * (_TIMED_UPDATES - 1) / (time.perf_counter() - self._started)
            if self._remaining >= speed:  # a second or more
                self.say(f'{speed:,.0f}{self._unit}/s: about {duration(self._remaining / speed)} for the '
                         f'{self._remaining:,}{self._unit} that remain')

    def count(self, iterable):
        """The items of an iterable, each counted."""
        for item in iterable:
            yield item
            self.update()

    def say(self, text):
        """Print a line above the bar."""
        if not self._silent:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def duration(seconds):
    """Seconds in words, rounded: 40 s, 5 min, 2 h 10 min."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(round(seconds / 60), 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def complain(message):
    """One line on the standard error, below a bar."""
    print(f'\n{os.path.basename(sys.argv[0])}: stopped: {message}', file=sys.stderr)


def script(path):
    """A script's path as it can be typed here."""
    return min(os.path.relpath(path), path, key=len)


def command(*words):
    """A command line that runs this Python on these words: `python` where that is the one."""
    own, found = sys.executable, shutil.which('python') or ''
    python = 'python' if os.path.dirname(found) == os.path.dirname(own) else script(own)
    return shlex.join([python, *map(str, words)])


def text(value):
    """Text that is not empty, as "$RUN" is where RUN is not set."""
    if not value:
        raise argparse.ArgumentTypeError('it is empty')
    return value


def count(text):
    """A whole number from 1 to 2^53 - 1, also written as 1e6."""
    try:
        value = int(text)
    except ValueError:
        try:
            value = int(float(text)) if float(text).is_integer() else 0
        except (ValueError, OverflowError):
            value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1 on, as 10000 or 1e4')
    if value >= 2 ** 53:  # a checkpoint with more samples would be refused
        raise argparse.ArgumentTypeError(f'{text!r} is not below 2^53')
    return value


def seed(text):
    """A whole number from 0 to 2^32 - 1."""
    if not text.isdecimal() or int(text) >= 2 ** 32:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0 to 2^32 - 1')
    return int(text)


def positive(text):
    """A number above 0 that float32 can hold."""
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not 1e-30 <= value <= 1e30:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1e-30 to 1e30')
    return value


def fraction(text):
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')
    return value


def numbers(text):
    """Whole numbers with commas between them, each once: a comma-separated string."""
    parts = text.split(',')
    if not all(part.isdecimal() and len(part) < 5 for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of different whole numbers, as 0,1')
    return text
