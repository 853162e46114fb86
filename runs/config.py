"""The flags of train_mnist.py, and config.json, in which a run keeps them."""
import argparse
import glob
import os

from system import cli, devices, files

from dataset.load import dataset_name
from dataset.stream import BINARIZATIONS

# What may change when a run is resumed; everything else decides what the run is.
MAY_CHANGE = ('num_train_samples', 'learning_rate', 'lr_decay', 'val_freq', 'log_freq', 'checkpoint_freq', 'dataset',
              'data_dir', 'gpu', 'gpus', 'fused', 'kvstore', 'sync_timeout')
OF_EACH_WORKER = 'data_dir', 'logdir', 'gpu', 'gpus', 'fused'  # may differ between workers of one run
_OF_MODEL = ('input_height', 'input_width', 'num_steps', 'num_recurrent_units', 'latent_dim', 'attention', 'read_size',
             'write_size')  # what --init takes from the other run
_OF_DATA = 'dataset', 'transpose', 'data_dir', 'binarization'  # this too, unless it is given
_MAX_CANVASES = 2 ** 25  # pixels of an image at all steps, 128 MiB
KL_WARMUP = 20000  # samples


def build_parser(doc=''):
    """The parser of train_mnist.py."""
    parser = cli.Parser('train_mnist.py', doc)
    add = parser.add_argument_group('data').add_argument
    add('--dataset', type=dataset_name, metavar='NAME|PATH', default='mnist',
        help='mnist, fashion_mnist, kmnist, fixed_mnist, two_digits, synthetic, or your own images: a folder of PNG or '
             'JPEG files, an .npy or .npz file, or IDX files')
    add('--data_dir', type=cli.path, metavar='DIR', default='data',
        help='folder of the files of a named data set; those of MNIST are downloaded if missing')
    add('--binarization', choices=BINARIZATIONS, default='dynamic',
        help='draw pixels anew at each use (dynamic) or once (static), or set those above 0.5 (threshold)')
    add('--transpose', action='store_true', help='swap rows and columns, as EMNIST needs')
    add('--input_height', '-hh', type=cli.count, metavar='N',
        help='height in pixels, to which the images are stretched (default: their own)')
    add('--input_width', '-ww', type=cli.count, metavar='N',
        help='width in pixels, to which the images are stretched (default: their own)')
    add = parser.add_argument_group('model').add_argument
    add('--attention', action='store_true', help='read and write with selective attention')
    add('--read_size', '-ar', type=cli.count, metavar='N',
        help='with --attention: read with N x N filters (default: 2)')
    add('--write_size', '-aw', type=cli.count, metavar='N',
        help='with --attention: write with N x N filters (default: 5)')
    add('--num_steps', '-s', type=cli.count, metavar='N', default=64, help='time steps T')
    add('--num_recurrent_units', '-u', type=cli.count, metavar='N', default=256, help='hidden units of each LSTM')
    add('--latent_dim', '-l', type=cli.count, metavar='N', default=100, help='dimensions of z_t')
    training = parser.add_argument_group('training')
    add = training.add_argument
    add('--num_train_samples', '-t', type=cli.count, metavar='N', default=1000000,
        help='training samples to see, rounded up to whole batches; 1e6 also works')
    add('--batch_size', '-b', type=cli.count, metavar='N', default=64, help='images per batch, over all devices')
    add('--learning_rate', '-r', type=cli.positive, metavar='X', default=2e-3, help="Adam's learning rate")
    add('--lr_decay', type=cli.fraction, metavar='X', default=0.4,
        help='fraction of the run, at its end, over which the learning rate falls linearly to 0')
    add('--clip_norm', type=cli.positive, metavar='X', default=5.,
        help="clip the gradient to at most this global norm, in nats per image")
    add('--kl_warmup', type=cli.count, metavar='N',
        help="training samples over which the KL's weight grows from 0 to 1; 1: no warm-up "
             f'(default: {KL_WARMUP}, or 1 with --init)')
    add('--seed', type=cli.seed, metavar='N', default=0, help='random seed (weights, data order, binarization, noise)')
    add = training.add_mutually_exclusive_group().add_argument
    add('--init', type=cli.path, metavar='RUN',
        help="start a new run from another run's best parameters, with its model's sizes and, unless --dataset names "
             'others, its images; a lower --learning_rate than its own disturbs it less')
    add('--resume', type=cli.path, metavar='RUN',
        help='continue this run; only these flags may change: ' + ', '.join(MAY_CHANGE))
    add = parser.add_argument_group('validation and log').add_argument
    add('--val_freq', '-f', type=cli.count, metavar='N', default=10000, help='training samples between validations')
    add('--num_val_samples', '-v', type=cli.count, metavar='N', default=1000,
        help='images per validation; at the end of the run, all of them')
    add('--log_freq', type=cli.count, metavar='N', default=1280, help='training samples between points of the curves')
    add('--checkpoint_freq', type=cli.count, metavar='N',
        help='training samples between checkpoints, besides the one at each validation (default: none)')
    add('--logdir', type=cli.path, metavar='DIR', default='results', help="folder in which runs' folders are created")
    add('--name', metavar='NAME',
        help="end of the name of the run's folder (default: attention or no_attention)")
    group = parser.add_argument_group('devices', 'OMP_NUM_THREADS=N in the environment limits the threads.')
    devices.add_flags(group)
    group.add_argument('--kvstore', choices=('local', 'device', 'dist_sync'), default='device',
                       help='where gradients are summed: on the CPU (local), on the devices (device), or on the '
                            'servers of distributed.launch (dist_sync)')
    group.add_argument('--sync_timeout', type=cli.count, metavar='N', default=300,
                       help='with dist_sync: the longest that a worker waits for the others, in seconds')
    return parser


