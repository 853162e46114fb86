"""Pictures: where a box lies, what a tile shows, what a GIF holds."""
import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pictures import render

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (100, 100, 100)
SHAPE = HEIGHT, WIDTH = 6, 10
SCALE = 4
PLAIN = np.full(SHAPE, 20 / 51)  # drawn as GREY


def window_around(left, top, side, sigma):
    """A window whose box is a square of image pixels: Eqns. 22-24 solved for the five numbers."""
    g_x, g_y = left + side / 2 + 0.5, top + side / 2 + 0.5
    return [2 * g_x / (WIDTH + 1) - 1, 2 * g_y / (HEIGHT + 1) - 1, 2 * np.log(sigma), np.log(side / (WIDTH - 1)), 0]


def draw(window, *colours, filter_size=3, light=False):
    """The RGB pixels of a plain grey image with this window, in red or in these colours."""
    box, = render.window_boxes(np.array([window]), filter_size, SHAPE)
    return rgb(render.tile(PLAIN, SCALE, [(colour, box) for colour in colours or [RED]], light))


def red(pixels):
    return (pixels == RED).all(axis=-1)


def rgb(picture):
    return np.asarray(picture.convert('RGB'))


# Boxes

def test_box_by_hand():
    # A = 10, B = 6: g_X = 5.5 * 1.2 = 6.6, g_Y = 3.5 * 0.5 = 1.75, delta = 9 / 2 * 0.5 = 2.25 (N = 3).
    boxes = render.window_boxes(np.array([[[0, 0, 0, 0, 0], [0.2, -0.5, np.log(9), np.log(0.5), 7]]]), 3, SHAPE)
    by_hand = [[0.5, -1.5, 9.5, 7.5, 1], [6.1 - 2.25, 1.25 - 2.25, 6.1 + 2.25, 1.25 + 2.25, 3]]
    np.testing.assert_allclose(boxes, [by_hand], rtol=1e-6)


@pytest.mark.parametrize('colours', [[RED], [GREEN], [RED, GREEN]])  # a later one lies on top
def test_box_pixels(colours):
    # 16 x 16 screen pixels from (8, 4); a line of 0.5 * 4 = 2 pixels: 7 and 8, 23 and 24, 3 and 4, 19 and 20.
    expected = np.full((24, 40, 3), GREY)
    expected[3:21, 7:25] = colours[-1]
    expected[5:19, 9:23] = GREY
    assert (draw(window_around(2, 1, 4, sigma=0.5), *colours) == expected).all()


@pytest.mark.parametrize('sigma, light, line', [(1e-4, False, 1), (0.75, False, 3), (2, False, 8), (1e4, False, 8),
                                                (2, True, 1)])
def test_line_is_as_wide_as_sigma_within_limits(sigma, light, line):
    mask = red(draw(window_around(-1, 2.5, 9, sigma), light=light))  # only the top and the right edge are inside
    assert mask[:, :24].sum(axis=0).tolist() == [line] * 24 and mask[23].sum() == line


def test_one_filter_is_a_dot():
    mask = red(draw([0, 0, 0, 3, 0], filter_size=1))  # centre (20, 12), sigma = 4 screen pixels
    assert mask[10:14, 18:22].all() and mask.sum() == 16


@pytest.mark.parametrize('window', [
    window_around(-20, 1, 4, 0.5), window_around(2, 20, 4, 0.5), window_around(1e30, -1e30, 4, 0.5),
    window_around(-100, -100, 210, 0.5), [0, 0, 0, 1e38, 0], [np.nan, 0, 0, 0, 0], [0, 0, 0, 0, np.inf]], ids=str)
def test_box_outside_or_not_finite_draws_nothing(window):
    assert not red(draw(window)).any()


def test_box_partly_outside_is_clipped():
    expected = np.zeros((24, 40), bool)
    expected[:13, 7:9] = expected[11:13, :9] = True  # right edge at 8, bottom edge at 12
    assert (red(draw(window_around(-2, -1, 4, sigma=0.5))) == expected).all()


# Tiles and tables

def test_tile_is_the_enlarged_image():
    values = np.linspace(0, 1, HEIGHT * WIDTH).reshape(SHAPE)
    pixels, light = (rgb(render.tile(values, SCALE, light=light)) for light in (False, True))
    assert (pixels == pixels[2::4, 2::4].repeat(4, axis=0).repeat(4, axis=1)).all() and pixels.shape == (24, 40, 3)
    assert (np.abs(pixels[2::4, 2::4, 0] - 255 * values) <= 2.5).all()
    assert (np.abs(light[2::4, 2::4, 0] - 255 * values) <= 7.5).all() and set(light.flat) == set(range(0, 256, 15))
    assert rgb(render.tile(np.array([[1, np.nan, 1.5, -0.5]]), 1))[0, :, 0].tolist() == [255, 0, 255, 0]


def test_table():
    tiles = [render.tile(np.full((2, 4), grey / 255), 1) for grey in (0, 50, 255)]
    expected = np.full((6, 10), 95)
    for grey, top, left in ((0, 0, 0), (50, 0, 6), (255, 4, 0)):
        expected[top:top + 2, left:left + 4] = grey
    with Image.open(io.BytesIO(render.png(render.table(tiles, columns=2, gap=2)))) as file:
        assert file.format == 'PNG' and rgb(file)[..., 0].tolist() == expected.tolist()


def test_headings_fill_their_columns_to_stay_readable_in_tensorboard():
    page = rgb(render.with_headings(render.tile(np.zeros((10, 300)), 1), ['1', '', 'input']))
    heading = (page[:-10] < 128).all(axis=-1)
    digit, nothing, word = (heading[:, left:left + 100].any(axis=0).nonzero()[0] for left in (0, 100, 200))
    assert not page[-10:].any() and len(nothing) == 0
    assert abs(digit.mean() - 49.5) < 5 and abs(word.mean() - 49.5) < 5 and 80 < np.ptp(word) < 98


# GIFs

def test_gif_that_would_be_too_large():
    with pytest.raises(OSError, match='65536x1 pixels'):
        render.gif([Image.new('P', (65536, 1))])


def test_gif_shows_every_picture_for_its_time():
    a, b, c = (render.tile(image, SCALE) for image in np.random.default_rng(0).uniform(size=(3, *SHAPE)))
    with Image.open(io.BytesIO(render.gif(iter([a, b, b, b, c, c])))) as file:
        shown = [(rgb(frame), frame.info['duration']) for frame in ImageSequence.Iterator(file)]
        assert file.info['loop'] == 0 and file.disposal_method == 1  # each frame stays below the next
    assert [time for _, time in shown] == [100, 300, 2100]  # equal neighbours are one frame
    assert all((pixels == rgb(picture)).all() for (pixels, _), picture in zip(shown, (a, b, c)))
