"""Sample from a trained DRAW, or reconstruct test images.

  python sample.py                     # ten samples as GIFs
  python sample.py RUN --reconstruct   # ten test images
  python sample.py RUN --grid all.gif  # a hundred samples
"""
import os

from system import cli, devices, files

from dataset import stream
from dataset.load import dataset_name, load_of_run
from pictures import paint, render
from runs import params

PRETRAINED = os.path.join(os.path.dirname(os.path.realpath(__file__)), 'assets', 'draw_w_attn')


def parse_args(parser, argv=None):
    add, output = parser.add_argument, parser.add_mutually_exclusive_group()
    add('run', type=cli.path, metavar='RUN', nargs='?', help='folder of a run (default: assets/draw_w_attn)')
    add('--num_samples', '-n', type=cli.count, metavar='N', help='number of images (default: 10, or 100 with --grid)')
    add('--seed', type=cli.seed, metavar='N', default=0, help='random seed of the noise; GIF names include it unless 0')
    add('--reconstruct', action='store_true', help='reconstruct test images instead, each with its input to the right')
    add('--dataset', type=dataset_name, metavar='NAME|PATH', help="with --reconstruct: images other than the run's")
    add('--data_dir', type=cli.path, metavar='DIR', help="folder of that data set's files (default: the run's)")
    add('--transpose', action='store_true', help='with --dataset: swap rows and columns')
    add('--scale', type=cli.scale, metavar='N',
        help=f'screen pixels per side of an image pixel (default: {paint.SCALE}, or {paint.GRID_SCALE} with --grid)')
    add('--no_boxes', action='store_true',
        help='leave out the attention windows: green where a step reads (reconstructions only), red where it writes')
    output.add_argument('--output_dir', '-o', type=cli.path, metavar='DIR',
        help='folder for the GIFs, one per image, created if missing (default: RUN/samples)')
    output.add_argument('--grid', type=cli.path, metavar='FILE',
        help='one picture of all images instead: FILE.gif shows them being painted, FILE.png finished')
    output.add_argument('--steps', type=cli.path, metavar='FILE',
        help='one picture instead, FILE.png: a row of ten time steps for each image')
    devices.add_flags(parser, painting=True)
    args = parser.parse_args(argv)
    if (args.dataset or args.data_dir) and not args.reconstruct:
        parser.error('arguments --dataset and --data_dir need --reconstruct')
    if args.transpose and not args.dataset:
        parser.error('argument --transpose needs --dataset')
    args.run = args.run or PRETRAINED
    args.file, suffixes = (args.grid, ('.gif', '.png')) if args.grid else (args.steps, ('.png',))
    if args.output_dir and args.output_dir.lower().endswith(('.gif', '.png')):
        parser.error('argument --output_dir names a folder; for one picture: --grid FILE.png, with -n 1 for one image')
    if args.file and not args.file.lower().endswith(suffixes):
        parser.error(f'{args.file!r} is not a file name that ends in {" or ".join(suffixes)}')
    if args.file and os.path.isdir(args.file):
        parser.error(f'{args.file} is a folder')
    args.num_samples = args.num_samples or (100 if args.grid else 10)
    args.scale = args.scale or (paint.GRID_SCALE if args.grid else paint.SCALE)
    return args


def _write(args, paintings, folder, prefix):
    """Write what the flags ask for, and return the names of the files."""
    boxes = not args.no_boxes
    if not args.file:
        first, *others = paint.write_gifs(paintings, folder, prefix, args.scale, boxes)
        return f'{first} ... {os.path.basename(others[-1])}' if others else first
    if args.steps:
        content = render.png(paint.sheet(paintings, args.scale, boxes))
    elif args.file.lower().endswith('.png'):
        content = render.png(paint.finished(paintings, args.scale))
    else:
        content = render.gif(paint.frames(paintings, args.scale, boxes))
    files.write_whole(args.file, content)
    return cli.shown(args.file)


def run(args):
    """Paint, and write the files."""
    net, config, path = params.load_run(args.run, devices.contexts(args))
    images = None
    if args.reconstruct:
        data = load_of_run(config, ['test'], args.dataset, args.data_dir, args.transpose)
        cli.say('\n'.join(data.lines))
        images = stream.evaluation_images(data.splits['test'][:args.num_samples], config['arguments'].binarization)
    kind, total = ('reconstruction', len(images)) if args.reconstruct else ('sample', args.num_samples)
    folder = os.path.dirname(args.file) if args.file else args.output_dir or os.path.join(args.run, 'samples')
    os.makedirs(folder, exist_ok=True)
    paintings = paint.paint(net, args.seed, total, images=images)
    with cli.progress('painting', total, 'images', iterable=paintings) as bar:
        names = _write(args, bar, cli.shown(folder), f'{kind}_seed{args.seed}' if args.seed else kind)
    cli.say(f'{total} {kind}{"s" if total > 1 else ""} of {cli.shown(path)}: {names}')


def main(argv=None):
    parser = cli.Parser('sample.py', __doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        run(args)


if __name__ == '__main__':
    cli.start(main)
