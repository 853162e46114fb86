"""Start a training of several workers, watch over it, and leave no process behind.

    python -m distributed.launch -n 2 train_mnist.py --attention --kvstore dist_sync
    python -m distributed.launch -n 4 --hosts a,b train_mnist.py --kvstore dist_sync     # a and b by SSH

Starts what MXNet's parameter server wants: one scheduler (here), servers and workers. MXNet itself never notices that
one of them is gone: here, the end of one with an error ends all.
"""
import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

_ENVIRONMENT = dict(os.environ)  # before cli sets the number of threads for this process

from system import cli, devices  # noqa: E402

from distributed.guard import GRACE  # noqa: E402

_SERVE = [sys.executable, '-c', 'import system, mxnet']  # with DMLC_ROLE=server or scheduler the import does not return
_STOPPED = 128 + signal.SIGTERM  # exit code of a worker that was asked to stop before its training began


class Process:
    """A process of one role below a guard, see guard.py; `host` is None for this one."""

    def __init__(self, name, host, share, environment, command):
        self.name = f'{name} on {host}' if host else name
        line = [sys.executable, '-m', 'distributed.guard', str(share), str(len(environment)),
                *(f'{key}={value}' for key, value in environment.items()), *command]
        if host:
            line = ['ssh', '-o', 'BatchMode=yes', '-o', 'ServerAliveInterval=15', host,
                    f'cd {shlex.quote(os.getcwd())} && exec {shlex.join(line)}']
        self._process = subprocess.Popen(line, env=_ENVIRONMENT, stdin=subprocess.PIPE, start_new_session=True)

    def code(self):
        """The exit code, or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self):
        with contextlib.suppress(OSError):
            os.write(self._process.stdin.fileno(), b'.')

    def end(self):
        """End it, by force after GRACE seconds; returns at once."""
        with contextlib.suppress(OSError):  # it has ended
            self._process.stdin.close()

    def wait(self):
        try:
            self._process.wait(timeout=2 * GRACE)
        except subprocess.TimeoutExpired:  # an SSH connection that is stuck
            self._process.kill()


def start(args, services, workers):
    """Start everything; appends to `services` (the scheduler and the servers) and `workers`, lists of Process."""
    hosts = args.hosts or [None]
    environment = {'DMLC_PS_ROOT_URI': args.address, 'DMLC_PS_ROOT_PORT': args.port,
                   'DMLC_NUM_WORKER': args.num_workers, 'DMLC_NUM_SERVER': args.num_servers,
                   'DISTRIBUTED_LAUNCH': args.flags}
    if args.hosts:
        environment.update((name, value) for name, value in _ENVIRONMENT.items() if name.startswith(('OMP_', 'MXNET_')))
    else:
        environment['DMLC_NODE_HOST'] = args.address  # listen there and nowhere else
    services.append(Process('the scheduler', None, 0, {**environment, 'DMLC_ROLE': 'scheduler'}, _SERVE))
    for k in range(args.num_servers):
        own = {**environment, 'DMLC_ROLE': 'server'}
        services.append(Process(f'server {k}', hosts[k % len(hosts)], 0, own, _SERVE))
    contexts = devices.planned_contexts(args.command[1:], default=lambda batch_size: 1)
    share = -(-args.num_workers // len(hosts)) * contexts
    for k in range(args.num_workers):
        own = {**environment, 'DMLC_ROLE': 'worker', 'DMLC_TASK_ID': k}
        workers.append(Process(f'worker {k}', hosts[k % len(hosts)], share, own, [sys.executable, *args.command]))


def watch(services, workers, stop):
    """Wait for the workers, and ask them to stop at a signal; returns the first Process that ends with an error."""
    asked, failed = False, None
    while not failed and any(worker.code() is None for worker in workers):
        time.sleep(0.1)
        if stop.signal and not asked:
            asked = True
            for worker in workers:
                worker.ask_to_stop()
        failed = next((process for process in (*workers, *services) if process.code()), None)
    failed = failed or next((worker for worker in workers if worker.code()), None)
    return None if asked and failed and failed.code() == _STOPPED else failed


def run(args):
    """Start, watch, end; returns the exit code."""
    services, workers, failed = [], [], None
    with cli.Stop() as stop:
        try:
            start(args, services, workers)
            failed = watch(services, workers, stop)
        except KeyboardInterrupt:  # the second signal
            pass
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends in time now
        for process in (*workers, *services):
            process.end()  # after the last worker's end the services end by themselves, as soon
        for process in (*workers, *services):
            process.wait()
    if failed:
        print(f'distributed.launch: {failed.name} ended with exit code {failed.code()}; all others were ended too',
              file=sys.stderr)
        return 2 if failed.code() == 2 else 1
    return 130 if stop.signal == signal.SIGINT else 0


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('--num_workers', '-n', type=cli.count, metavar='N', required=True,
        help='processes that train; the batch is shared out evenly among them')
    add('--num_servers', '-s', type=cli.count, metavar='N', default=1, help='processes that add up the gradients')
    add('--hosts', type=lambda text: text.split(','), metavar='A,B',
        help='hosts that workers and servers are started on in turn, by SSH without a password, with this Python and '
             'this folder at the same paths; this host alone if not given')
    add('--address', type=cli.text, metavar='IP', help='of this host, as the others reach it; found if not given')
    add('--port', type=cli.count, metavar='N', help='of the scheduler; any free one if not given')
    add('--module', '-m', action='store_true', help='SCRIPT is the name of a module, as in python -m')
    add('command', metavar='SCRIPT', nargs=argparse.PARSER, help='the script and its arguments')
    args = parser.parse_args(argv)
    if args.module:
        args.command.insert(0, '-m')
    elif not os.path.isfile(args.command[0]):
        parser.error(f'argument SCRIPT: {args.command[0]} is not a file')
    if args.hosts and not all(host and not host.startswith('-') for host in args.hosts):
        parser.error('argument --hosts: names with commas between them, as a,b')
    if args.hosts and not shutil.which('ssh'):
        parser.error('argument --hosts: there is no ssh')
    if args.port and args.port >= 2 ** 16:
        parser.error(f'argument --port: at most {2 ** 16 - 1}, not {args.port}')
    args.flags = _flags(parser, args)
    try:
        args.address = socket.gethostbyname(args.address) if args.address else (
            _own_address(parser, args.hosts) if args.hosts else '127.0.0.1')  # a number: MXNet does not resolve names
    except (OSError, UnicodeError) as error:
        parser.error(f'argument --address: {args.address}: {cli.reason(error)}')
    args.port = _free_port(parser, args.address, args.port)
    return args


def _flags(parser, args):
    """The launcher's own flags, for the command to go on that a worker prints."""
    hosts = args.hosts and ','.join(args.hosts)
    flags = {'num_servers': args.num_servers, 'hosts': hosts, 'address': args.address, 'port': args.port}
    return shlex.join(['-n', str(args.num_workers), *(f'--{name}={value}' for name, value in flags.items()
                                                      if value != parser.get_default(name))])


def _own_address(parser, hosts):
    """This host's address on the way to the others; nothing is sent."""
    addresses = []
    for host in hosts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host.rpartition('@')[2], 9))
            except (OSError, UnicodeError) as error:  # the second of a..b
                parser.error(f'argument --hosts: {host}: {cli.reason(error)}')
            addresses.append(probe.getsockname()[0])
    return next((address for address in addresses if not address.startswith('127.')), addresses[0])


def _free_port(parser, address, port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port or 0))
        except (OSError, OverflowError) as error:
            where = f'port {port}' if port else 'any port'
            parser.error(f'cannot listen at {address}, {where}: {cli.reason(error)}')
        return probe.getsockname()[1]


def main(argv=None):
    return run(parse_args(cli.Parser(prog='distributed.launch', doc=__doc__), argv))


if __name__ == '__main__':
    cli.start(main)
