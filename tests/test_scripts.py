"""The scripts as a user runs them: options, run folders, GIFs, TensorBoard, bad input, Ctrl-C."""
import contextlib
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

from system import cli

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import HybridBlock
from safetensors.numpy import load_file, save_file

import core
import sample
import train_mnist
from commands import (
    ROOT,
    TIME_OUT,
    assert_help_is_complete,
    assert_no_run,
    assert_one_line,
    colours_per_frame,
    command,
    content,
    frames,
    new_folder,
    only_folder,
    options_in_help,
    refusal,
    script,
    train,
)
from dataset import stream
from idx import write_idx, write_mnist
from runs import storage

T, BATCH = 3, 16
SIZES = ['-s', str(T), '-u', '8', '-l', '4', '-b', str(BATCH), '--kl_warmup', '1']
TINY = [*SIZES, '-t', '64', '-f', '32', '-v', '20']
# Validations at 32, 64, 96 and, since 100 samples are rounded up to whole batches, 112 training samples.
ATTENTION = ['--attention', *SIZES, '-t', '1e2', '-f', '32', '-v', '20', '-r', '0.03']
PLAIN = [*TINY, '-v', '1000', '--logdir', 'all results']
GIFS = [f'sample_{i}.gif' for i in range(10)]


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    """The only mirror is a port of this machine where nobody listens, and no proxy stands before it."""
    monkeypatch.setenv('DRAW_MNIST_MIRROR', 'http://127.0.0.1:9/')
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture(scope='module')
def attention_run(tmp_path_factory):
    return train(new_folder(tmp_path_factory), ATTENTION)


@pytest.fixture(scope='module')
def plain_run(tmp_path_factory):
    return train(new_folder(tmp_path_factory), PLAIN, logdir='all results')


def parse(*argv):
    return train_mnist.parse_args(cli.Parser(prog='train_mnist.py'), [*argv])


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())


# A training run

@pytest.mark.parametrize('run', ['attention_run', 'plain_run'])
def test_run_folder_is_complete(run, request):
    run = request.getfixturevalue(run)
    assert sorted(os.listdir(run.folder)) == sorted([
        'config.json', *(f'{name}.safetensors' for name in ('last', 'best', 'checkpoint', 'fallback')), 'train',
        'validation', 'curves.png', *GIFS])
    assert all(len(os.listdir(run.folder / split)) == 1 for split in ('train', 'validation'))  # one event file
    for name in GIFS:
        pictures = frames(run.folder / name)
        assert len(pictures) == T + 1
        assert {picture.shape for picture in pictures} == {(4 * 28, 4 * 28, 3)}
    attention = '--attention' in run.argv
    boxes = [colours_per_frame(run.folder / name) for name in GIFS]
    assert all(gif[0] == (False, False) for gif in boxes)  # the initial canvas
    assert not any(green for gif in boxes for _, green in gif)  # a sample reads nothing
    assert any(red for gif in boxes for red, _ in gif) == attention


@pytest.mark.parametrize('run, seen', [('attention_run', 112), ('plain_run', 64)])
def test_config(run, seen, request):
    run = request.getfixturevalue(run)
    config = config_of(run.folder)
    assert config['arguments'] == train_mnist.arguments_of(parse(*run.argv))
    assert config['samples_seen'] == seen
    assert config['versions'] == {
        'python': '.'.join(map(str, sys.version_info[:3])),
        **{name: metadata.version(name) for name in ('mxnet', 'numpy', 'mxboard', 'pillow')}}
    validation = config['validation']
    assert validation['unit'] == 'nats' and validation['parameters'] == 'best.safetensors'
    assert validation['num_images'] == 20  # the last sixth of 120
    assert validation['bound'] == pytest.approx(validation['reconstruction'] + validation['kl'])
    assert 0 < validation['kl'] < validation['bound'] < 600  # 784 * log(2) = 543 without training
    assert f'{validation["bound"]:.2f} nats' in run.stdout
    assert str(run.folder.relative_to(run.cwd)) in run.stdout


