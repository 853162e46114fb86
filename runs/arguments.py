"""The arguments of a training: from the command line, and from the config.json of a run that goes on."""
import sys

from system import cli, devices

from dataset import load, stream
from runs import storage

# What a resumed run may change; all else decides what the run is.
MAY_CHANGE = ('num_train_samples', 'learning_rate', 'lr_decay', 'val_freq', 'log_freq', 'checkpoint_freq', 'data_dir',
              'gpu', 'gpus', 'cpu_contexts', 'kvstore', 'sync_timeout')
_DEVICES = ('gpu', 'gpus', 'cpu_contexts')
OF_EACH_WORKER = ('data_dir', 'logdir', *_DEVICES)  # in which workers that train together may differ
_KL_WARMUP = 20000  # samples


def _add_arguments(parser):
    add = parser.add_argument
    add('--batch_size', '-b', type=cli.count, metavar='N', default=devices.BATCH_SIZE, help='images per gradient step')
    add('--input_height', '-hh', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--input_width', '-ww', type=cli.count, metavar='N', default=28, help='pixels; images are resized')
    add('--num_steps', '-s', type=cli.count, metavar='N', default=64, help='time steps T in which an image is painted')
    add('--num_recurrent_units', '-u', type=cli.count, metavar='N', default=256,
        help='units of the encoder and of the decoder LSTM')
    add('--latent_dim', '-l', type=cli.count, metavar='N', default=100, help='dimensions of z_t')
    add('--learning_rate', '-r', type=cli.positive, metavar='X', default=2e-3, help="Adam's learning rate")
    add('--lr_decay', type=cli.fraction, metavar='X', default=0.4,
        help='last part of the training, 0 to 1, over which the learning rate falls linearly to 0; 0: constant')
    add('--num_train_samples', '-t', type=cli.count, metavar='N', default=1000000,
        help='training samples to see, rounded up to whole batches; 1e6 is accepted')
    add('--num_val_samples', '-v', type=cli.count, metavar='N', default=256,
        help='validation images per validation (all of them at the end)')
    add('--val_freq', '-f', type=cli.count, metavar='N', default=10000, help='training samples between two validations')
    devices.add_flags(parser)
    add('--kvstore', choices=('local', 'device', 'dist_sync'), default='device',
        help='what adds up the gradients of several devices: the CPU, the devices, or, with workers that '
             'distributed.launch started, a server; --batch_size is that of all together')
    add('--sync_timeout', type=cli.count, metavar='N', default=300,
        help='with dist_sync: seconds without a word from the other workers after which one gives up')
    add('--attention', action='store_true', help='read and write with selective attention')
    add('--read_size', '-ar', type=cli.count, metavar='N', default=2,
        help='with --attention: reads with N x N filters')
    add('--write_size', '-aw', type=cli.count, metavar='N', default=5,
        help='with --attention: writes with N x N filters')
    add('--logdir', type=cli.text, metavar='DIR', default='results',
        help='folder in which the run gets a folder of its own')
    add('--dataset', choices=load.DATASETS, default='mnist',
        help='synthetic: digits drawn with a font, without files or network')
    add('--data_dir', type=cli.text, metavar='DIR', default='data',
        help='folder of the MNIST files; they are downloaded if missing')
    add('--binarization', choices=stream.BINARIZATIONS, default='dynamic',
        help='pixels drawn anew at each use, drawn once, or intensity > 0.5')
    add('--seed', type=cli.seed, metavar='N', default=0, help='of parameters, order, pixels and noise')
    add('--clip_norm', type=cli.positive, metavar='X', default=5.,
        help='largest global norm of the gradient, nats per image')
    add('--kl_warmup', type=cli.count, metavar='N',
        help='training samples over which the weight of the KL grows to 1 (1: at once); if not given, 1 where there is '
             f'an --init, and {_KL_WARMUP} otherwise')
    add('--log_freq', type=cli.count, metavar='N', default=1280,
        help='training samples between two points of the training curves')
    add('--checkpoint_freq', type=cli.count, metavar='N',
        help='training samples between two checkpoints; there is one at each validation in any case')
    add('--init', type=cli.text, metavar='RUN_DIR',
        help='start with the parameters of this model, of the same sizes; without another --seed it gets the same '
             'pixels and noise again')
    add('--resume', type=cli.text, metavar='RUN_DIR',
        help='go on with this run; of its arguments only these may change: ' + ', '.join(MAY_CHANGE))


def _check(parser, args):
    largest = dict.fromkeys((*storage.SIZES, 'batch_size'), storage.MAX_SIZE)
    for name, limit in {**largest, 'sync_timeout': 24 * 3600}.items():
        if getattr(args, name) > limit:
            parser.error(f'argument --{name}: at most {limit}, not {getattr(args, name)}')
    if args.kl_warmup is None:  # with so little weight, a trained model would leave the prior
        args.kl_warmup = 1 if args.init else _KL_WARMUP
    devices.check_flags(parser, args)
    side = min(args.input_height, args.input_width)
    for name in ('read_size', 'write_size'):
        if args.attention and getattr(args, name) > side:
            parser.error(f'argument --{name}: {getattr(args, name)} is larger than the shorter side of the image '
                         f'({side})')
    return args


def parse_args(parser, argv=None):
    """The arguments in `argv` (the command line if None), checked; with --resume, those of the run, changed by them."""
    _add_arguments(parser)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    return _check(parser, args) if args.resume is None else _resumed_args(parser, args.resume, argv)


def _resumed_args(parser, folder, argv):
    """The arguments of the run in `folder`, checked as a command line is, with the changes that `argv` makes."""
    with cli.one_line(parser):
        arguments = storage.read_config(folder)['arguments']
    prog, parser.prog = parser.prog, f'{parser.prog}: {folder}/config.json'
    known = vars(parser.parse_args([]))
    for name, value in arguments.items():
        if name not in known or isinstance(value, bool) != isinstance(known[name], bool) or not (
                value is known[name] is None or isinstance(value, (bool, int, float, str))):
            parser.error(f'{name!r}: {value!r} is no argument of a run')
    # As text, so that argparse checks a stored value as it checks a flag; choices it checks in flags alone.
    parser.set_defaults(**{name: value if value is None or isinstance(value, bool) else str(value)
                           for name, value in arguments.items()})
    choices = [f'--{name}={arguments[name]}' for name in ('dataset', 'binarization', 'kvstore') if name in arguments]
    stored = _check(parser, parser.parse_args(choices))
    parser.prog = prog
    if {word.partition('=')[0] for word in argv} & {f'--{name}' for name in _DEVICES}:
        parser.set_defaults(**{name: known[name] for name in _DEVICES})  # instead of the stored ones, not beside them
    args = _check(parser, parser.parse_args([*choices, *argv]))
    for name, value in vars(args).items():
        if value != getattr(stored, name) and name not in (*MAY_CHANGE, 'resume'):
            parser.error(f'argument --{name}: {value} contradicts {getattr(stored, name)} of the run in {folder}')
    return args


def arguments_of(args):
    """What config.json keeps of the arguments."""
    return {name: value for name, value in vars(args).items() if name != 'resume'}
