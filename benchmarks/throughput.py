"""Time this project's training step (Training.step in runs/training.py) on random binary images.

    python -m benchmarks.throughput --attention
    python -m benchmarks.throughput --attention --peers

Takes the flags of train_mnist.py; those for data, files and optimization do not change what is timed. The last line
of the output is JSON.
"""
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time

from system import cli, devices

import mxnet as mx
import numpy as np
from mxnet import nd

from benchmarks import common
from runs import arguments, storage, training

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class PeerError(Exception):
    """A program of the comparison failed; the message is one line for the user."""


def make_training(args, contexts, group=None):
    """A new Training on these contexts, as train_mnist.py makes it."""
    mx.random.seed(args.seed)
    net = storage.build_net(vars(args))
    net.initialize(ctx=contexts)
    return training.Training(net, args, contexts, group)


def make_step(args, contexts):
    """The network, and a function that makes one training step as train_mnist.py does."""
    trained, x = make_training(args, contexts), common.random_images(args)

    return trained.net, lambda: trained.step(x)


def multiply_adds(args):
    """Multiply-adds of the matrix products of one training step, for the whole batch.

    Those of Eqns. 1-8, 21 and 27-29; the backward pass counts as twice the forward pass. Products that stand for
    elementwise work (the filters, expansions) are not counted.
    """
    units, latent_dim, N, M = args.num_recurrent_units, args.latent_dim, args.read_size, args.write_size
    height, width = args.input_height, args.input_width
    per_step = units * 2 * latent_dim + (latent_dim + units) * 4 * units                 # Eqns. 1-2, 7
    if args.attention:
        per_image = 0
        per_step += (2 * N * N + 2 * units) * 4 * units                                  # Eqn. 5
        per_step += 2 * 5 * units + units * M * M                                        # Eqn. 21 twice, w_t
        per_step += 2 * (N * height * width + N * width * N)                             # Eqn. 27, for x and x_hat
        per_step += M * M * width + height * M * width                                   # Eqn. 29
    else:
        num_pixels = height * width
        per_image = num_pixels * 4 * units                                               # Eqn. 5: x, once
        per_step += (num_pixels + 2 * units) * 4 * units + units * num_pixels            # Eqns. 5, 18
    return 3 * args.batch_size * (per_image + args.num_steps * per_step)


def sgemm_gflops(contexts, size=1024, repeats=10):
    """Rate of float32 matrix products on all contexts at once, in 1e9 operations (half of them multiplications) per
    second: the best seen."""
    factors, seconds = [nd.ones((size, size), ctx=ctx) for ctx in contexts], []
    for _ in range(repeats):
        started = time.perf_counter()
        products = [nd.dot(a, a) for a in factors]
        for product in products:
            product.wait_to_read()
        seconds.append(time.perf_counter() - started)
    return 2e-9 * size ** 3 * len(contexts) / min(seconds)


def time_steps(args, contexts):
    """Speed and memory, and the share of the time that the matrix products alone would take at the sgemm rate."""
    gflops = sgemm_gflops(contexts)
    net, step = make_step(args, contexts)
    result = common.measure(step, wait=nd.waitall, args=args)
    gflops = max(gflops, sgemm_gflops(contexts))
    floor_share = 2e-9 * multiply_adds(args) / gflops / result['step_s']
    print(f'sgemm {gflops:.1f} GFLOP/s; the matrix products alone would take {floor_share:.1%} of the time')
    common.print_result('ours', args, {**result, 'num_parameters': storage.num_weights(net),
                                       'sgemm_gflops': round(gflops, 1), 'floor_share': round(floor_share, 4)})


def print_memory(args, contexts):
    """Resident memory after 100, 200, 500, 1000, ... steps and after the last."""
    marks = {factor * 10 ** power for power in range(2, 10) for factor in (1, 2, 5)} | {args.memory_steps}
    _, step = make_step(args, contexts)
    memory = {}
    for done in range(1, args.memory_steps + 1):
        step()
        if done in marks:
            nd.waitall()
            memory[done] = round(common.memory_mib('VmRSS'), 1)
            print(f'after {done:,} steps: {memory[done]:,.1f} MiB', flush=True)
    print(json.dumps({'memory_mib': memory}))


def print_operators(args, contexts, num_rows=15):
    """Time per operator, summed over its calls, on MXNet's engine without bulks of operators."""
    os.environ['MXNET_EXEC_BULK_EXEC_TRAIN'] = '0'  # read by MXNet at the first training step
    _, step = make_step(args, contexts)
    for _ in range(2):
        step()
    nd.waitall()
    with tempfile.TemporaryDirectory() as folder:  # the profiler replaces whatever its filename names
        mx.profiler.set_config(profile_imperative=True, profile_symbolic=True, aggregate_stats=True,
                               filename=os.path.join(folder, 'profile.json'))
        mx.profiler.set_state('run')
        started = time.perf_counter()
        for _ in range(args.iterations):
            step()
        nd.waitall()
        wall_ms = 1e3 * (time.perf_counter() - started) / args.iterations
        mx.profiler.set_state('stop')
        operators = json.loads(mx.profiler.dumps(format='json'))['Time']['operator']
        mx.profiler.dump()
    rows = sorted(((stats['Total'] / args.iterations, stats['Count'] / args.iterations, name)
                   for name, stats in operators.items() if name != 'WaitForVar'), reverse=True)
    total = sum(row[0] for row in rows)
    rest = [sum(column) for column in zip(*(row[:2] for row in rows[num_rows:]))]
    print(f'{"operator":40} {"calls/step":>10} {"ms/step":>9} {"share":>6}')
    for ms, calls, name in rows[:num_rows] + ([(*rest, f'{len(rows) - num_rows} others')] if rest else []):
        print(f'{name:40} {calls:10.1f} {ms:9.2f} {ms / total:6.1%}')
    print(f'all operators {total:.1f} ms/step; a step took {wall_ms:.1f} ms while profiled')
    print(json.dumps({'operators_ms': {name: round(ms, 3) for ms, _, name in rows}, 'step_ms': round(wall_ms, 3)}))