def test_command_in_config_runs_again(plain_run):
    assert shlex.split(config_of(plain_run.folder)['command']) == ['train_mnist.py', *plain_run.argv]


@pytest.mark.parametrize('name', ['best', 'last'])
def test_safetensors_reads_the_parameters(attention_run, name):
    net = storage.build_net(config_of(attention_run.folder)['arguments'])
    arrays = load_file(attention_run.folder / f'{name}.safetensors')
    assert {name: array.shape for name, array in arrays.items()} == {
        name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_images_that_are_not_square(workplace):
    assert train_mnist.main([*TINY, '-v', '7', '--attention', '--input_height', '12', '--input_width', '9',
                             '--read_size', '3', '--write_size', '4']) == 0
    folder = only_folder('results')
    pictures = frames(folder / 'sample_0.gif')
    assert len(pictures) == T + 1 and pictures[0].shape == (4 * 12, 4 * 9, 3)
    assert sample.main([str(folder), '--reconstruct', '-o', 'out', '--scale', '2']) is None
    assert frames('out/reconstruction_0.gif')[0].shape == (2 * 12, 2 * 9, 3)


def test_synthetic_digits_need_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_mnist.main([*SIZES, '-t', '16', '--dataset', 'synthetic']) == 0
    assert os.listdir() == ['results']
    assert config_of(only_folder('results'))['validation']['num_images'] == 2000
    assert 'downloading' not in capsys.readouterr().out


def test_binarizations(workplace):
    parameters = {}
    for binarization in ('dynamic', 'static', 'threshold'):
        assert train_mnist.main([*TINY, '--binarization', binarization, '--logdir', binarization]) == 0
        folder = only_folder(binarization)
        assert config_of(folder)['arguments']['binarization'] == binarization
        parameters[(folder / 'last.safetensors').read_bytes()] = binarization
    assert len(parameters) == 3  # each trains on other pixels


def test_run_ends_with_the_best_parameters(workplace, monkeypatch):
    at_the_end, bounds = [], iter([5., 6., 7.])  # the first of two validations is the best; the third is the last word

    def validate(training, images):
        at_the_end[:] = [training.net.z_to_dec.weight.data().asnumpy()]
        return next(bounds), 1., np.ones(T) / T

    monkeypatch.setattr(train_mnist.Training, 'validate', validate)
    assert train_mnist.main([*TINY, '-r', '0.03']) == 0
    folder = only_folder('results')
    assert config_of(folder)['validation']['bound'] == 8
    best, _, _ = storage.load_net(folder, [mx.cpu()])
    np.testing.assert_array_equal(at_the_end[0], best.z_to_dec.weight.data().asnumpy())
    assert (folder / 'best.safetensors').read_bytes() != (folder / 'last.safetensors').read_bytes()
    sample.main([str(folder), '-n', '10', '-o', 'out'])
    assert content('out') == {name: (folder / name).read_bytes() for name in GIFS}


def test_same_command_gives_the_same_bytes(attention_run, tmp_path_factory):
    again = train(new_folder(tmp_path_factory), ATTENTION)
    for name in ('best.safetensors', 'last.safetensors', *GIFS):
        assert (again.folder / name).read_bytes() == (attention_run.folder / name).read_bytes(), name
    assert config_of(again.folder)['validation'] == config_of(attention_run.folder)['validation']


def test_another_seed_gives_another_run(attention_run, workplace):
    assert train_mnist.main([*ATTENTION, '--seed', '1']) == 0
    other = only_folder('results')
    assert (other / 'best.safetensors').read_bytes() != (attention_run.folder / 'best.safetensors').read_bytes()


def test_initial_parameters_depend_on_the_seed_alone(workplace, monkeypatch):
    weights = []

    def look(training, *args):
        weights.append(training.net.z_to_dec.weight.data().asnumpy())
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mnist, 'train', look)
    for seed in ('3', '3', '4'):
        mx.random.seed(len(weights))  # what happened before does not count
        assert train_mnist.main([*TINY, '--seed', seed]) == 130
    np.testing.assert_array_equal(weights[0], weights[1])
    assert abs(weights[0] - weights[2]).max() > 1e-3


