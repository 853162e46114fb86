"""What is logged, what a stopped and resumed run leaves of it, and what TensorBoard makes of it."""
import inspect
import io
import os
import re
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxboard.record_writer import masked_crc32c
from mxnet import autograd
from PIL import Image

import browser
import train_mnist
from commands import ARGV, Killed, assert_same_curves, only_folder, resume, script, stop_after
from idx import write_mnist
from pictures import curves
from runs import storage
from runs.log import SPLITS, Log, NoLog, read_kl_per_step, read_scalars
from test_fuzz import mutate

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS = 200
T = 3
NATS = {f'nats_per_image/{name}' for name in ('bound', 'reconstruction', 'kl')}
TRAINING = {f'training/{name}' for name in ('gradient_norm', 'learning_rate', 'samples_per_second')}
GRADIENTS = {f'training_gradients/{part}'
             for part in ('initial_states', 'read', 'encoder', 'posterior', 'decoder', 'write')}


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
    """A folder with the same run twice: never stopped, and killed three times on its way."""
    folder = tmp_path_factory.mktemp('log')
    (folder / 'data').mkdir()
    write_mnist(folder / 'data')
    argv = [*ARGV, '--attention', '-t', '192', '--checkpoint_freq', '48', '--data_dir', str(folder / 'data'),
            '--logdir', str(folder / 'runs')]
    assert train_mnist.main(argv) == 0
    only_folder(folder / 'runs').rename(folder / 'whole')
    for seen in (32, 96, 176):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, seen)
            with pytest.raises(Killed):
                train_mnist.main(argv) if seen == 32 else resume(only_folder(folder / 'runs'))
    assert resume(only_folder(folder / 'runs')) == 0
    only_folder(folder / 'runs').rename(folder / 'resumed')
    return folder


def event_files(folder, split='train'):
    return sorted((Path(folder) / split).glob('events.out.tfevents.*'))


# What lies in the files

def test_curves_have_no_fold(logdir):
    whole = read_scalars(logdir / 'whole')
    assert list(whole['train']['bound'][:, 0]) == list(range(16, 193, 16))
    assert list(whole['validation']['bound'][:, 0]) == [64, 128, 192]
    assert_same_curves(logdir / 'resumed', logdir / 'whole')
    assert [len(event_files(logdir / name)) for name in ('whole', 'resumed')] == [1, 4]


def test_bound_is_the_sum_of_its_parts(logdir):
    for found in read_scalars(logdir / 'whole').values():
        np.testing.assert_allclose(found['bound'][:, 1], found['reconstruction'][:, 1] + found['kl'][:, 1], rtol=1e-6)


def test_kl_per_step_is_read_back(logdir):
    seen, kl_t = read_kl_per_step(logdir / 'whole')
    assert list(seen) == [64, 128, 192] and kl_t.shape == (3, T)
    np.testing.assert_allclose(kl_t.sum(axis=1), read_scalars(logdir / 'whole')['validation']['kl'][:, 1], rtol=1e-6)


def test_every_event_can_be_read_at_once(tmp_path):
    log = Log(str(tmp_path), {})
    for seen in (16, 32):
        log.bound('train', seen, 3., 2.)
        assert read_scalars(tmp_path)['train']['bound'].tolist() == [[s, 5.] for s in range(16, seen + 1, 16)]
    log.close()


def test_a_clock_set_back_changes_no_order(tmp_path, monkeypatch):
    for clock, number in ((2e9, 1.), (1e9, 2.), (0., 3.)):
        monkeypatch.setattr(time, 'time', lambda clock=clock: clock)
        log = Log(str(tmp_path), {}, seen=16)
        log.bound('train', 32, number, 0.)
        log.close()
        assert read_scalars(tmp_path)['train']['bound'].tolist() == [[32, number]]


def test_a_run_of_thousands_of_sittings_goes_on(tmp_path):
    """A checkpoint knows nothing of the event files, so their number is of no concern to it."""
    for split in SPLITS:
        (tmp_path / split).mkdir()
        for number in range(1, 4001):
            (tmp_path / split / f'events.out.tfevents.{number:06d}').touch()
    log = Log(str(tmp_path), {}, seen=16)
    log.bound('validation', 32, 3., 2.)
    log.close()
    assert event_files(tmp_path)[-1].name == 'events.out.tfevents.004001'
    assert read_scalars(tmp_path)['validation']['bound'].tolist() == [[32, 5.]]


