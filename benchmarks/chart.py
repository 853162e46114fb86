"""Show what benchmarks.throughput measured: as tables, and as the bar chart of the README.

    python -m benchmarks.chart results.json
    python -m benchmarks.chart results.json assets/speed.png    # of the default sizes, with the most threads
"""
import statistics

from system import cli, files

from matplotlib.figure import Figure

from benchmarks import common

CASE = 'model', 'num_steps', 'batch_size', 'threads', 'load'  # what must be equal for two measurements to be compared
NAMES = {'fused': 'this project', 'compiled': 'compiled anew', 'graph': 'Gluon graph', 'torch': 'PyTorch', 'jax': 'JAX'}
_MODELS = {'attention': 'with attention', 'none': 'without attention'}
_LOADS = {'quiet': 'quiet processor', 'busy': 'beside a busy process'}
_COLOURS = {'fused': '#2166ac', 'jax': '#a8a8a8', 'torch': '#cccccc'}


def medians(runs):
    """{case: {program: {quantity: its median over the rounds}}}, where a case is a tuple of CASE's values."""
    cases = {}
    for run in runs:
        cases.setdefault(tuple(run[name] for name in CASE), {}).setdefault(run['program'], []).append(run)
    return {case: {program: {name: statistics.median(run[name] for run in rounds)
                             for name, value in rounds[0].items() if isinstance(value, float)}
                   for program, rounds in programs.items()}
            for case, programs in cases.items()}


def tables(results):
    """Processor and versions, a table of speeds and ratios, and one of the first step, memory and limits if quiet."""
    found = medians(results['runs'])
    programs = [name for name in NAMES if name != 'compiled' and any(name in rows for rows in found.values())]
    others = [name for name in programs if name != 'fused']
    names = ['model', 'T', 'batch', 'threads', 'load']
    speeds = [[*names, *(NAMES[name] for name in programs), *(f'/ {NAMES[name]}' for name in others)]]
    details = [[*names, '', 'first step, s', 'peak memory, MiB', 'share of peak', 'share of sgemm']]
    for case, rows in found.items():
        words, speed = [*map(str, case)], {name: row['samples_per_s'] for name, row in rows.items()}
        ratios = {name: speed['fused'] / speed[name] for name in speed if 'fused' in speed}
        speeds.append([*words, *(_cell(speed, name, '.0f') for name in programs),
                       *(_cell(ratios, name, '.2f') for name in others)])
        details += [[*words, NAMES[name], _cell(row, 'first_step_s', '.2f'), _cell(row, 'peak_memory_mib', '.0f'),
                     _cell(row, 'share_of_peak', '.2f'), _cell(row, 'share_of_sgemm', '.2f')]
                    for name, row in rows.items() if case[-1] == 'quiet']
    versions = dict.fromkeys(run['version'] for run in results['runs'])
    return '\n\n'.join([', '.join([results['processor'], *versions]), _markdown(speeds), _markdown(details)])


def _cell(row, name, form):
    return format(row[name], form) if name in row else ''


def _markdown(rows):
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [rows[0], ['---'] * len(rows[0]), *rows[1:]])


def figure(runs):
    """Samples per second with the default sizes and the most threads, as a matplotlib.figure.Figure.

    Raises cli.UserError where nothing was measured with these.
    """
    found, threads = medians(runs), max(run['threads'] for run in runs)
    sizes = common.SIZES['num_steps'], common.SIZES['batch_size'], threads
    loads = [load for load in _LOADS if any((model, *sizes, load) in found for model in _MODELS)]
    if not loads:
        raise cli.UserError('the chart is of the default sizes, which were not measured')
    picture = Figure(figsize=(8, 2.8), layout='constrained')
    for axes, load in zip(picture.subplots(1, len(loads), sharex=True, sharey=True, squeeze=False)[0], loads):
        place, ticks = 0., {}
        for model, words in _MODELS.items():
            axes.text(0, place, words, va='center', weight='bold')
            for name in _COLOURS:
                place += 1
                ticks[place] = NAMES[name]
                row = found.get((model, *sizes, load), {}).get(name)
                if row:
                    bar = axes.barh(place, row['samples_per_s'], 0.85, color=_COLOURS[name])
                    axes.bar_label(bar, fmt='{:.0f}', padding=3)
            place += 1.3
        axes.set_yticks([*ticks], ticks.values())
        axes.set_ylim(place - 0.7, -0.6)
        axes.set_xticks([])
        axes.set_xmargin(0.15)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(_LOADS[load], loc='left', pad=10)
    picture.suptitle(f'Training samples per second, batches of {sizes[1]} images, {threads} thread{"s"[:threads - 1]}',
                     x=0.01, ha='left')
    return picture


def main(argv=None):
    parser = cli.Parser('benchmarks.chart', __doc__)
    parser.add_argument('results', type=cli.path, metavar='FILE', help='JSON file of benchmarks.throughput')
    parser.add_argument('picture', type=cli.path, metavar='PNG', nargs='?', help='picture to write')
    args = parser.parse_args(argv)
    with cli.one_line(parser):
        try:
            results = files.read_json(args.results)
            print(tables(results))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise cli.UserError(f'{args.results} is not a file of benchmarks.throughput') from None
        if args.picture:
            figure(results['runs']).savefig(args.picture, dpi=150, format='png')


if __name__ == '__main__':
    cli.start(main)
