"""Pictures: where a box lies, what a frame shows, what a GIF file holds."""
import os

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pictures import render

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (100, 100, 100)
SHAPE = HEIGHT, WIDTH = 6, 10
SCALE = 4
LIGHT = 20 / 51  # the probability that is drawn as GREY


def window_around(left, top, side, sigma, image_shape=SHAPE):
    """A window whose box is a square of image pixels, by Eqns. 22-24 solved for the five numbers."""
    height, width = image_shape
    g_x, g_y = left + side / 2 + 0.5, top + side / 2 + 0.5
    return [2 * g_x / (width + 1) - 1, 2 * g_y / (height + 1) - 1, 2 * np.log(sigma),
            np.log(side / (max(height, width) - 1)), 0]


def draw(window, colour=RED, filter_size=3, **options):
    """The RGB pixels of a plain grey image with this window."""
    box, = render.window_boxes(np.array([window]), filter_size, SHAPE)
    return rgb(render.tile(np.full(HEIGHT * WIDTH, LIGHT), SHAPE, SCALE, [(colour, box)], **options))


def rgb(picture):
    return np.asarray(picture.convert('RGB'))


def outline(pixels, colour=RED):
    return (pixels == colour).all(axis=-1)


def pictures(num_frames=4, seed=0):
    canvases = np.random.default_rng(seed).uniform(size=(num_frames, HEIGHT * WIDTH))
    canvases[-1] = canvases[-2]  # only the box moves
    windows = np.array([window_around(t, 1, 3, sigma=0.4) for t in range(num_frames)])
    boxes = render.window_boxes(windows, 3, SHAPE)
    return [render.tile(canvas, SHAPE, SCALE, [(RED, box)]) for canvas, box in zip(canvases, boxes)]


def assert_gif_holds(path, images, milliseconds):
    with Image.open(path) as file:
        frames = [(rgb(frame), frame.info['duration'])
                  for frame in ImageSequence.Iterator(file)]
        assert file.n_frames == len(images) and file.size == images[0].size
        assert file.info['loop'] == 0 and file.disposal_method == 1  # a frame stays below the next one
    assert [time for _, time in frames] == milliseconds
    np.testing.assert_array_equal([pixels for pixels, _ in frames],
                                  [rgb(image) for image in images])


def test_probabilities():
    with np.errstate(over='raise', invalid='raise', divide='raise'):
        p = render.probabilities(np.array([[-1e4, -np.log(3), 0, np.log(3), 1e4], [-80, 0, 0, 0, 80]]))
    np.testing.assert_allclose(p[0], [0, 0.25, 0.5, 0.75, 1], rtol=1e-6)
    np.testing.assert_allclose(p[1, 0], 1.8048513878e-35, rtol=1e-5)
    assert p.shape == (2, 5) and p.dtype == np.float32


def test_box_by_hand():
    # A = 10, B = 6: g_X = 5.5 * 1.2 = 6.6, g_Y = 3.5 * 0.5 = 1.75, delta = 9 / 2 * 0.5 = 2.25 (N = 3).
    box, = render.window_boxes(np.array([[0.2, -0.5, np.log(9), np.log(0.5), 7]]), 3, SHAPE)
    np.testing.assert_allclose(box, [6.1 - 2.25, 1.25 - 2.25, 6.1 + 2.25, 1.25 + 2.25, 3], rtol=1e-6)


@pytest.mark.parametrize('filter_size', [2, 5])
@pytest.mark.parametrize('image_shape, box', [((28, 28), [0.5, 0.5, 27.5, 27.5]),
                                              ((6, 10), [0.5, -1.5, 9.5, 7.5]),
                                              ((10, 6), [-1.5, 0.5, 7.5, 9.5])])
def test_first_window_spans_the_longer_side(image_shape, box, filter_size):
    found, = render.window_boxes(np.zeros((1, 5)), filter_size, image_shape)
    np.testing.assert_allclose(found, [*box, 1], rtol=1e-6)


def test_box_of_one_filter_is_a_point():
    assert render.window_boxes(np.array([[0, 0, 0, 3, 0]]), 1, SHAPE).tolist() == [[5, 3, 5, 3, 1]]