def test_what_is_no_event_file_is_left_alone(tmp_path):
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'events.out.tfevents.000007').symlink_to(tmp_path / 'mine')
    os.mkfifo(tmp_path / 'train' / 'events.out.tfevents.000008')
    log = Log(str(tmp_path), {})
    log.bound('train', 16, 3., 2.)
    log.close()
    assert (tmp_path / 'mine').read_text() == 'mine'
    assert (tmp_path / 'train' / 'events.out.tfevents.000009').exists()
    assert read_scalars(tmp_path)['train']['bound'].tolist() == [[16, 5.]]


def test_damaged_event_files_are_read_as_far_as_they_go(logdir, tmp_path):
    rng = np.random.default_rng(4)
    whole = event_files(logdir / 'whole')[0].read_bytes()
    (tmp_path / 'train').mkdir()
    path = tmp_path / 'train' / 'events.out.tfevents.000001'
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole, rng))
        read_scalars(tmp_path)
    for _ in range(MUTATIONS):
        content = mutate(whole[16:200], rng)  # with a right checksum
        length = len(content).to_bytes(8, 'little')
        path.write_bytes(b''.join(part + masked_crc32c(part).to_bytes(4, 'little') for part in (length, content)))
        read_scalars(tmp_path)
    points = set()
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        points.add(len(read_scalars(tmp_path)['train'].get('bound', ())))
    assert min(points) == 0 and max(points) >= 11 and len(points) > 3


def test_folder_without_events(tmp_path):
    assert read_scalars(tmp_path) == {'train': {}, 'validation': {}}
    assert [len(array) for array in read_kl_per_step(tmp_path)] == [0, 0]


def test_gradients_of_all_parameters_are_counted_once(tmp_path, monkeypatch):
    net = storage.build_net({'input_height': 28, 'input_width': 28, 'num_steps': T, 'num_recurrent_units': 8,
                             'latent_dim': 4, 'attention': True, 'read_size': 2, 'write_size': 5})
    net.initialize()
    with autograd.record():
        net(mx.nd.ones((2, 784)), mx.nd.ones((T, 2, 4)))[0].sum().backward()
    log, found = Log(str(tmp_path), {}), {}
    monkeypatch.setattr(log, '_add', lambda split, tag, seen, histo: found.update({tag: histo}))
    log.gradients(net, 16)
    log.close()
    sizes = {name: parameter.data().size for name, parameter in storage.parameters(net).items()}
    assert found.keys() == GRADIENTS
    assert sum(sum(histogram.bucket) for histogram in found.values()) == sum(sizes.values())
    assert sum(found['training_gradients/read'].bucket) == sum(n for name, n in sizes.items() if name[:5] == 'read.')


def test_a_log_that_writes_nothing_has_the_same_methods():
    def public(kind):
        return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith('_')}

    assert public(NoLog) == public(Log) and len(public(Log)) > 5
    for name in public(NoLog):
        assert getattr(NoLog(), name)(1, word=2) is None


# Full disks

@pytest.mark.parametrize('name', ['train', 'validation'])
def test_event_file_that_cannot_be_opened_is_named(tmp_path, name):
    """No more open files stand for no more files on the disk."""
    (tmp_path / name).write_text('mine')
    with pytest.raises(OSError) as error:
        Log(str(tmp_path), {})
    assert error.value.filename == str(tmp_path / name) and error.value.errno


@pytest.mark.parametrize('room', [0, 10, 100, 1000])
def test_full_disk_is_told_with_the_name_of_the_file(tmp_path, room):
    """A limit on the size of a file stands for the full disk. The program that meets it ends by itself."""
    program = ('import sys, system; from runs.log import Log\n'
               'try:\n'
               '    log = Log(sys.argv[1], {})\n'
               '    for seen in range(1000):\n'
               '        log.bound("train", seen, 3., 2.)\n'
               'except OSError as error:\n'
               '    print(error.filename)\n')
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f'{event_files(tmp_path)[0]}\n'
    whole = read_scalars(tmp_path)['train'].get('bound', ())
    assert len(whole) > 2 if room == 1000 else len(whole) == 0


