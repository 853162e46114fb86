"""Compare this project's training step with the same step in PyTorch and JAX.

    python -m benchmarks.throughput results.json
    python -m benchmarks.throughput results.json --batch_sizes 64 128 256 --loads quiet --programs fused graph

Measures every combination of --models, --batch_sizes, --threads and --loads. Each program runs in a fresh process, all
of them in turn, and the next round measures everything again. Nothing else should run on the machine. Each measurement
is written to the JSON file at once, so Ctrl-C loses none. The tables show medians over the rounds.
"""
import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys

from system import cli, devices, files

from benchmarks import chart, common

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAMS = {'fused': 'draw_gluon', 'compiled': 'draw_gluon --compile', 'graph': 'draw_gluon --fused off',
             'torch': 'draw_torch', 'jax': 'draw_jax'}


def processor():
    """The name of the processor."""
    with open('/proc/cpuinfo') as file:
        return next((line.split(':')[1].strip() for line in file if line.startswith('model name')), 'unknown')


def _pinned(threads):
    """The beginning of a command that may use as many processors as it has threads: XLA starts one thread for each."""
    allowed = sorted(os.sched_getaffinity(0))[:threads]
    return ['taskset', '-c', ','.join(map(str, allowed)), sys.executable]


@contextlib.contextmanager
def busy_process(threads):
    """A process that keeps one of these processors busy, as another program may, until its parent ends."""
    code = 'import os; parent = os.getppid()\nwhile os.getppid() == parent: pass'
    process = subprocess.Popen([*_pinned(threads), '-c', code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(program, args):
    """Run a program to its end; what it measured. Raises cli.UserError."""
    command = [*_pinned(args.threads), '-m', *f'benchmarks.{_PROGRAMS[program]}'.split(), *common.size_flags(args),
               f'--blocks={args.blocks}']
    with busy_process(args.threads) if args.load == 'busy' else contextlib.nullcontext():
        done = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': str(args.threads)}, cwd=_ROOT,
                              capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise cli.UserError(f'{program} failed with exit code {done.returncode}: {reason}')
    return json.loads(done.stdout.splitlines()[-1])


def cases(args):
    """(program, Namespace) of each measurement of a round."""
    for model, batch_size, threads, load in itertools.product(args.models, args.batch_sizes, args.threads, args.loads):
        case = argparse.Namespace(**{**vars(args), 'model': model, 'attention': model == 'attention',
                                     'batch_size': batch_size, 'threads': threads, 'load': load})
        for program in args.programs:
            yield program, case


def compare(args):
    """Make all measurements, and return them with the processor's name; the file has each as soon as it is made."""
    results = {'processor': processor(), 'runs': []}
    for number, (program, case) in itertools.product(range(1, args.rounds + 1), list(cases(args))):
        settings = {name: getattr(case, name) for name in chart.CASE}
        results['runs'].append({'round': number, 'program': program, **settings, **run(program, case)})
        files.write_json(args.results, results)
        cli.say(' '.join(map(str, results['runs'][-1].values())))
    return results


def parse_args(parser, argv=None):
    def add(name, default, **kwargs):
        parser.add_argument(f'--{name}', nargs='+', default=default, **kwargs)

    parser.add_argument('results', type=cli.path, metavar='FILE', help='JSON file to write')
    add('models', ['attention', 'none'], choices=['attention', 'none'], help='with selective attention, and without')
    add('batch_sizes', [common.SIZES['batch_size']], type=cli.count, metavar='N', help='images per batch')
    add('threads', [devices.processors()], type=cli.count, metavar='N', help='threads, and processors that may be used')
    add('loads', ['quiet', 'busy'], choices=['quiet', 'busy'],
        help='alone, and beside a process that keeps one processor busy')
    add('programs', ['fused', 'graph', 'torch', 'jax'], choices=[*_PROGRAMS],
        help='the fused operator; compiled anew; the Gluon graph; PyTorch; JAX')
    parser.add_argument('--rounds', type=cli.count, metavar='N', default=3, help='times that everything is measured')
    common.add_flags(parser, [name for name in common.SIZES if name != 'batch_size'], cli.count)
    return parser.parse_args(argv)


def check(args):
    """Create the file's folder. Raises OSError, and cli.UserError if the file exists or a program cannot run."""
    if os.path.exists(args.results):
        raise cli.UserError(f'{args.results} exists')
    os.makedirs(os.path.dirname(args.results), exist_ok=True)
    missing = [name for name in ('torch', 'jax') if name in args.programs and not importlib.util.find_spec(name)]
    if missing:
        raise cli.UserError(f'argument --programs: no {" and ".join(missing)} in this environment; '
                            'pip install -r benchmarks/requirements.txt')


def main(argv=None):
    parser = cli.Parser('benchmarks.throughput', __doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        check(args)
        cli.say(chart.tables(compare(args)))


if __name__ == '__main__':
    cli.start(main)
