"""A run's folder: config.json, what <last, best, checkpoint>.safetensors hold, and the one training that may use it."""
import contextlib
import errno
import fcntl
import glob
import hashlib
import math
import os
import platform
import reprlib
import shutil
import tempfile
import time
from importlib import metadata

from system import cli, files

import mxnet
from mxnet import cpu, nd

import core
from dataset import load, stream
from runs import params_file

_MAX_SECONDS = 1e10  # of training, three centuries
_GROUPS = 3  # of arrays in a checkpoint: the parameters, and Adam's mean and variance
SIZES = ('input_height', 'input_width', 'num_steps', 'num_recurrent_units', 'latent_dim')
_MOST_NAMES = 5  # in a message
MAX_SIZE = 2 ** 16  # of each of SIZES


class RunError(cli.UserError):
    """A run folder that cannot be used; the message is one line for the user."""


def versions():
    """Versions of Python and of the packages that a result depends on."""
    packages = ('numpy', 'mxboard', 'pillow')
    return {'python': platform.python_version(), 'mxnet': mxnet.__version__,  # whose wheels for CUDA have other names
            **{name: metadata.version(name) for name in packages}}


def check_writable(folder):
    """Make `folder` if it is missing, and try to write in it; returns whether it was missing. Raises RunError."""
    is_new = not os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f'cannot write in {folder}: {error.strerror}') from None
    return is_new


def create(logdir, name, config):
    """Make and return the new folder `logdir/<date>-<time>-<name>` with config.json; no two runs ever share one."""
    stem = os.path.join(logdir, f'{time.strftime("%Y%m%d-%H%M%S")}-{name}')
    new = tempfile.mkdtemp(prefix='.new-', dir=logdir)  # renamed with its content: a run without config.json is none
    try:
        os.chmod(new, 0o777 & ~_umask())
        with lock(new):  # a file system without locks is told before there is a run
            write_config(new, config)
        for attempt in range(1, 1000):
            folder = stem if attempt == 1 else f'{stem}-{attempt}'
            try:
                os.rename(new, folder)
                return folder
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    raise RunError(f'no free folder name beside {stem}')


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_config(folder, config):
    """Write config.json."""
    files.write_json(os.path.join(folder, 'config.json'), config)


def read_config(folder):
    """The content of config.json, what the scripts use of it checked. Raises RunError."""
    _refuse_earlier_format(folder)
    path = os.path.join(folder, 'config.json')
    try:
        config = files.read_json(path)
        arguments = config['arguments']
        sizes = [arguments[key] for key in SIZES]
        if arguments['attention']:
            sizes += [arguments['read_size'], arguments['write_size']]
        if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f'sizes out of range: {sizes}')
        if not (arguments['dataset'] in load.DATASETS and arguments['binarization'] in stream.BINARIZATIONS
                and b'\0' not in os.fsencode(arguments['data_dir'])):
            raise ValueError('no such data set')
        if not isinstance(config.get('resumed', []), list):
            raise ValueError('resumed is no list')
        validation = config.get('validation', {'bound': 0.})
        if not (isinstance(validation, dict) and type(validation.get('bound')) is float):
            raise ValueError('validation has no bound')
    except OSError as error:
        found = glob.glob(os.path.join(glob.escape(folder), '*', 'config.json'))
        inside = sorted(os.path.dirname(path) for path in found)
        hint = f'; it holds the run folders {", ".join(inside[-_MOST_NAMES:])}' if inside else ''
        raise RunError(f'{folder} is not a run folder of train_mnist.py: {path}: {error.strerror}{hint}') from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f'{path} is not the config.json of a run: {type(error).__name__}: {error}') from None
    return config


def _refuse_earlier_format(folder):
    earlier, current = ([f'{name}.{suffix}' for name in ('best', 'last', 'checkpoint')
                         if os.path.lexists(os.path.join(folder, f'{name}.{suffix}'))]
                        for suffix in ('params', 'safetensors'))
    if earlier and not current:
        raise RunError(f'{folder} holds {earlier[0]}, the format of earlier versions, which this one does not read; '
                       f'use the version that trained it, or train again')


