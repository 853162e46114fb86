"""What TensorBoard shows of a run, and what a stopped and resumed run leaves of it."""
import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from runs import storage
from test_resume import Killed, events, only_folder, resume, stop_after, train
from test_scripts import T, attention_run, config_of  # noqa: F401  (attention_run is a fixture)


def test_curves_have_no_fold(workplace, monkeypatch):
    argv = ['-t', '192', '--checkpoint_freq', '48']
    whole = events(train(*argv, logdir='whole'))
    for seen in (32, 96, 176):
        with monkeypatch.context() as patch:
            stop_after(patch, seen)
            with pytest.raises(Killed):
                train(*argv) if seen == 32 else resume(only_folder('results'))
    assert resume(only_folder('results')) == 0
    resumed = events(only_folder('results'))
    assert [event for event in resumed if event[0] != 'configuration'] == \
        [event for event in whole if event[0] != 'configuration']


def test_links_in_a_run_folder_are_left_alone(workplace):
    folder = train('-t', '32')
    (workplace / 'mine').write_text('mine')
    (folder / 'events.out.tfevents.1.mine').symlink_to(workplace / 'mine')
    assert resume(folder, '-t', '64') == 0
    assert (workplace / 'mine').read_text() == 'mine'


# A real TensorBoard

@pytest.fixture(scope='module')
def tensorboard(attention_run, tmp_path_factory):  # noqa: F811
    """Ask a real TensorBoard on the run: a function from a path and its query to the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    log = tmp_path_factory.mktemp('tensorboard') / 'log'
    deadline = time.monotonic() + 40

    def ask(path, **query):
        url = f'{address}data/{path}?{urllib.parse.urlencode(query)}'
        with opener.open(url, timeout=10) as response:
            content = response.read()
        return content if response.headers.get_content_type().startswith('image/') else json.loads(content)

    def wait_for(function):
        while not function():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.1)
        return function()

    def loaded():
        return 'bound/validation_whole' in ask('plugin/scalars/tags').get(attention_run.folder.name, {})

    with open(log, 'w') as file, subprocess.Popen(
            [sys.executable, '-m', 'tensorboard.main', '--logdir', str(attention_run.folder.parent), '--port', '0',
             '--host', '127.0.0.1', '--load_fast=false'], stdout=file, stderr=file) as process:
        try:
            address = wait_for(lambda: re.search(r'http://127\.0\.0\.1:\d+/', log.read_text())).group()
            wait_for(loaded)
            yield ask
        finally:
            process.kill()


def tags(tensorboard, run, plugin):
    return set(tensorboard(f'plugin/{plugin}/tags')[run.folder.name])


def test_tensorboard_shows_the_curves(tensorboard, attention_run):  # noqa: F811
    expected = {f'{name}/{split}' for name in ('bound', 'reconstruction', 'kl')
                for split in ('train', 'validation', 'validation_whole')}
    expected |= {f'kl_per_step/{t:03d}' for t in range(1, T + 1)}
    expected |= {f'optimization/{name}' for name in ('gradient_norm', 'learning_rate', 'samples_per_second')}
    assert tags(tensorboard, attention_run, 'scalars') == expected
    curves = {tag: tensorboard('plugin/scalars/scalars', run=attention_run.folder.name, tag=tag) for tag in expected}
    for tag, points in curves.items():
        steps = [112] if tag.endswith('_whole') else [32, 64, 96, 112]
        assert [step for _, step, _ in points] == steps, tag
        assert np.isfinite(points).all(), tag
    value = {tag: np.array(points)[:, 2] for tag, points in curves.items()}
    for split in ('train', 'validation', 'validation_whole'):
        np.testing.assert_allclose(value[f'bound/{split}'], value[f'reconstruction/{split}'] + value[f'kl/{split}'],
                                   rtol=1e-5)
    np.testing.assert_allclose(sum(value[f'kl_per_step/{t:03d}'] for t in range(1, T + 1)), value['kl/validation'],
                               rtol=1e-5)
    assert value['bound/validation_whole'][0] == pytest.approx(
        config_of(attention_run.folder)['validation']['bound'], rel=1e-6)
    assert value['bound/validation_whole'][0] == pytest.approx(value['bound/validation'].min(), rel=1e-6)


def test_tensorboard_shows_the_pictures(tensorboard, attention_run):  # noqa: F811
    sizes = {'samples/by_time_step': (4 * 28 + 3 * 2, 16 * 28 + 15 * 2),
             'reconstructions/below_their_originals': (16 * 28 + 15 * 2, 2 * 28 + 2)}
    assert tags(tensorboard, attention_run, 'images') == sizes.keys()
    for tag, size in sizes.items():
        pictures = tensorboard('plugin/images/images', run=attention_run.folder.name, tag=tag, sample=0)
        assert [picture['step'] for picture in pictures] == [32, 64, 96, 112]
        for picture in pictures:
            png = tensorboard('plugin/images/individualImage', **dict(urllib.parse.parse_qsl(picture['query'])))
            assert Image.open(io.BytesIO(png)).size == size


def test_tensorboard_shows_the_gradients(tensorboard, attention_run):  # noqa: F811
    net = storage.build_net(config_of(attention_run.folder)['arguments'])
    found = tags(tensorboard, attention_run, 'histograms')
    assert found == {'kl_per_step', *(f'gradient/{name}' for name in net._collect_params_with_prefix())}
    histograms = tensorboard('plugin/histograms/histograms', run=attention_run.folder.name,
                             tag='gradient/write.patch.weight')
    assert [step for _, step, _ in histograms] == [32, 64, 96, 112]
    assert sum(number for _, _, number in histograms[-1][2]) == pytest.approx(25 * 8)


def test_tensorboard_shows_the_kl_of_all_steps_in_one_histogram(tensorboard, attention_run):  # noqa: F811
    run = attention_run.folder.name
    histograms = tensorboard('plugin/histograms/histograms', run=run, tag='kl_per_step')
    assert [step for _, step, _ in histograms] == [32, 64, 96, 112]
    for t in range(1, T + 1):
        for (_, _, bins), (_, _, kl) in zip(histograms, tensorboard('plugin/scalars/scalars', run=run,
                                                                    tag=f'kl_per_step/{t:03d}')):
            inside = sum(height for left, right, height in bins if t - 0.5 < (left + right) / 2 < t + 0.5)
            assert inside == pytest.approx(kl, abs=1e-4)


def test_tensorboard_shows_the_configuration(tensorboard, attention_run):  # noqa: F811
    assert tags(tensorboard, attention_run, 'text') == {'configuration'}
    text, = tensorboard('plugin/text/text', run=attention_run.folder.name, tag='configuration')
    for name, value in config_of(attention_run.folder)['arguments'].items():
        assert re.search(rf'<td>{name}</td>\s*<td>{value}</td>', text['text']), name