def test_two_trainings_at_the_same_moment(workplace):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(
            command('train_mnist.py', *TINY), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) for _ in range(2)]
        try:
            assert [process.wait(TIME_OUT) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
    folders = list(Path('results').iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert {'config.json', 'best.safetensors', 'last.safetensors', *GIFS} < set(os.listdir(folder))
        assert len(list(folder.rglob('events.out.tfevents.*'))) == 2


# The training loop

class Recorder:
    """Stands in for train_mnist's Log: keeps what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **numbers: self.calls.append((name, *args, numbers))

    def bounds(self, split):
        """Pairs of samples seen and bound."""
        return [(call[2], float(call[3] + call[4])) for call in self.calls if call[:2] == ('bound', split)]


def start_training(folder, *argv):
    """What train_mnist.train needs: Training, the stream of batches and the validation images."""
    args = parse(*SIZES, *argv)
    write_mnist(folder)
    splits = stream.load('mnist', folder, (28, 28))
    mx.random.seed(args.seed)
    net = storage.build_net(vars(args))
    net.initialize()
    batches = stream.TrainingStream(splits['train'], args.binarization, args.seed)
    images = stream.evaluation_images(splits['validation'], args.binarization)
    return train_mnist.Training(net, args, [mx.cpu()]), batches, images


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


@pytest.mark.parametrize('attention', [[], ['--attention']], ids=['plain', 'attention'])
def test_bound_goes_down(tmp_path, attention):
    training, batches, images = start_training(tmp_path, '-t', '320', '-f', '80', '--log_freq', '32', '-r', '0.03',
                                              *attention)
    log = Recorder()
    train_mnist.train(training, batches, images, log, str(tmp_path), cli.Stop())
    trained, validated = log.bounds('train'), log.bounds('validation')
    assert [seen for seen, _ in validated] == [80, 160, 240, 320]
    assert [seen for seen, _ in trained] == sorted({*range(32, 321, 32), 80, 160, 240, 320})
    for bounds in (trained, validated):
        assert np.isfinite(bounds).all()
    assert trained[0][1] > 400  # 784 * log(2) = 543 nats without training
    assert trained[-1][1] < 300 and validated[-1][1] < 300
    seen = [call[2] if call[0] == 'bound' else call[1] for call in log.calls
            if call[0] not in ('pictures', 'gradients', 'sync', 'save_curves')]
    assert seen == sorted(seen)
    assert all(len(call[2]) == T for call in log.calls if call[0] == 'kl_per_step')
    for name in ('kl_per_step', 'pictures', 'gradients'):
        assert sum(call[0] == name for call in log.calls) == 4, name


def test_static_graphs_train_like_imperative_code(tmp_path, monkeypatch):
    """Also with validations in between."""
    argv = ['--attention', '-t', '96', '-f', '32', '-v', '20']
    training, *rest = start_training(tmp_path, *argv)
    before = values(training.net)
    train_mnist.train(training, *rest, Recorder(), str(tmp_path), cli.Stop())
    for block in (HybridBlock, core.DRAW):
        monkeypatch.setattr(block, 'hybridize', lambda *args, **kwargs: None)
    imperative, *rest = start_training(tmp_path, *argv)
    assert training.net._active and not imperative.net._active
    assert all(np.array_equal(array, before[name]) for name, array in values(imperative.net).items())
    train_mnist.train(imperative, *rest, Recorder(), str(tmp_path), cli.Stop())
    after = values(training.net)
    for name, array in values(imperative.net).items():
        np.testing.assert_allclose(array, after[name], rtol=0, atol=1e-4, err_msg=name)
    assert max(abs(after[name] - before[name]).max() for name in before) > 5e-3


@pytest.mark.parametrize('num_images', [BATCH + 4, 5, BATCH], ids=str)
def test_validation_is_the_average_over_the_images(tmp_path, num_images):
    training, batches, images = start_training(tmp_path, '--attention', '-r', '0.01')
    for seen in range(0, 5 * BATCH, BATCH):
        training.step(batches.batch(seen, BATCH))
    images = images[:num_images]
    noise, draw = [], training._noise
    training._noise = lambda *args: noise.append(draw(*args)) or noise[-1]
    reconstruction, kl, kl_t = training.validate(images)
    assert np.isfinite(reconstruction) and len(noise) == -(-num_images // BATCH)

    per_image = []
    for first, eps in zip(range(0, num_images, BATCH), noise):
        x = images[first:first + BATCH]
        canvas, mu, log_sigma = (output.asnumpy().astype(np.float64)
                                 for output in training.net(nd.array(x), nd.array(eps[:, :len(x)])))
        for i in range(len(x)):
            p = 1 / (1 + np.exp(-canvas[i]))
            terms = mu[:, i] ** 2 + np.exp(log_sigma[:, i]) ** 2 - 2 * log_sigma[:, i] - 1
            per_image.append([-np.log(np.where(x[i] == 1, p, 1 - p)).sum(), *(terms.sum(axis=1) / 2)])
    expected = np.mean(per_image, axis=0)
    assert len(per_image) == num_images
    np.testing.assert_allclose([reconstruction, *kl_t], expected, rtol=1e-5)
    np.testing.assert_allclose(kl, expected[1:].sum(), rtol=1e-5)
    assert np.std(per_image, axis=0)[0] > 1e-4 * expected[0]  # an image counted twice would be seen
    np.testing.assert_array_equal(training.validate(images)[:2], (reconstruction, kl))  # the noise is the same


def test_best_parameters_are_those_of_the_lowest_bound(tmp_path, monkeypatch):
    training, batches, images = start_training(tmp_path, '-t', '64', '-f', '16')
    moments, bounds = [], iter([9., 4., 5., 6.])

    def validate(images):
        moments.append(values(training.net))
        return next(bounds), 1., np.ones(T) / T

    monkeypatch.setattr(training, 'validate', validate)
    train_mnist.train(training, batches, images, Recorder(), str(tmp_path), cli.Stop())
    assert len(moments) == 4
    for name, moment in (('best', moments[1]), ('last', moments[3])):
        storage.load_params(tmp_path, name, training.net)
        for key, array in values(training.net).items():
            np.testing.assert_array_equal(array, moment[key], err_msg=f'{name}: {key}')


def test_weight_of_the_kl_grows_to_1(tmp_path):
    training, batches, _ = start_training(tmp_path, '--kl_warmup', '64')
    weights = []
    for seen in range(0, 6 * BATCH, BATCH):
        weights.append(training.kl_weight())
        training.step(batches.batch(seen, BATCH))
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize('decay, expected', [('0', [1, 1, 1, 1, 1]), ('0.5', [1, 1, 1, 0.8, 0.4]),
                                             ('1', [1, 0.8, 0.6, 0.4, 0.2])])
def test_learning_rate_falls_over_the_last_part(tmp_path, decay, expected):
    training, batches, _ = start_training(tmp_path, '-t', str(5 * BATCH), '-r', '0.01', '--lr_decay', decay)
    rates = []
    for seen in range(0, 5 * BATCH, BATCH):
        training.step(batches.batch(seen, BATCH))
        rates.append(training._trainer.learning_rate)
    np.testing.assert_allclose(rates, 0.01 * np.array(expected), rtol=1e-12)


def test_interruption_between_validations_saves_the_latest_parameters(tmp_path, monkeypatch):
    training, batches, images = start_training(tmp_path, '-t', '640', '-f', '32', '--log_freq', '16')
    step, stop = training.step, cli.Stop()

    def interrupted(x):
        if training.seen == 48:
            stop.signal = signal.SIGINT
        return step(x)

    monkeypatch.setattr(training, 'step', interrupted)
    train_mnist.train(training, batches, images, Recorder(), str(tmp_path), stop)
    assert training.seen == 64
    latest = values(training.net)
    (parameters, *_), metadata = storage.load_checkpoint(tmp_path, 'checkpoint', training.net)
    assert metadata['samples_seen'] == 64
    for name, array in parameters.items():
        np.testing.assert_array_equal(array.asnumpy(), latest[name], err_msg=name)
    storage.load_params(tmp_path, 'best', training.net)  # of the validation at 32
    assert abs(values(training.net)['r_to_enc.weight'] - latest['r_to_enc.weight']).max() > 1e-4


# Ctrl-C and bounds that are not finite

@contextlib.contextmanager
def started(*argv):
    """A training process that Ctrl-C reaches; killed at the end, and after TIME_OUT seconds at the latest."""
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits an ignored signal
    try:
        process = subprocess.Popen(command('train_mnist.py', *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, handler)
    watchdog = threading.Timer(TIME_OUT, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            process.kill()
            watchdog.cancel()


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_saves_and_says_how_to_go_on(workplace, capsys, number, code):
    with started(*SIZES, '--attention', '-t', '1e7', '-f', '32', '-v', '20') as process:
        assert any('validation bound' in line for line in process.stdout)
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == code
    assert 'Traceback' not in out + err
    folder = only_folder('results')
    line, = (line for line in (out + err).splitlines() if '--resume' in line)
    seen = config_of(folder)['samples_seen']
    assert seen >= 32 and seen % BATCH == 0 and f'{seen:,}' in line
    assert line.endswith(f'python train_mnist.py --resume {folder}')
    assert 'validation' not in config_of(folder)
    assert not list(folder.glob('*.tmp'))
    net = storage.build_net(config_of(folder)['arguments'])
    assert storage.load_checkpoint(folder, 'checkpoint', net)[1]['samples_seen'] == seen
    sample.main([str(folder), '-n', '1', '-o', 'out'])
    assert os.listdir('out') == ['sample_0.gif']


@pytest.mark.parametrize('module, name', [(stream, 'load'), (storage, 'build_net')])
def test_ctrl_c_before_the_first_step(workplace, monkeypatch, capsys, module, name):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)
    try:
        code = train_mnist.main(TINY)
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:  # left alone it would end the test session
        pytest.fail('main lets the KeyboardInterrupt through')
    assert code == 130
    assert 'last.safetensors' not in ''.join(capsys.readouterr())  # there is none


def test_bound_that_is_not_finite_keeps_the_best_parameters(workplace, monkeypatch, capsys):
    step, best = train_mnist.Training.step, []

    def diverge(training, x):
        if training.seen == 64:
            best.append((only_folder('results') / 'best.safetensors').read_bytes())
            training.args.learning_rate = 1e30
        return step(training, x)

    monkeypatch.setattr(train_mnist.Training, 'step', diverge)
    assert train_mnist.main([*TINY, '-t', '320']) == 1
    err = capsys.readouterr().err
    assert 'not finite' in err and 'Traceback' not in err
    folder = only_folder('results')
    assert [(folder / 'best.safetensors').read_bytes()] == best
    net = storage.build_net(config_of(folder)['arguments'])
    net.initialize()
    storage.load_params(folder, 'last', net)  # refuses numbers that are not finite
    assert 64 < config_of(folder)['samples_seen'] <= 112
    assert 'validation' not in config_of(folder)
    sample.main([str(folder), '-n', '1', '-o', 'out'])
    assert os.listdir('out') == ['sample_0.gif']


def test_huge_learning_rate(workplace, capsys):
    result = script('train_mnist.py', *TINY, '-r', '1e30', cwd=workplace)
    assert result.returncode == 1
    assert 'not finite' in result.stderr.splitlines()[-1] and '--learning_rate' in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr
    folder = only_folder('results')
    assert not list(folder.glob('*.safetensors'))
    assert 'saved' not in result.stderr  # nothing was
    assert str(folder) in refusal(capsys, sample.main, folder)


# Options

OPTIONS = {
    'batch_size': ('-b', 64), 'input_height': ('-hh', 28), 'input_width': ('-ww', 28), 'num_steps': ('-s', 64),
    'num_recurrent_units': ('-u', 256), 'latent_dim': ('-l', 100), 'learning_rate': ('-r', 2e-3),
    'num_train_samples': ('-t', 1000000), 'num_val_samples': ('-v', 256), 'val_freq': ('-f', 10000),
    'gpu': (None, False), 'attention': (None, False), 'read_size': ('-ar', 2), 'write_size': ('-aw', 5),
    'logdir': (None, 'results'), 'dataset': (None, 'mnist'), 'data_dir': (None, 'data'),
    'binarization': (None, 'dynamic')}
COUNTS = ['--batch_size', '--input_height', '--input_width', '--num_steps', '--num_recurrent_units', '--latent_dim',
          '--num_train_samples', '--num_val_samples', '--val_freq', '--read_size', '--write_size', '--kl_warmup',
          '--log_freq']


def test_defaults():
    args = vars(parse())
    for name, (_, default) in OPTIONS.items():
        assert args[name] == default and type(args[name]) is type(default), name
    assert args['seed'] == 0


@pytest.mark.parametrize('name', [name for name, (short, _) in OPTIONS.items() if short])
def test_long_and_short_names(name):
    number = 0.25 if name == 'learning_rate' else 3
    default = vars(parse())
    for option in (f'--{name}', OPTIONS[name][0]):
        assert vars(parse(option, str(number))) == {**default, name: number}
    assert vars(parse(f'--{name}={number}')) == {**default, name: number}


def test_short_names_are_exactly_these():
    parser = cli.Parser(prog='train_mnist.py')
    train_mnist.parse_args(parser, [])
    short = {option for action in parser._actions for option in action.option_strings if not option.startswith('--')}
    assert short == {'-h', *(short for short, _ in OPTIONS.values() if short)}


def test_help_of_training():
    result = script('train_mnist.py', '--help', cwd=ROOT)
    assert result.returncode == 0 and result.stderr == ''
    parser = cli.Parser(prog='train_mnist.py')
    train_mnist.parse_args(parser, [])
    assert_help_is_complete(result.stdout, parser)
    assert OPTIONS.keys() < options_in_help(result.stdout).keys()


@pytest.mark.parametrize('option', COUNTS)
def test_counts_are_whole_numbers_from_1_on(capsys, option):
    assert vars(parse('--num_train_samples', '1e5', option, '1e1'))[option[2:]] == 10
    for text in ('0', '-1', '-5', '1.5', '1e-1', 'ten', '', 'nan', 'inf', '-inf', '1e400', '0x10'):
        assert option in refusal(capsys, train_mnist.main, option, text), text
    assert option in refusal(capsys, train_mnist.main, option)


@pytest.mark.parametrize('option', ['--input_height', '--input_width', '--num_steps', '--num_recurrent_units',
                                    '--latent_dim'])
def test_training_takes_no_size_that_sampling_refuses(tmp_path, capsys, option):
    largest = parse(option, str(2 ** 16))
    storage.write_config(tmp_path, {'arguments': vars(largest)})
    assert storage.read_config(tmp_path)['arguments'] == vars(largest)
    with pytest.raises(SystemExit) as stop:
        parse(option, str(2 ** 16 + 1))
    assert stop.value.code == 2
    assert_one_line(*capsys.readouterr())


@pytest.mark.parametrize('option', ['--learning_rate', '--clip_norm'])
def test_rates_are_finite_and_positive(capsys, option):
    assert vars(parse(option, '1e-2'))[option[2:]] == 0.01
    for text in ('nan', 'inf', '-inf', '-1', '-0.1', '0', '0.0', 'fast', '', '1e400'):
        assert option in refusal(capsys, train_mnist.main, option, text), text


def test_lr_decay_is_a_share(capsys):
    assert [parse('--lr_decay', text).lr_decay for text in ('0', '0.25', '1')] == [0, 0.25, 1]
    for text in ('nan', 'inf', '-0.1', '1.01', 'slow', ''):
        assert '--lr_decay' in refusal(capsys, train_mnist.main, '--lr_decay', text), text


@pytest.mark.parametrize('main', [lambda argv: train_mnist.main(argv), lambda argv: sample.main(['run', *argv])],
                         ids=['train_mnist', 'sample'])
def test_seeds(capsys, main):
    assert parse('--seed', '4294967295').seed == 2 ** 32 - 1
    for text in ('-1', '1.5', '1e3', '4294967296', 'random', ''):
        assert '--seed' in refusal(capsys, main, '--seed', text), text


@pytest.mark.parametrize('argv, reason', [
    (['--attention', '-ar', '29'], '--read_size'),
    (['--attention', '-aw', '29'], '--write_size'),
    (['--attention', '-hh', '20', '-ww', '12', '-aw', '13'], '12'),
    (['--attention', '-hh', '4'], '--write_size'),
    (['--dataset', 'cifar'], '--dataset'),
    (['--binarization', 'none'], '--binarization'),
    (['--epochs', '3'], '--epochs'),
    (['--learning', '1e-3'], '--learning'),
    (['--num_train', '10'], '--num_train'),
    (['--att'], '--att'),
    (['--gpu=1'], '--gpu'),
    (['extra'], 'extra')])
def test_bad_options_of_training(tmp_path, monkeypatch, capsys, argv, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refusal(capsys, train_mnist.main, *argv)
    assert os.listdir() == []


def test_window_may_be_as_large_as_the_shorter_side():
    args = parse('--attention', '-hh', '20', '-ww', '12', '-ar', '12', '-aw', '12')
    assert (args.read_size, args.write_size) == (12, 12)
    assert parse('-hh', '3', '-ar', '4').read_size == 4  # without attention it has no meaning


@pytest.mark.skipif(mx.runtime.Features().is_enabled('CUDA'), reason='this MXNet is built for CUDA')
@pytest.mark.parametrize('main', [lambda argv: train_mnist.main(argv), lambda argv: sample.main(['run', *argv])],
                         ids=['train_mnist', 'sample'])
def test_gpu_without_cuda(tmp_path, monkeypatch, capsys, main):
    (tmp_path / 'run').mkdir()
    monkeypatch.chdir(tmp_path)
    assert 'CUDA' in refusal(capsys, main, '--gpu')
    assert os.listdir() == ['run']


# Bad files

@pytest.mark.parametrize('logdir', ['file', 'file/logs', 'file/logs/deep'])
def test_logdir_that_cannot_be_written(workplace, capsys, logdir):
    Path('file').write_text('mine')
    assert logdir in refusal(capsys, train_mnist.main, *TINY, '--logdir', logdir)
    assert Path('file').read_text() == 'mine' and sorted(os.listdir()) == ['data', 'file']


def damage_short(folder):
    path = folder / 'train-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-100])


def damage_text(folder):
    (folder / 'train-images-idx3-ubyte.gz').write_text('<html>not found</html>')


def damage_labels(folder):
    shutil.copy(folder / 't10k-labels-idx1-ubyte.gz', folder / 't10k-images-idx3-ubyte.gz')


def damage_few(folder):
    write_idx(folder / 'train-images-idx3-ubyte.gz', np.zeros((5, 28, 28)))


@pytest.mark.parametrize('damage, name', [(damage_short, 'train-images'), (damage_text, 'train-images'),
                                          (damage_labels, 't10k-images'), (damage_few, 'train-images')])
def test_damaged_images(workplace, capsys, damage, name):
    damage(workplace / 'data')
    assert name in refusal(capsys, train_mnist.main, *TINY)
    assert_no_run()


@pytest.mark.parametrize('folder', ['nowhere', 'file', 'file/data'])
def test_images_missing(workplace, capsys, folder):
    Path('file').write_text('mine')
    assert folder in refusal(capsys, train_mnist.main, *TINY, '--data_dir', folder)
    assert_no_run()


@pytest.mark.parametrize('argv', [
    ['train_mnist.py', '-s', '0'], ['train_mnist.py', *TINY, '--data_dir', 'nowhere'], ['sample.py', 'nowhere']],
    ids=['option', 'images', 'run'])
def test_bad_input_of_a_process(workplace, argv):
    result = script(*argv, cwd=workplace)
    assert result.returncode == 2
    assert_one_line(result.stdout, result.stderr)
    assert result.stderr.startswith(argv[0])
    assert_no_run()


# Sampling a run

def test_gifs_of_the_run_are_the_default_samples(attention_run, tmp_path):
    result = script('sample.py', attention_run.folder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert content(tmp_path) == {name: (attention_run.folder / name).read_bytes() for name in GIFS}
    assert len(set(content(tmp_path).values())) == 10
    assert 'best.safetensors' in result.stdout and 'reconstruction' not in result.stdout


@pytest.fixture
def copied_run(attention_run, tmp_path, monkeypatch):
    """A copy of a run that a test may damage, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(attention_run.cwd / 'data', 'data')
    shutil.copytree(attention_run.folder, 'run')
    return Path('run')


def change_arguments(folder, **changes):
    config = config_of(folder)
    config['arguments'].update(changes)
    config['arguments'] = {key: value for key, value in config['arguments'].items() if value is not None}
    (folder / 'config.json').write_text(json.dumps(config))


def rewrite(name, change):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def foreign_parameters(folder):
    save_file({'dense0.weight': np.ones((3, 4), np.float32)}, folder / 'best.safetensors')


def remove_parameters(folder):
    for path in folder.glob('*.safetensors'):
        path.unlink()


def earlier_version(folder):
    for path in folder.glob('*.safetensors'):
        path.rename(path.with_suffix('.params'))


BAD_RUNS = {
    'no folder': shutil.rmtree,
    'empty folder': lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    'a file': lambda folder: (shutil.rmtree(folder), folder.write_text('mine')),
    'no config': lambda folder: (folder / 'config.json').unlink(),
    'no parameters': remove_parameters,
    'config cut short': rewrite('config.json', lambda content: content[:-20]),
    'config empty': rewrite('config.json', lambda content: b''),
    'config of something else': rewrite('config.json', lambda content: b'{"name": "draw", "arguments": {"x": 1}}'),
    'config without a size': lambda folder: change_arguments(folder, num_steps=None),
    'config of 2 MiB': rewrite('config.json', lambda content: content + b' ' * 2 ** 21),
    'config of a larger network': lambda folder: change_arguments(folder, num_recurrent_units=9),
    'config of a smaller network': lambda folder: change_arguments(folder, latent_dim=3),
    'config of other images': lambda folder: change_arguments(folder, attention=False, input_width=27),
    'config without attention': lambda folder: change_arguments(folder, attention=False),
    'config with text for a size': lambda folder: change_arguments(folder, latent_dim='4'),
    'config with a large window': lambda folder: change_arguments(folder, write_size=29),
    'parameters cut short': rewrite('best.safetensors', lambda content: content[:-1]),
    'parameters empty': rewrite('best.safetensors', lambda content: b''),
    'parameters too long': rewrite('best.safetensors', lambda content: content + b'\0'),
    'parameters random': rewrite('best.safetensors', lambda content: np.random.default_rng(0).bytes(len(content))),
    'parameters of something else': foreign_parameters,
    'parameters with a huge header': rewrite('best.safetensors', lambda content: b'\xff' * 8 + content[8:]),
    'parameters of an earlier version': earlier_version}


@pytest.mark.parametrize('damage', BAD_RUNS.values(), ids=BAD_RUNS)
def test_damaged_run(copied_run, capsys, damage):
    before = content(copied_run)
    damage(copied_run)
    assert not copied_run.is_dir() or content(copied_run) != before
    assert 'run' in refusal(capsys, sample.main, 'run', '-o', 'out')
    assert not os.path.exists('out')


@pytest.mark.parametrize('changes', [
    {'dataset': None}, {'binarization': None}, {'data_dir': None}, {'dataset': 'cifar'}, {'binarization': 'none'},
    {'dataset': 3}, {'data_dir': 3}, {'binarization': []}], ids=str)
def test_reconstruction_with_a_damaged_config(copied_run, capsys, changes):
    change_arguments(copied_run, **changes)
    assert refusal(capsys, sample.main, 'run', '--reconstruct', '-o', 'out')
    assert not os.path.exists('out')


# Imports

def test_parsers_and_mains_take_their_arguments():
    for module in (train_mnist, sample):
        for function in (module.main, module.parse_args):
            assert inspect.signature(function).parameters['argv'].default is None
