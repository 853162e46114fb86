"""Paint with a trained DRAW: GIFs of samples from the prior, or of reconstructions of test images.

    python sample.py                          # with the model in assets/draw_w_attn
    python sample.py RUN_DIR                  # sample_0.gif .. sample_9.gif
    python sample.py RUN_DIR --reconstruct    # reconstruction_0.gif .. reconstruction_9.gif
"""
import os

import cli  # isort: skip  (sets up threads before mxnet is imported)
import numpy as np
from mxnet import nd

import data
import render
import run_folder

_CHUNK = 100  # images that the network paints at a time
_SHEET_COLUMNS = 10
_MAX_SCALE = 64
PRETRAINED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets', 'draw_w_attn')
SCALE = 4  # screen pixels per image pixel and side


def paint(net, arguments, seed, ctx, num_samples=None, images=None):
    """Samples (num_samples) or reconstructions (images), as a list with one dict per image.

    Parameters
    ----------
    net : DRAW
    arguments : dict
        The run's arguments (config.json).
    seed : int
    ctx : mxnet.Context
    num_samples : int, optional
        Number of samples from the prior.
    images : numpy.ndarray, optional
        Images to reconstruct instead, shape (n, height * width), values 0 or 1.

    Returns
    -------
    list of dict
        `probabilities` (num_steps + 1, height * width), the canvases as pixel probabilities; `write_windows` and
        `read_windows`, each (num_steps, 5) or None.
    """
    paintings = []
    total = num_samples if images is None else len(images)
    for first in range(0, total, _CHUNK):
        size = min(_CHUNK, total - first)
        purpose = 'sample' if images is None else 'reconstruction'
        eps = nd.array(data.noise(seed, purpose, first, size, arguments), ctx=ctx)
        if images is None:
            outputs = net.generate(eps) + (None,)
        else:
            outputs = net.reconstruct(nd.array(images[first:first + size], ctx=ctx), eps)
        canvases, write_windows, read_windows = (None if a is None else a.asnumpy() for a in outputs)
        for i in range(size):
            paintings.append({'probabilities': render.probabilities(canvases[:, i]),
                              'write_windows': None if write_windows is None else write_windows[:, i],
                              'read_windows': None if read_windows is None else read_windows[:, i]})
    return paintings


def write_gifs(paintings, arguments, output_dir, prefix, scale, boxes=True):
    """Write <prefix>_0.gif, ...: one frame per canvas, the write window in red and the read window in green."""
    image_shape = arguments['input_height'], arguments['input_width']
    for i, painting in enumerate(paintings):
        windows = [(render.READ_COLOUR, arguments['read_size'], painting['read_windows']),
                   (render.WRITE_COLOUR, arguments['write_size'], painting['write_windows'])]
        windows = [window for window in windows if boxes and window[2] is not None]
        frames = render.frames(painting['probabilities'], image_shape, scale, windows)
        render.save_gif(os.path.join(output_dir, f'{prefix}_{i}.gif'), frames)


def sheet(paintings, arguments, columns=_SHEET_COLUMNS):
    """A row per painting, `columns` of its time steps from left to right, the last canvas at the end."""
    num_steps = arguments['num_steps']
    steps = np.unique(np.linspace(0, num_steps, min(columns, num_steps + 1)).round().astype(int))
    shape = len(steps), arguments['input_height'], arguments['input_width']
    return render.sheet(np.stack([p['probabilities'][steps].reshape(shape) for p in paintings]))


def parse_args(parser, argv=None):
    add = parser.add_argument
    add('run_dir', metavar='RUN_DIR', nargs='?',
        help='folder of a run, results/<run id>; assets/draw_w_attn, the model with attention, if not given')
    add('--num_samples', '-n', type=cli.count, metavar='N', default=10, help='images to paint')
    add('--output_dir', '-o', metavar='DIR', default='.', help='folder for the GIFs; made if missing')
    add('--prefix', metavar='NAME', help='start of the file names; sample or reconstruction if not given')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of the noise; same seed, same bytes')
    add('--scale', type=cli.count, metavar='N', default=SCALE, help='screen pixels per image pixel and side')
    add('--no_boxes', action='store_true', help='do not draw the attention windows')
    add('--reconstruct', action='store_true',
        help="reconstruct the first test images of the run's data set instead of sampling")
    add('--data_dir', metavar='DIR', help="with --reconstruct: folder of the MNIST files; the run's if not given")
    add('--grid', metavar='FILE.png', help='also write a sheet: images by time steps')
    add('--gpu', action='store_true', help='use the first GPU instead of the CPU')
    args = parser.parse_args(argv)
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
    test = data.load(arguments['dataset'], data_dir or arguments['data_dir'], shape)['test']
    return data.evaluation_images(test, arguments['binarization'])[:number]


def run(args, ctx):
    """Paint and write the files that `args` asks for."""
    net, config, path = run_folder.load_net(args.run_dir, ctx)
    arguments = config['arguments']
    images = _test_images(arguments, args.data_dir, args.num_samples) if args.reconstruct else None
    os.makedirs(args.output_dir, exist_ok=True)
    sheet_dir = os.path.dirname(args.grid or '') or '.'
    if not os.path.isdir(sheet_dir):
        raise run_folder.RunError(f'the folder of --grid, {sheet_dir}, does not exist')
    paintings = paint(net, arguments, seed=args.seed, ctx=ctx, num_samples=args.num_samples, images=images)
    write_gifs(paintings, arguments, output_dir=args.output_dir, prefix=args.prefix, scale=args.scale,
               boxes=not args.no_boxes)
    kind = 'reconstructions' if args.reconstruct else 'samples'
    print(f'{len(paintings)} {kind} of {path}: {os.path.join(args.output_dir, args.prefix)}_0.gif '
          f'... _{len(paintings) - 1}.gif')
    if args.grid:
        render.save_png(args.grid, render.enlarge(sheet(paintings, arguments), args.scale))
        print(f'{kind} by time steps: {args.grid}')


def main(argv=None):
    parser = cli.Parser(prog='sample.py', description=__doc__.splitlines()[0])
    args = parse_args(parser, argv)
    with cli.one_line(parser, run_folder.RunError, data.DataError):
        run(args, cli.context(parser, args.gpu))


if __name__ == '__main__':
    main()