def test_what_follows_a_full_disk_is_read(tmp_path):
    """The next sitting has a file of its own, after the one with the torn end."""
    for split in SPLITS:
        log = Log(str(tmp_path), {})
        log.bound(split, 16, 3., 2.)
        log.close()
        with open(event_files(tmp_path, split)[-1], 'ab') as file:
            file.write(b'\x40\0\0\0')
        log = Log(str(tmp_path), {}, seen=16)
        log.bound(split, 32, 4., 2.)
        log.close()
        assert read_scalars(tmp_path)[split]['bound'].tolist() == [[16, 5.], [32, 6.]]


# Learning curves as a picture

def test_curves_are_drawn(logdir):
    found = read_scalars(logdir / 'whole')
    panels = curves.figure(found).axes
    assert len(panels) == 3
    for axes, name in zip(panels, ('bound', 'reconstruction', 'kl')):
        assert axes.get_xlabel() == 'training samples' and axes.get_ylabel() == 'nats per image'
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        assert lines.keys() == set(SPLITS)
        for split in SPLITS:
            np.testing.assert_array_equal(lines[split], found[split][name])
    with Image.open(logdir / 'whole' / 'curves.png') as picture:
        assert picture.format == 'PNG' and min(picture.size) > 300
    assert 'matplotlib.pyplot' not in sys.modules


def test_view_leaves_out_the_start_and_nothing_else():
    """Not the end of a validation that rises, which has few points."""
    seen = np.arange(1, 1001)
    bound = np.stack([seen, 90 + 450. * (seen < 10) + np.sin(seen)], axis=1)
    axes = curves.figure({'train': {'bound': bound}, 'validation': {}}).axes[0]
    low, high = axes.get_ylim()
    assert low < bound[:, 1].min() and bound[10:, 1].max() < high < 100
    rising = np.array([[250, 100.], [500, 120], [750, 150], [1000, 190]])
    axes = curves.figure({'train': {'bound': bound}, 'validation': {'bound': rising}}).axes[0]
    assert axes.get_ylim()[0] < 89.1 and 190 < axes.get_ylim()[1] < 200


def test_no_curves_no_picture(tmp_path):
    assert curves.png(read_scalars(tmp_path)) is None


def test_stopped_run_has_its_curves(workplace, monkeypatch):
    step = train_mnist.Training.step

    def stopped(training, x):
        numbers = step(training, x)
        if training.seen == 48:
            os.kill(os.getpid(), 2)
        return numbers

    monkeypatch.setattr(train_mnist.Training, 'step', stopped)
    assert train_mnist.main([*ARGV, '-t', '1e6']) == 130
    assert (only_folder('results') / 'curves.png').exists()


def test_a_user_s_settings_of_matplotlib_do_not_count(logdir, monkeypatch):
    import matplotlib
    monkeypatch.setenv('PATH', '')
    monkeypatch.setitem(matplotlib.rcParams, 'text.usetex', True)  # there is no latex there
    assert curves.png(read_scalars(logdir / 'whole')) == (logdir / 'whole' / 'curves.png').read_bytes()


@pytest.mark.parametrize('own, reason', [
    ({'MPLBACKEND': 'nonsense'}, 'nonsense'), ({'MATPLOTLIBRC': '/proc/self/mem'}, 'Input/output error')], ids=str)
def test_matplotlib_that_cannot_draw_ends_no_training(workplace, own, reason):
    done = script('train_mnist.py', *ARGV, '-t', '32', env={**os.environ, **own})
    folder = only_folder('results')
    assert done.returncode == 0 and not (folder / 'curves.png').exists()
    note, = (line for line in done.stdout.splitlines() if line.startswith('Note: '))
    assert note.startswith(f'Note: {folder}/curves.png was not drawn: ') and reason in note


# A real TensorBoard