def check_peers(parser):
    missing = [name for name in ('torch', 'jax') if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f'argument --peers: {" and ".join(missing)} cannot be imported; '
                     'pip install -r benchmarks/requirements.txt')


@contextlib.contextmanager
def busy_process():
    """A process that keeps a processor busy, as any other program of the machine may do, until its parent ends."""
    code = 'import os; parent = os.getppid()\nwhile os.getppid() == parent: pass'
    process = subprocess.Popen([sys.executable, '-c', code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def compare(args):
    """Run ours and the peers in turn, each in a fresh process, and print medians over the rounds and ratios."""
    programs = {'ours': [sys.executable, '-m', 'benchmarks.throughput'],
                'torch': [sys.executable, f'{_FOLDER}/draw_torch.py'],
                'jax': [sys.executable, f'{_FOLDER}/draw_jax.py']}
    if args.compile:
        programs['torch.compile'] = [*programs['torch'], '--compile']
    threads = common.num_threads() * args.cpu_contexts
    if args.cpu_contexts > 1:
        programs = {'ours, 1 context': programs['ours'], **programs}
        programs['ours'] = [*programs['ours'], '--cpu_contexts', str(args.cpu_contexts)]
    results = {name: [] for name in programs}
    for k in range(args.rounds):
        for name, program in programs.items():
            per_context = common.num_threads() if '--cpu_contexts' in program else threads
            environment = {**os.environ, 'OMP_NUM_THREADS': str(per_context)}
            done = subprocess.run([*program, *common.arguments(args)], env=environment, cwd=os.path.dirname(_FOLDER),
                                  capture_output=True, text=True)
            if done.returncode:
                raise PeerError(f'{name} failed with exit code {done.returncode}: {_last_line(done.stderr)}')
            results[name].append(json.loads(_last_line(done.stdout)))
            print(f'round {k + 1}: {name} {results[name][-1]["samples_per_s"]:,} samples/s', flush=True)
    medians = {name: {key: float(np.median([result[key] for result in runs]))
                      for key in ('samples_per_s', 'first_step_s', 'peak_memory_mib')}
               for name, runs in results.items()}
    ours = medians['ours']['samples_per_s']
    print(f'{"":15} {"samples/s":>10} {"ours / it":>10} {"first step, s":>14} {"peak MiB":>9}')
    for name, row in medians.items():
        row['ratio'] = round(ours / row['samples_per_s'], 3)
        print(f'{name:15} {row["samples_per_s"]:10,.1f} {row["ratio"]:10.2f} {row["first_step_s"]:14.2f} '
              f'{row["peak_memory_mib"]:9,.0f}')
    print(json.dumps({'samples_per_s': ours, 'rounds': args.rounds, 'medians': medians, 'runs': results}))


def _last_line(text):
    return (text.strip().splitlines() or ['no output'])[-1]


def parse_args(parser, argv=None):
    group = parser.add_argument_group('benchmark')
    common.add_iterations(group, cli.count)
    modes = group.add_mutually_exclusive_group()
    modes.add_argument('--peers', action='store_true', help='compare with PyTorch and JAX')
    modes.add_argument('--profile', action='store_true', help='time per operator instead')
    modes.add_argument('--memory_steps', type=cli.count, metavar='N', help='resident memory over N steps instead')
    group.add_argument('--rounds', type=cli.count, metavar='N', default=3,
                       help='with --peers: runs of each program, in turn')
    group.add_argument('--busy', action='store_true', help='beside a process that keeps one processor busy')
    group.add_argument('--compile', action='store_true', help='with --peers: torch.compile too (minutes each time)')
    args = arguments.parse_args(parser, argv)
    if args.compile and not args.peers:
        parser.error('argument --compile: needs --peers')
    if (args.gpu or args.gpus) and args.peers:
        parser.error('argument --peers: not with --gpu or --gpus; the peers run on the CPU')
    return args


def main(argv=None):
    parser = cli.Parser(prog='throughput.py', doc=__doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        if args.peers:
            check_peers(parser)
        contexts = devices.contexts(parser, args)
    with cli.one_line(parser), busy_process() if args.busy else contextlib.nullcontext():
        try:
            if args.peers:
                compare(args)
            else:
                run = print_operators if args.profile else print_memory if args.memory_steps else time_steps
                run(args, contexts)
        except PeerError as error:
            print(f'throughput.py: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    cli.start(main)
