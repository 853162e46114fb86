"""Start a run of several workers, watch over it, and leave no process behind.

    python -m distributed.launch -n 2 train_mnist.py --attention --kvstore dist_sync
    python -m distributed.launch -n 4 --hosts a,b train_mnist.py --kvstore dist_sync

The second line starts the workers on the hosts a and b by SSH.

Starts the workers, and MXNet's parameter server: a scheduler here and a server
on every host. MXNet does not notice when one of these processes dies; the
launcher then ends all of them.
"""
import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

_ENVIRONMENT = dict(os.environ)  # before `system` sets the number of threads of this process
_FOR_ALL_HOSTS = 'OMP_', 'MXNET_', 'DRAW_', 'LD_LIBRARY_PATH', 'XDG_CACHE_HOME'

from system import cli  # noqa: E402

# With one of these roles `import mxnet` serves and never returns. `system` refuses them in the environment.
_SERVE = 'import os, system; os.environ["DMLC_ROLE"] = "{}"; import mxnet'


class Process(subprocess.Popen):
    """The scheduler, server k or worker k, under a guard on its host."""

    def __init__(self, args, role, k):
        host = None if role == 'scheduler' else args.hosts[k % len(args.hosts)]
        self.name = f'{role} {k} on {host}' if host else f'{role} {k}'
        self.log = tempfile.TemporaryFile() if (role, k) != ('worker', 0) else None  # noqa: SIM115  (the terminal)
        variables = {name: value for name, value in _ENVIRONMENT.items() if name.startswith(_FOR_ALL_HOSTS)}
        variables.update(DMLC_PS_ROOT_URI=args.address, DMLC_PS_ROOT_PORT=args.port, DMLC_NUM_WORKER=args.num_workers,
                         DMLC_NUM_SERVER=len(args.hosts), DISTRIBUTED_LAUNCH=args.launcher,
                         DISTRIBUTED_SHARE=-(-args.num_workers // len(args.hosts)),
                         MXNET_KVSTORE_BIGARRAY_BOUND=2 ** 16)  # larger arrays are divided among the servers
        if not host:
            variables['DMLC_NODE_HOST'] = args.address  # listen there and nowhere else
        variables.update({'DMLC_ROLE': role, 'DMLC_TASK_ID': k} if role == 'worker' else {'OMP_NUM_THREADS': 1})
        line = ['env', *(f'{name}={value}' for name, value in variables.items()),
                sys.executable, '-m', 'distributed.guard', sys.executable,
                *(args.command if role == 'worker' else ['-c', _SERVE.format(role)])]
        if host:
            line = ['ssh', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=15', '-o', 'ServerAliveInterval=5', host,
                    f'cd {shlex.quote(os.getcwd())} && exec {shlex.join(line)}']
        out = None if sys.stdout else subprocess.DEVNULL  # if closed, a worker's socket would get its number
        super().__init__(line, env=_ENVIRONMENT, stdin=subprocess.PIPE, stdout=out, stderr=self.log, bufsize=0,
                         start_new_session=True)


def watch(processes, num_workers, stop):
    """Wait for the workers, which come first, and relay a signal to them; returns a Process that failed, or None."""
    workers, unasked, patience = processes[:num_workers], processes[:num_workers], 2  # seconds for worker 0 to fail too
    while patience > 0 and any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        while stop.signal and unasked:
            with contextlib.suppress(OSError):  # it has ended
                unasked.pop().stdin.write(b'.')
        if any(process.poll() for process in processes):
            patience = 0 if workers[0].poll() is not None else patience - 0.1
    return next((process for process in processes if process.poll()), None)


def run(args):
    """Start, watch, end; returns the exit code."""
    with cli.Stop() as stop, contextlib.ExitStack() as stack:  # which closes each standard input and waits for the end
        roles = ('worker', args.num_workers), ('scheduler', 1), ('server', len(args.hosts))
        processes = [stack.enter_context(Process(args, role, k)) for role, number in roles for k in range(number)]
        failed = watch(processes, args.num_workers, stop)
    if not failed or stop.signal and failed.returncode in (130, 128 + signal.SIGTERM):  # it had not begun to train
        return 130 if stop.signal == signal.SIGINT else 0
    if failed.log:
        sys.stderr.write(os.pread(failed.log.fileno(), 2 ** 20, 0).decode(errors='replace'))
    print(f'distributed.launch: {failed.name} ended with exit code {failed.returncode}; all others were ended too',
          file=sys.stderr)
    return 2 if failed.returncode == 2 else 1


def _hosts(text):
    hosts = text.split(',')
    if not all(hosts):
        raise argparse.ArgumentTypeError(f'{text!r} has an empty name')
    return hosts


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('--num_workers', '-n', type=cli.count, metavar='N', required=True,
        help='number of workers; each batch is divided evenly among them')
    add('--hosts', type=_hosts, metavar='A,B',
        help='start the workers on these hosts in turn, by SSH; this Python and folder must have the same paths there')
    add('--address', metavar='IP', help='address by which the hosts reach this one (default: detected)')
    add('command', metavar='SCRIPT', nargs=argparse.PARSER, help='script (NAME.py) or module, and its arguments')
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.hosts = args.hosts or [None]
    args.launcher = shlex.join(['-m', 'distributed.launch', *argv[:len(argv) - len(args.command)]])
    if not args.command[0].endswith('.py'):
        args.command.insert(0, '-m')
    return args


def _address_for(host):
    """The address by which a host reaches this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(((host or '127.0.0.1').rpartition('@')[2], 9))  # sends nothing
        return probe.getsockname()[0]


def find_address(args):
    """Set args.address, by which all hosts reach this one, and args.port, a free one. Raises cli.UserError."""
    try:
        # One of the hosts may be this one.
        address = args.address or min(map(_address_for, args.hosts), key=lambda found: found.startswith('127.'))
        args.address = socket.gethostbyname(address)  # MXNet resolves no names
        with socket.create_server((args.address, 0)) as probe:
            args.port = probe.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise cli.UserError(f'argument --hosts or --address: {cli.reason(error)}') from None


def main(argv=None):
    parser = cli.Parser(prog='distributed.launch', doc=__doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        find_address(args)
        return run(args)


if __name__ == '__main__':
    cli.start(main)
