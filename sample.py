"""Paint with a trained DRAW: GIFs of samples from the prior, or of reconstructions of test images.

    python sample.py                          # with the model in assets/draw_w_attn
    python sample.py RUN_DIR                  # sample_0.gif .. sample_9.gif
    python sample.py RUN_DIR --reconstruct    # reconstruction_0.gif .. reconstruction_9.gif
"""
import argparse
import os

from system import cli, devices

from dataset import stream
from pictures import paint, render
from runs import storage

_MAX_SCALE = 64
PRETRAINED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets', 'draw_w_attn')


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run_dir', metavar='RUN_DIR', nargs='?',
        help='folder of a run, results/<run id>; assets/draw_w_attn, the model with attention, if not given')
    add('--num_samples', '-n', type=cli.count, metavar='N', default=10, help='images to paint')
    add('--output_dir', '-o', metavar='DIR', default='.', help='folder for the GIFs; made if missing')
    add('--prefix', metavar='NAME', help='start of the file names; sample or reconstruction if not given')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of the noise; same seed, same bytes')
    add('--scale', type=cli.count, metavar='N', default=paint.SCALE, help='screen pixels per image pixel and side')
    add('--no_boxes', action='store_true', help='do not draw the attention windows')
    add('--reconstruct', action='store_true',
        help="reconstruct the first test images of the run's data set instead of sampling")
    add('--data_dir', metavar='DIR', help="with --reconstruct: folder of the MNIST files; the run's if not given")
    add('--grid', metavar='FILE.png', help='also write a sheet: images by time steps')
    devices.add_flags(parser)
    args = parser.parse_args(argv, argparse.Namespace(batch_size=paint.CHUNK))
    devices.check_flags(parser, args)
    if args.scale > _MAX_SCALE:
        parser.error(f'argument --scale: at most {_MAX_SCALE}, not {args.scale}')
    if args.grid and not args.grid.lower().endswith('.png'):
        parser.error(f'argument --grid: {args.grid!r} does not end in .png')
    if args.grid and os.path.isdir(args.grid):
        parser.error(f'argument --grid: {args.grid} is a folder')
    if args.prefix and os.path.basename(args.prefix) != args.prefix:
        parser.error(f'argument --prefix: {args.prefix!r} is not a plain name; --output_dir sets the folder')
    args.run_dir = args.run_dir or PRETRAINED
    args.prefix = args.prefix or ('reconstruction' if args.reconstruct else 'sample')
    return args


def _test_images(arguments, data_dir, number):
    shape = arguments['input_height'], arguments['input_width']
    test = stream.load(arguments['dataset'], data_dir or arguments['data_dir'], shape, ['test'])['test'][:number]
    return stream.evaluation_images(test, arguments['binarization'])


def run(args, contexts):
    """Paint and write the files that `args` asks for."""
    net, config, path = storage.load_net(args.run_dir, contexts)
    arguments = config['arguments']
    images = _test_images(arguments, args.data_dir, args.num_samples) if args.reconstruct else None
    os.makedirs(args.output_dir, exist_ok=True)
    sheet_dir = os.path.dirname(args.grid or '') or '.'
    if not os.path.isdir(sheet_dir):
        raise storage.RunError(f'the folder of --grid, {sheet_dir}, does not exist')
    paintings = list(paint.paint(net, args.seed, contexts, num_samples=args.num_samples, images=images))
    paint.write_gifs(net, paintings, output_dir=args.output_dir, prefix=args.prefix, scale=args.scale,
                     boxes=not args.no_boxes)
    kind = 'reconstructions' if args.reconstruct else 'samples'
    print(f'{len(paintings)} {kind} of {path}: {os.path.join(args.output_dir, args.prefix)}_0.gif '
          f'... _{len(paintings) - 1}.gif')
    if args.grid:
        render.save_png(args.grid, paint.sheet(net, paintings, args.scale, boxes=not args.no_boxes))
        print(f'{kind} by time steps: {args.grid}')


def main(argv=None):
    parser = cli.Parser(prog='sample.py', doc=__doc__)
    args = parse_args(parser, argv)
    with cli.one_line(parser):
        run(args, devices.contexts(parser, args))


if __name__ == '__main__':
    cli.start(main)