@pytest.fixture(scope='module', params=['true', 'false'])
def tensorboard(request, logdir):
    """Ask TensorBoard, with its fast reader and with the one in Python: a function from a path and its query."""
    with browser.tensorboard(logdir, 'resumed', '--load_fast', request.param) as (_, ask):
        browser.wait_for(lambda: 'result' in ask('plugin/text/tags').get('whole/validation', ()))
        yield ask


def tags(tensorboard, plugin, run='whole'):
    return {name.split('/')[1]: set(found) for name, found in tensorboard(f'plugin/{plugin}/tags').items()
            if name.startswith(f'{run}/')}


@pytest.mark.parametrize('run', ['whole', 'resumed'])
def test_tensorboard_shows_the_curves(tensorboard, logdir, run):
    """Those of train and validation under one name, so that they share a chart; also after three kills."""
    assert tags(tensorboard, 'scalars', run) == {'train': NATS | TRAINING, 'validation': NATS}
    for split, found in read_scalars(logdir / run).items():
        for tag in tags(tensorboard, 'scalars', run)[split]:
            points = np.array(tensorboard('plugin/scalars/scalars', run=f'{run}/{split}', tag=tag))[:, 1:]
            np.testing.assert_allclose(points, found[tag.split('/')[1]], rtol=1e-6, err_msg=tag)


@pytest.mark.parametrize('run', ['whole', 'resumed'])
def test_tensorboard_shows_the_pictures(tensorboard, run):
    assert tags(tensorboard, 'images', run) == {'validation': {'pictures/samples', 'pictures/reconstructions'}}
    for tag in ('pictures/samples', 'pictures/reconstructions'):
        pictures = tensorboard('plugin/images/images', run=f'{run}/validation', tag=tag, sample=0)
        assert [picture['step'] for picture in pictures] == [64, 128, 192]
        for picture in pictures:
            png = tensorboard('plugin/images/individualImage', **dict(urllib.parse.parse_qsl(picture['query'])))
            width, height = Image.open(io.BytesIO(png)).size
            assert width >= (T + 1) * 28 and height >= 6 * 28


def test_tensorboard_shows_the_gradients(tensorboard):
    assert tags(tensorboard, 'histograms')['train'] == GRADIENTS
    histograms = tensorboard('plugin/histograms/histograms', run='whole/train', tag='training_gradients/write')
    assert [step for _, step, _ in histograms] == [64, 128, 192]
    for _, _, bins in histograms:
        assert sum(number for _, _, number in bins) == pytest.approx((25 + 5) * (8 + 1))


def test_tensorboard_shows_the_kl_of_all_steps_in_one_histogram(tensorboard, logdir):
    assert tags(tensorboard, 'histograms')['validation'] == {'time_steps/kl'}
    histograms = tensorboard('plugin/histograms/histograms', run='whole/validation', tag='time_steps/kl')
    seen, kl_t = read_kl_per_step(logdir / 'whole')
    assert [step for _, step, _ in histograms] == list(seen)
    for (_, _, bins), expected in zip(histograms, kl_t):
        for t, kl in enumerate(expected, start=1):
            inside = sum(height for left, right, height in bins if t - 0.5 < (left + right) / 2 < t + 0.5)
            assert inside == pytest.approx(kl, abs=1e-4)


def test_tensorboard_shows_the_configuration_and_the_result(tensorboard, logdir):
    assert tags(tensorboard, 'text') == {'train': {'configuration'}, 'validation': {'result'}}
    config = storage.read_config(logdir / 'whole')
    for split, tag, expected in (('train', 'configuration', config['arguments']),
                                 ('validation', 'result', config['validation'])):
        text, = tensorboard('plugin/text/text', run=f'whole/{split}', tag=tag)
        for name, value in expected.items():
            assert re.search(rf'<td>{name}</td>\s*<td>{re.escape(str(value))}</td>', text['text']), name


def test_table_of_any_arguments(tmp_path):
    log = Log(str(tmp_path), {'data_dir': 'a|b \udcff', 'gpus': None})
    log.close()
    content, = (path.read_bytes() for path in event_files(tmp_path))
    assert rb'a\|b \udcff' in content