@pytest.mark.parametrize('sign', [1, -1])
def test_box_clips_logarithms(sign):
    log_delta = 12 if sign > 0 else -20
    windows = np.array([[0, 0, 20 * sign, log_delta, 0], [0, 0, 1e30 * sign, 1e30 * sign, 0]])
    inside, outside = render.window_boxes(windows, 3, SHAPE)
    assert (inside == outside).all()
    np.testing.assert_allclose(inside[2:], [5 + 4.5 * np.exp(log_delta), 3 + 4.5 * np.exp(log_delta),
                                            np.exp(10 * sign)], rtol=1e-5)


def test_logits_that_are_not_finite_are_no_probabilities():
    assert np.isnan(render.probabilities([np.nan, np.inf, -np.inf])).all()


def test_tile_is_the_enlarged_image():
    values = np.linspace(0, 1, HEIGHT * WIDTH)
    picture = render.tile(values, SHAPE, SCALE)
    assert picture.size == (40, 24)
    pixels = rgb(picture)
    assert (np.abs(pixels[2::4, 2::4, :].reshape(-1, 3) - 255 * values[:, None]) <= 2.5).all()
    assert (pixels == pixels[2::4, 2::4].repeat(4, axis=0).repeat(4, axis=1)).all()


def test_values_out_of_range():
    values = np.zeros(HEIGHT * WIDTH)
    values[13], values[14], values[15], values[16] = 1, np.nan, 1.5, -0.5  # row 1, columns 3 to 6
    expected = np.zeros((24, 40, 3))
    expected[4:8, 12:16] = expected[4:8, 20:24] = 255
    assert (rgb(render.tile(values, SHAPE, SCALE)) == expected).all()


def test_light_picture_has_fewer_greys_and_thin_lines():
    values = np.linspace(0, 1, HEIGHT * WIDTH)
    pixels = rgb(render.tile(values, SHAPE, 1, light=True))[..., 0].reshape(-1)
    assert (np.abs(pixels - 255 * values) <= 7.5).all()
    assert set(pixels) == set(range(0, 256, 15))
    for light, width in ((False, 8), (True, 1)):
        assert outline(draw(window_around(-1, 2.5, 9, 3), light=light))[:, :24].sum(axis=0).tolist() == [width] * 24


@pytest.mark.parametrize('colour', [RED, GREEN])
def test_box_pixels(colour):
    # 16 x 16 screen pixels from (8, 4); a line of 0.5 * 4 = 2 pixels: 7 and 8, 23 and 24, 3 and 4, 19 and 20.
    expected = np.full((24, 40, 3), GREY)
    expected[3:21, 7:25] = colour
    expected[5:19, 9:23] = GREY
    assert (draw(window_around(2, 1, 4, sigma=0.5), colour) == expected).all()


def test_box_edge_is_rounded_to_the_nearest_screen_pixel():
    # Edges at 8.4, 4.4 and 24.4, 20.4; a line of 1 pixel centred there covers 8 (7.9 to 8.9), 4, 24 and 20.
    mask = outline(draw(window_around(2.1, 1.1, 4, sigma=0.25)))
    assert mask.any(axis=0).nonzero()[0].tolist() == list(range(8, 25))
    assert mask.any(axis=1).nonzero()[0].tolist() == list(range(4, 21))
    assert mask.sum() == 2 * 17 + 2 * 15


@pytest.mark.parametrize('sigma, line', [(1e-4, 1), (0.25, 1), (0.75, 3), (1, 4), (2, 8), (3, 8), (1e4, 8)])
def test_line_width_is_sigma_within_limits(sigma, line):
    mask = outline(draw(window_around(-1, 2.5, 9, sigma)))  # only the top and the right edge are inside
    assert mask[:, :24].sum(axis=0).tolist() == [line] * 24
    assert mask[23].sum() == line


def test_later_boxes_lie_on_top():
    box, = render.window_boxes(np.array([window_around(2, 1, 4, sigma=0.25)]), 3, SHAPE)
    pixels = rgb(render.tile(np.zeros(HEIGHT * WIDTH), SHAPE, SCALE, [(RED, box), (GREEN, box)]))
    assert outline(pixels, GREEN).any() and not outline(pixels).any()


def test_one_filter_is_a_dot():
    mask = outline(draw([0, 0, 0, 0, 0], filter_size=1))  # centre (20, 12), sigma = 4 screen pixels
    assert mask[10:14, 18:22].all() and mask.sum() == 16


@pytest.mark.parametrize('left, top', [(-20, 1), (20, 1), (2, -20), (2, 20), (1e30, -1e30), (-1e30, 1e30)])
def test_box_outside_draws_nothing(left, top):
    assert not outline(draw(window_around(left, top, 4, sigma=0.5))).any()