def build_net(arguments):
    """The DRAW network of these arguments (a dict with train_mnist.py's names), not initialized."""
    height, width, num_steps, units, latent_dim = (arguments[key] for key in SIZES)
    image_shape = (height, width)
    if arguments['attention']:
        read = core.SelectiveAttentionRead(arguments['read_size'], image_shape)
        write = core.SelectiveAttentionWrite(arguments['write_size'], image_shape)
    else:
        read, write = core.NoAttentionRead(), core.NoAttentionWrite(image_shape)
    return core.DRAW(read, write, image_shape, num_steps=num_steps, num_recurrent_units=units,
                     latent_dim=latent_dim)


def parameters(net):
    """The network's parameters by their names, {name: Parameter}."""
    return net._collect_params_with_prefix()


def _shapes(net):
    return {name: parameter.shape for name, parameter in parameters(net).items()}


def num_weights(net):
    """How many numbers the parameters of a network are."""
    return sum(map(math.prod, _shapes(net).values()))


def digest(net):
    """SHA-256 of a network's parameters, as float32 numbers in the order of their names."""
    found = hashlib.sha256()
    for _, parameter in sorted(parameters(net).items()):
        found.update(parameter.list_data()[0].asnumpy())
    return found.hexdigest()


def save_params(folder, name, net, dtype='float32'):
    """Write <name>.safetensors, in 'float16' with half the bytes. Raises OSError."""
    arrays = {key: parameter.list_data()[0].astype(dtype, copy=False).asnumpy()
              for key, parameter in parameters(net).items()}
    params_file.write(os.path.join(folder, f'{name}.safetensors'), arrays, {'model': _model(net)})


def load_net(folder, contexts):
    """The network of a run, initialized, with its best parameters; before the first validation with those of the
    checkpoint, which the last ones may be older than.

    Returns
    -------
    net : DRAW
    config : dict, the content of config.json
    path : str, the file that the parameters came from

    Raises
    ------
    RunError
        A folder without a model, or a damaged one.
    """
    config = read_config(folder)
    try:
        net = build_net(config['arguments'])
    except ValueError as error:
        raise RunError(f'{os.path.join(folder, "config.json")}: {error}') from None
    names = ('best', 'checkpoint', 'last')
    name = next((name for name in names if os.path.exists(os.path.join(folder, f'{name}.safetensors'))), 'best')
    return net, config, load_params(folder, name, net, contexts)


def load_init(folder, net):
    """Put the model of another run, of the same sizes, into an initialized `net`; what config.json keeps of its run.

    Raises RunError.
    """
    other, config, _ = load_net(folder, [cpu()])
    if (_model(other), _shapes(other)) != (_model(net), _shapes(net)):
        raise RunError(f'argument --init: the model of {folder} has other sizes')
    for key, parameter in parameters(other).items():
        parameters(net)[key].set_data(parameter.data())
    kept = {key: config[key] for key in ('init', 'command', 'resumed') if key in config}
    return {'run': folder, **kept, 'samples_seen': _samples_seen(folder, config, net)}


def _samples_seen(folder, config, net):
    """How far a run came: the most that config.json, which does not know of a sitting that was killed, and the
    checkpoints say."""
    found = [config.get('samples_seen')]
    for name in ('checkpoint', 'fallback'):
        with contextlib.suppress(RunError):  # neither is needed
            _, metadata = load_checkpoint(folder, name, net) or (None, {})
            found.append(metadata.get('samples_seen'))
    return max((seen for seen in found if type(seen) is int), default=0)


def load_params(folder, name, net, contexts=None):
    """Put <name>.safetensors into `net`, which is initialized first if contexts are given; returns the file's path.

    Raises RunError.
    """
    path, arrays = read_params(folder, name, net)
    if contexts is not None:
        net.initialize(ctx=contexts)  # takes memory, so not for a config.json whose sizes the file does not have
    for key, parameter in parameters(net).items():
        parameter.set_data(nd.array(arrays[key]))
    return path


