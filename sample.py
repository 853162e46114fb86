"""Paint with a trained DRAW: GIFs of samples from the prior, or of reconstructions of test images.

    python sample.py                          # with the model in assets/draw_w_attn
    python sample.py RUN_DIR                  # RUN_DIR/samples/sample_0.gif .. sample_9.gif
    python sample.py RUN_DIR --reconstruct    # RUN_DIR/samples/reconstruction_0.gif .. reconstruction_9.gif
    python sample.py RUN_DIR --grid FILE.gif  # a hundred samples being painted at once
"""
import argparse
import contextlib
import os

from system import cli, devices

import numpy as np

from dataset import load, stream
from pictures import paint, render
from runs import storage

_MAX_SCALE = 64
_MAX_SIDE = 2 ** 14  # screen pixels: such a square takes 256 MiB, and a few of them are in memory at once
_MAX_GRID = 100  # images in one picture
PRETRAINED = os.path.join(os.path.dirname(os.path.realpath(__file__)), 'assets', 'draw_w_attn')


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run_dir', type=cli.text, metavar='RUN_DIR', nargs='?',
        help='folder of a run, results/<run id>; assets/draw_w_attn, the model with attention, if not given')
    add('--num_samples', '-n', type=cli.count, metavar='N',
        help='images to paint; if not given 10, and in FILE.gif of --grid 100, or 50 reconstructions')
    add('--output_dir', '-o', type=cli.text, metavar='DIR',
        help='folder for the GIFs, made if missing; if not given RUN_DIR/samples, or samples-<run id> here where '
             'RUN_DIR is read-only')
    add('--prefix', type=cli.text, metavar='NAME',
        help='start of the file names; sample or reconstruction if not given')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of the noise; same seed, same bytes')
    add('--scale', type=cli.count, metavar='N',
        help=f'screen pixels per image pixel and side; if not given {paint.SCALE}, and in FILE.gif of --grid '
             f'{paint.GRID_SCALE}')
    add('--no_boxes', action='store_true', help='do not draw the attention windows')
    add('--reconstruct', action='store_true',
        help="instead of sampling, reconstruct the first test images of the run's data set; each original at the right")
    add('--data_dir', type=cli.text, metavar='DIR',
        help="with --reconstruct: folder of the MNIST files; the run's if not given")
    add('--grid', type=cli.text, metavar='FILE',
        help='instead of a GIF of each image one picture of them all: FILE.gif, rows of ten, painted at once; '
             'FILE.png, a row of time steps for each')
    devices.add_flags(parser)
    args = parser.parse_args(argv, argparse.Namespace(batch_size=paint.CHUNK))
    devices.check_flags(parser, args)
    args.animated = args.grid is not None and args.grid.lower().endswith('.gif')
    if args.grid is None:
        _check_gifs(parser, args)
    else:
        _check_grid(parser, args)
    args.scale = args.scale or (paint.GRID_SCALE if args.animated else paint.SCALE)
    if args.scale > _MAX_SCALE:
        parser.error(f'argument --scale: at most {_MAX_SCALE}, not {args.scale}')
    args.num_samples = args.num_samples or (10 if not args.animated else 50 if args.reconstruct else 100)
    args.run_dir = args.run_dir or cli.script(PRETRAINED)
    args.prefix = args.prefix or ('reconstruction' if args.reconstruct else 'sample')
    return args


def _check_gifs(parser, args):
    if args.prefix is not None and os.path.basename(args.prefix) != args.prefix:
        parser.error(f'argument --prefix: {args.prefix!r} is not a plain name; --output_dir sets the folder')
    if args.output_dir is not None and os.path.exists(args.output_dir) and not os.path.isdir(args.output_dir):
        parser.error(f'argument --output_dir: {args.output_dir} is a file, not a folder')