def test_box_around_the_image_draws_nothing():
    assert not outline(draw(window_around(-100, -100, 210, sigma=0.5))).any()
    assert not outline(draw([0, 0, 0, 1e38, 0])).any()


def test_box_partly_outside_is_clipped():
    mask = outline(draw(window_around(-2, -1, 4, sigma=0.5)))  # right edge at 8, bottom edge at 12
    expected = np.zeros((24, 40), bool)
    expected[:13, 7:9] = expected[11:13, :9] = True
    assert (mask == expected).all()


@pytest.mark.parametrize('position', range(5))
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_window_that_is_not_finite_is_skipped(position, value):
    window = window_around(2, 1, 4, sigma=0.5)
    assert outline(draw(window)).any()
    window[position] = value
    assert not outline(draw(window)).any()


def test_gif_holds_the_frames(tmp_path):
    path, images = tmp_path / 'a.gif', pictures()
    render.save_gif(path, images, duration=50, hold=700)
    assert_gif_holds(path, images, [50, 50, 50, 700])


@pytest.mark.parametrize('order', ['aabbbaa', 'aaa', 'a'])
def test_gif_keeps_equal_neighbours(tmp_path, order):
    images = dict(zip('ab', pictures()))
    images = [images[name] for name in order]
    render.save_gif(tmp_path / 'a.gif', images)
    assert_gif_holds(tmp_path / 'a.gif', images, [100] * (len(order) - 1) + [2000])


@pytest.mark.parametrize('shape, scale', [((1, 1), 1), ((3, 70), 1), ((28, 28), 5)])
def test_gif_of_any_size(tmp_path, shape, scale):
    canvases = np.random.default_rng(1).uniform(size=(3, shape[0] * shape[1]))
    images = [render.tile(canvas, shape, scale) for canvas in canvases]
    render.save_gif(tmp_path / 'a.gif', images)
    assert_gif_holds(tmp_path / 'a.gif', images, [100, 100, 2000])


def test_equal_input_gives_equal_bytes(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        render.save_gif(tmp_path / f'{name}.gif', pictures(seed=seed))
    a, b, c = (tmp_path.joinpath(f'{name}.gif').read_bytes() for name in 'abc')
    assert a == b != c


def save_gif(path):
    render.save_gif(path, pictures())


def save_png(path):
    render.save_png(path, pictures()[0])


@pytest.mark.parametrize('save', [save_gif, save_png])
@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_failure_leaves_the_old_file(tmp_path, monkeypatch, save, function):
    path = tmp_path / 'picture'
    path.write_bytes(b'old')

    def fail(*args):
        assert path.read_bytes() == b'old'
        assert len(os.listdir(tmp_path)) == 2  # the new content is in the same folder
        raise OSError('no space')

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match='no space'):
            save(path)
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['picture']
    save(path)
    assert path.read_bytes()[:3] in (b'GIF', b'\x89PN') and os.listdir(tmp_path) == ['picture']


def test_png(tmp_path):
    picture = render.tile(np.linspace(0, 1, 6), (2, 3), 1)
    render.save_png(tmp_path / 'a.png', picture)
    with Image.open(tmp_path / 'a.png') as file:
        assert file.format == 'PNG' and rgb(file)[..., 0].tolist() == [[0, 50, 100], [155, 205, 255]]


def test_table():
    tiles = [render.tile(np.full(8, grey / 255), (2, 4), 1) for grey in (0, 50, 255)]
    expected = np.full((6, 10), 95)
    for grey, top, left in ((0, 0, 0), (50, 0, 6), (255, 4, 0)):
        expected[top:top + 2, left:left + 4] = grey
    assert rgb(render.table(tiles, columns=2, gap=2))[..., 0].tolist() == expected.tolist()
    assert render.table(tiles[:1], columns=1, gap=2).size == (4, 2)


def test_headings_stand_above_their_columns():
    picture = render.table([render.tile(np.zeros(900), (30, 30), 1)] * 3, columns=3, gap=0)
    page = rgb(render.with_headings(picture, ['1', '', '64']))
    height = len(page) - 30
    assert not page[height:].any()
    heading = (page[:height] < 128).all(axis=-1)
    assert [heading[:, left:left + 30].any() for left in (0, 30, 60)] == [True, False, True]
    for left in (0, 60):
        columns = heading[:, left:left + 30].any(axis=0).nonzero()[0]
        assert abs(columns.mean() - 14.5) < 3