def read_params(folder, name, net):
    """Path and arrays of <name>.safetensors. The network need not be initialized. Raises RunError."""
    path = os.path.join(folder, f'{name}.safetensors')
    if name == 'checkpoint':
        (arrays, *_), _ = load_checkpoint(folder, name, net)
    else:
        arrays, _ = _read(path, net, _shapes(net))
    return path, arrays


def _model(net):
    """What the shapes of the parameters do not say of a network."""
    return {'image_shape': list(net.image_shape), 'num_steps': net.num_steps}


def _read(path, net, shapes):
    try:
        arrays, metadata = params_file.read(path, shapes)
    except params_file.ParamsError as error:
        raise RunError(str(error)) from None
    if metadata.get('model') != _model(net):
        raise RunError(f'{path} does not fit the config.json beside it: the file has '
                       f'{reprlib.repr(metadata.get("model"))}, config.json {_model(net)}')
    return arrays, metadata


def save_checkpoint(folder, name, net, state, metadata):
    """Write a checkpoint, all that `load_checkpoint` returns; the one before stays until this one is whole.

    Parameters
    ----------
    folder, name : str
    net : DRAW
    state : list of dict of str to NDArray
        The parameters by name, and Adam's mean and variance by the same names.
    metadata : dict
        What JSON can hold: no NaN, no infinity.

    Raises
    ------
    OSError
    """
    arrays = {f'{k}/{key}': array.asnumpy() for k, group in enumerate(state) for key, array in group.items()}
    params_file.write(os.path.join(folder, f'{name}.safetensors'), arrays, {**metadata, 'model': _model(net)})


def load_checkpoint(folder, name, net):
    """What `save_checkpoint` wrote, checked, as (state, metadata), or None where there is none. Raises RunError.

    The network need not be initialized: a checkpoint of another one is refused before memory is taken for it.
    """
    path = os.path.join(folder, f'{name}.safetensors')
    if not os.path.lexists(path):
        return None
    own = _shapes(net)
    shapes = {f'{k}/{key}': shape for k in range(_GROUPS) for key, shape in own.items()}
    arrays, metadata = _read(path, net, shapes)
    check_metadata(path, metadata)
    return [{key: arrays[f'{k}/{key}'] for key in own} for k in range(_GROUPS)], metadata


def check_metadata(path, metadata):
    """Raises RunError, naming the item, where the metadata is not what `Training.save_checkpoint` writes.

    Whole numbers are below 2^53, so that floats hold them too; best_bound is null before the first validation.
    """
    def whole(value, least):
        return type(value) is int and least <= value < 2 ** 53

    valid = {'samples_seen': lambda value: whole(value, 1),
             'num_updates': lambda value: whole(value, 1),
             'best_bound': lambda value: value is None or type(value) is float and math.isfinite(value),
             'seconds': lambda value: type(value) is float and 0 <= value <= _MAX_SECONDS,
             'arguments': lambda value: isinstance(value, dict)}
    for name, is_valid in valid.items():
        if name not in metadata or not is_valid(metadata[name]):
            raise RunError(f'{path} is damaged: its {name} is {reprlib.repr(metadata.get(name))}')


def fall_back(folder, net):
    """Make the fallback the checkpoint; where there is none, remove the checkpoint and the parameters.

    Returns
    -------
    The training samples seen at the fallback, or 0.
    """
    paths = {name: os.path.join(folder, f'{name}.safetensors') for name in ('checkpoint', 'best', 'last', 'fallback')}
    fallback, found = paths.pop('fallback'), load_checkpoint(folder, 'fallback', net)
    if found:
        files.write_whole(paths['checkpoint'], lambda temporary: shutil.copyfile(fallback, temporary))
        return found[1]['samples_seen']
    for path in paths.values():
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    return 0


@contextlib.contextmanager
def lock(folder):
    """Hold a run's folder for this process; the system lets go of it when the process ends, however it does.

    Raises RunError where another process holds it, or where the file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f'{folder} is in use by another training') from None
        except OSError as error:
            raise RunError(f'{folder} cannot be locked: {error.strerror}') from None
        yield