def parse_args(argv=None, doc=''):
    """The arguments in argv (default: the command line), checked. Those of the run to resume, or to start from, are
    the defaults. If arguments contradict each other, the program ends with one line."""
    parser = build_parser(doc)
    args = parser.parse_args(argv)
    if args.resume or args.init:
        with cli.one_line(parser):
            stored = vars(read(args.resume or args.init)['arguments'])
        names = stored.keys() - {'resume', 'gpu', 'gpus'} if args.resume else (*_OF_MODEL, *_OF_DATA)
        parser.set_defaults(**{name: stored[name] for name in names})
        given = parser.parse_args(argv)
        fixed = stored.keys() - {*MAY_CHANGE, 'resume'} if args.resume else _OF_MODEL
        for name in sorted(fixed):
            if getattr(given, name) != stored[name]:
                parser.error(f'argument --{name}: {getattr(given, name)} contradicts {stored[name]} of '
                             f'{args.resume or args.init}; leave it out')
        if args.init and not args.resume and given.dataset != stored['dataset']:  # other images, so other files
            given.data_dir, given.transpose, given.binarization = args.data_dir, args.transpose, args.binarization
        args = given
    if not args.attention and (args.read_size or args.write_size):
        parser.error('arguments --read_size and --write_size need --attention')
    args.read_size, args.write_size = (args.read_size or 2, args.write_size or 5) if args.attention else (None, None)
    args.kl_warmup = args.kl_warmup or (1 if args.init else KL_WARMUP)  # a trained model would drift from the prior
    with cli.one_line(parser):
        check_sizes(args)
    return args


def image_shape(args):
    """(height, width) as the flags give it, or None."""
    return (args.input_height, args.input_width) if args.input_height else None


def check_sizes(args):
    """Raise cli.UserError for a model that is too large; the image's size may still be None."""
    if (args.input_height is None) != (args.input_width is None):
        raise cli.UserError('--input_height and --input_width go together')
    height, width = image_shape(args) or (1, 1)
    if args.num_steps * height * width > _MAX_CANVASES:
        raise cli.UserError(f'{args.num_steps} steps of {height}x{width} pixels: at most {_MAX_CANVASES:,} in all; '
                            'give a smaller --input_height and --input_width, or fewer --num_steps')
    for name in ('read_size', 'write_size'):
        if args.input_height and args.attention and getattr(args, name) > min(height, width):
            raise cli.UserError(f"argument --{name}: {getattr(args, name)} is larger than the image's shorter side "
                                f'({min(height, width)})')


def read(folder):
    """The content of a run's config.json, with `arguments` as a Namespace. Raises cli.UserError."""
    path = os.path.join(folder, 'config.json')
    try:
        config = files.read_json(path)
        config['arguments'] = _stored(config['arguments'])
        check_sizes(config['arguments'])
        try:
            config.get('validation', {}).get('samples_seen')
            if 'images' in config:
                [config['images'][name] for name in ('dataset', 'path', 'height', 'width')]
                [(split['images'] + 0, split['sha256'][:8]) for split in config['images']['splits'].values()]
        except Exception:
            raise ValueError('"validation" or "images" is damaged') from None
        return config
    except OSError as error:
        runs = sorted(glob.glob(os.path.join(glob.escape(str(folder)), '*', 'config.json')))
        hint = f'; name a run in it, such as {cli.shown(os.path.dirname(runs[-1]))}' if runs else ''
        raise cli.UserError(f'{folder} is not the folder of a run: {cli.reason(error)}{hint}') from None
    except Exception as error:  # on a foreign file, these lines can raise nearly anything
        raise cli.UserError(f'{path} is not the config.json of a run: {cli.reason(error)}') from None


def _stored(arguments):
    """The arguments in config.json, each checked as its flag is; one that the run's version did not have gets its
    default."""
    if not arguments['input_height']:
        raise ValueError('input_height is missing')
    parser = build_parser()
    stored = parser.parse_args([])
    for action in parser._actions[1:]:  # the first is --help
        name = action.dest
        value = arguments.get(name, getattr(stored, name))
        try:
            value = action.type(str(value)) if value is not None and action.type else value
        except argparse.ArgumentTypeError as error:
            raise ValueError(f'{name}: {error}') from None
        if (value is None and action.default is not None or action.choices and value not in action.choices
                or action.nargs == 0 and not isinstance(value, bool)):
            raise ValueError(f'{name} is {value!r}')
        setattr(stored, name, value)
    return stored