def _check_grid(parser, args):
    folder = os.path.dirname(os.path.realpath(args.grid))
    if not args.grid.lower().endswith(('.gif', '.png')):
        parser.error(f'argument --grid: {args.grid!r} ends neither in .gif nor in .png')
    if os.path.exists(args.grid) and not os.path.isfile(args.grid):
        parser.error(f'argument --grid: {args.grid} is no file')
    if not os.path.isdir(folder):
        parser.error(f'argument --grid: the folder {folder} does not exist')
    if args.output_dir is not None or args.prefix is not None:
        parser.error('argument --grid: names the one file that is written; not with --output_dir or --prefix')
    if args.num_samples is not None and args.num_samples > _MAX_GRID:
        parser.error(f'argument --num_samples: at most {_MAX_GRID} with --grid, not {args.num_samples}')


def _check_size(args, image_shape):
    """Raises RunError for pictures that would take all memory, or more pixels than a GIF can have."""
    height, width = image_shape
    cells = args.num_samples * (2 if args.reconstruct else 1)  # of a table with rows of ten
    columns, rows = (2, 1) if args.grid is None else (min(cells, 10), -(-cells // 10)) if args.animated else (
        11, args.num_samples)  # at most
    if max(columns * width, rows * height) * args.scale > _MAX_SIDE:
        raise storage.RunError(f'a picture may have {_MAX_SIDE:,} screen pixels a side: choose a smaller --scale than '
                               f'{args.scale}, or with --grid a smaller --num_samples')


def _writable_folder(args):
    """The folder for the GIFs, made if it is missing, and whether it is new."""
    if args.output_dir is not None:
        return args.output_dir, storage.check_writable(args.output_dir)
    folder = os.path.join(args.run_dir, 'samples')
    try:
        return folder, storage.check_writable(folder)
    except storage.RunError:  # somebody else's run, or a read-only disk
        folder = f'samples-{os.path.basename(os.path.abspath(args.run_dir))}'
        return folder, storage.check_writable(folder)


def _finite(paintings, path):
    for painting in paintings:
        if np.isnan(painting.probabilities).any():
            raise storage.RunError(f'the canvases that {path} paints are not finite')
        yield painting


def _write_gifs(net, paintings, args):
    """Write a GIF of each painting; returns how many, and their names."""
    folder, is_new = _writable_folder(args)
    try:
        number = paint.write_gifs(net, paintings, output_dir=folder, prefix=args.prefix, scale=args.scale,
                                  boxes=not args.no_boxes)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it has a GIF
                os.rmdir(folder)
        raise
    names = f'{args.prefix}_0.gif' + (f' ... {args.prefix}_{number - 1}.gif' if number > 1 else '')
    return number, os.path.join(folder, names)


def _write_grid(net, paintings, args):
    """Write one picture of all paintings; returns how many, and its name."""
    path = os.path.realpath(args.grid)  # into what a link names, not in its place
    storage.check_writable(os.path.dirname(path))
    paintings, boxes = list(paintings), not args.no_boxes
    if args.animated:
        render.save_gif(path, paint.grid(net, paintings, args.scale, boxes))
    else:
        render.save_png(path, paint.sheet(net, paintings, args.scale, boxes))
    return len(paintings), args.grid


def run(args, contexts):
    """Paint and write the files that `args` asks for."""
    net, config, path = storage.load_net(args.run_dir, contexts)
    _check_size(args, net.image_shape)
    images = None
    if args.reconstruct:
        grey = load.load_of_run(config, ['test'], data_dir=args.data_dir).splits['test'][:args.num_samples]
        images = stream.evaluation_images(grey, config['arguments']['binarization'])
    total = args.num_samples if images is None else len(images)
    paintings = _finite(paint.paint(net, args.seed, contexts, num_samples=total, images=images), path)
    write = _write_gifs if args.grid is None else _write_grid
    with cli.Progress('painting', total, 'images') as bar:
        number, where = write(net, bar.count(paintings), args)
    kind = 'reconstruction' if args.reconstruct else 'sample'
    print(f'{number} {kind}{"s" if number > 1 else ""} of {path}: {where}')


def main(argv=None):
    parser = cli.Parser(prog='sample.py', doc=__doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        run(args, devices.contexts(parser, args))


if __name__ == '__main__':
    cli.start(main)
