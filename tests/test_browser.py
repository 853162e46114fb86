"""The first view of TensorBoard on a run, in a real browser."""
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import browser
from commands import wait_for
from small_runs import train

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=f'{browser.missing()}')
CHARTS = [f'nats_per_image/{name}' for name in ('bound', 'kl', 'reconstruction')]
PICTURES = ['pictures/reconstructions', 'pictures/samples']
CLOSED = ['time_steps', 'training3cards', 'training_gradients6cards']


def pixels(page, selector):
    """What the window shows of each element, as PIL images."""
    boxes = page.run(f'return [...document.querySelectorAll("{selector}")].map(element => {{'
                     'const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })')
    window = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    return [window.crop(tuple(map(round, box))) for box in boxes]


def has_two_curves(picture):
    """Are there two colours? The rest of a chart is grey."""
    hue, saturation, _ = (np.asarray(band).astype(int) for band in picture.convert('HSV').split())
    hues = hue[saturation > 60]
    return len(hues) > 100 and np.quantile(hues, 0.95) - np.quantile(hues, 0.05) > 10


def test_first_view(workplace):
    shutil.move(train('--attention', '-s', '10'), 'results/run')
    with browser.tensorboard('results', 'run') as (url, _), browser.browser() as page:
        page.open(url)
        wait_for(lambda: sum(map(has_two_curves, pixels(page, 'line-chart .series-view'))) == len(CHARTS))
        wait_for(lambda: sum(width > 100 for width in page.run(
            'return [...document.images].map(image => image.naturalWidth)')) == len(PICTURES))
        text = re.sub(r'\s', '', page.run('return document.body.innerText'))
        places = [text.find(name) for name in [*CHARTS, *PICTURES, *CLOSED]]
        assert places == sorted(places) and places[0] >= 0
        for chart, following in zip(CHARTS, [*CHARTS[1:], 'pictures2cards']):
            card = text[text.index(chart):text.index(following)]
            assert 'run/train' in card and 'run/validation' in card
        assert 'time_steps/' not in text and 'training/' not in text  # their groups are closed
        errors = [message for level, message in page.console() if level not in ('DEBUG', 'INFO', 'WARNING')]
        assert errors == []
