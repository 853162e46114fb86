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


def draw(windows, colour=RED, filter_size=3, scale=SCALE):
    """The RGB pixels of all frames of a plain grey image with these windows."""
    canvases = np.full((len(windows) + 1, HEIGHT * WIDTH), LIGHT)
    images = render.frames(canvases, SHAPE, scale, [(colour, filter_size, np.array(windows))])
    return [np.asarray(image.convert('RGB')) for image in images]


def outline(pixels, colour=RED):
    return (pixels == colour).all(axis=-1)


def paintings(num_frames=4, seed=0):
    canvases = np.random.default_rng(seed).uniform(size=(num_frames, HEIGHT * WIDTH))
    canvases[-1] = canvases[-2]  # only the box moves
    windows = np.array([window_around(t, 1, 3, sigma=0.4) for t in range(1, num_frames)])
    return render.frames(canvases, SHAPE, SCALE, [(RED, 3, windows)])


def assert_gif_holds(path, images, milliseconds):
    with Image.open(path) as file:
        frames = [(np.asarray(frame.convert('RGB')), frame.info['duration'])
                  for frame in ImageSequence.Iterator(file)]
        assert file.n_frames == len(images) and file.size == images[0].size
        assert file.info['loop'] == 0 and file.disposal_method == 1  # a frame stays below the next one
    assert [time for _, time in frames] == milliseconds
    np.testing.assert_array_equal([pixels for pixels, _ in frames],
                                  [np.asarray(image.convert('RGB')) for image in images])


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


def test_frames_are_the_enlarged_canvases():
    canvases = np.zeros((3, HEIGHT * WIDTH))
    canvases[1] = np.linspace(0, 1, HEIGHT * WIDTH)
    canvases[2, 13], canvases[2, 14], canvases[2, 15] = 1, np.nan, 1.5  # row 1, columns 3 to 5
    images = render.frames(canvases, SHAPE, SCALE)
    assert [image.size for image in images] == [(40, 24)] * 3
    pixels = np.array([np.asarray(image.convert('RGB')) for image in images])
    assert not pixels[0].any()
    assert (np.abs(pixels[1, 2::4, 2::4, :].reshape(-1, 3) - 255 * canvases[1][:, None]) <= 2.5).all()
    assert (pixels[1] == pixels[1, 2::4, 2::4].repeat(4, axis=0).repeat(4, axis=1)).all()
    expected = np.zeros((24, 40, 3))
    expected[4:8, 12:16] = expected[4:8, 20:24] = 255
    assert (pixels[2] == expected).all()


@pytest.mark.parametrize('colour', [RED, GREEN])
def test_box_pixels(colour):
    # 16 x 16 screen pixels from (8, 4); a line of 0.5 * 4 = 2 pixels: 7 and 8, 23 and 24, 3 and 4, 19 and 20.
    first, second = draw([window_around(2, 1, 4, sigma=0.5)], colour)
    expected = np.full((24, 40, 3), GREY)
    assert (first == expected).all()
    expected[3:21, 7:25] = colour
    expected[5:19, 9:23] = GREY
    assert (second == expected).all()


def test_box_edge_is_rounded_to_the_nearest_screen_pixel():
    # Edges at 8.4, 4.4 and 24.4, 20.4; a line of 1 pixel centred there covers 8 (7.9 to 8.9), 4, 24 and 20.
    mask = outline(draw([window_around(2.1, 1.1, 4, sigma=0.25)])[1])
    assert mask.any(axis=0).nonzero()[0].tolist() == list(range(8, 25))
    assert mask.any(axis=1).nonzero()[0].tolist() == list(range(4, 21))
    assert mask.sum() == 2 * 17 + 2 * 15


@pytest.mark.parametrize('sigma, line', [(1e-4, 1), (0.25, 1), (0.75, 3), (1, 4), (2, 8), (3, 8), (1e4, 8)])
def test_line_width_is_sigma_within_limits(sigma, line):
    mask = outline(draw([window_around(-1, 2.5, 9, sigma)])[1])  # only the top and the right edge are inside
    assert mask[:, :24].sum(axis=0).tolist() == [line] * 24
    assert mask[23].sum() == line


def test_every_frame_has_its_own_window_and_the_first_has_none():
    frames = draw([window_around(left, 1, 2, sigma=0.25) for left in (1, 4, 7)])
    assert [outline(frame).any(axis=0).argmax() for frame in frames] == [0, 4, 16, 28]
    assert not outline(frames[0]).any()


def test_later_boxes_lie_on_top():
    windows = np.array([window_around(2, 1, 4, sigma=0.25)])
    boxes = [(RED, 3, windows), (GREEN, 3, windows)]
    pixels = np.asarray(render.frames(np.zeros((2, HEIGHT * WIDTH)), SHAPE, SCALE, boxes)[1].convert('RGB'))
    assert outline(pixels, GREEN).any() and not outline(pixels).any()


def test_one_filter_is_a_dot():
    mask = outline(draw([[0, 0, 0, 0, 0]], filter_size=1)[1])  # centre (20, 12), sigma = 4 screen pixels
    assert mask[10:14, 18:22].all() and mask.sum() == 16


@pytest.mark.parametrize('left, top', [(-20, 1), (20, 1), (2, -20), (2, 20), (1e30, -1e30), (-1e300, 1e300)])
def test_box_outside_draws_nothing(left, top):
    assert not outline(draw([window_around(left, top, 4, sigma=0.5)])[1]).any()


def test_box_around_the_image_draws_nothing():
    assert not outline(draw([window_around(-100, -100, 210, sigma=0.5)])[1]).any()
    assert not outline(draw([[0, 0, 0, 1e38, 0]])[1]).any()


def test_box_partly_outside_is_clipped():
    mask = outline(draw([window_around(-2, -1, 4, sigma=0.5)])[1])  # right edge at 8, bottom edge at 12
    expected = np.zeros((24, 40), bool)
    expected[:13, 7:9] = expected[11:13, :9] = True
    assert (mask == expected).all()


@pytest.mark.parametrize('position', range(5))
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_window_that_is_not_finite_is_skipped(position, value):
    window = window_around(2, 1, 4, sigma=0.5)
    assert outline(draw([window])[1]).any()
    window[position] = value
    assert not outline(draw([window])[1]).any()


def test_gif_holds_the_frames(tmp_path):
    path, images = tmp_path / 'a.gif', paintings()
    render.save_gif(path, images, duration=50, hold=700)
    assert_gif_holds(path, images, [50, 50, 50, 700])


@pytest.mark.parametrize('order', ['aabbbaa', 'aaa', 'a'])
def test_gif_keeps_equal_neighbours(tmp_path, order):
    images = dict(zip('ab', paintings()))
    images = [images[name] for name in order]
    render.save_gif(tmp_path / 'a.gif', images)
    assert_gif_holds(tmp_path / 'a.gif', images, [100] * (len(order) - 1) + [2000])


@pytest.mark.parametrize('shape, scale', [((1, 1), 1), ((3, 70), 1), ((28, 28), 5)])
def test_gif_of_any_size(tmp_path, shape, scale):
    canvases = np.random.default_rng(1).uniform(size=(3, shape[0] * shape[1]))
    images = render.frames(canvases, shape, scale)
    render.save_gif(tmp_path / 'a.gif', images)
    assert_gif_holds(tmp_path / 'a.gif', images, [100, 100, 2000])


def test_equal_input_gives_equal_bytes(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        render.save_gif(tmp_path / f'{name}.gif', paintings(seed=seed))
    a, b, c = (tmp_path.joinpath(f'{name}.gif').read_bytes() for name in 'abc')
    assert a == b != c


def save_gif(path):
    render.save_gif(path, paintings())


def save_png(path):
    render.save_png(path, render.enlarge(np.zeros((2, 3), np.uint8), 2))


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


def test_png_and_enlarge(tmp_path):
    grey = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
    render.save_png(tmp_path / 'a.png', render.enlarge(grey, 2))
    with Image.open(tmp_path / 'a.png') as file:
        assert file.format == 'PNG' and file.mode == 'L'
        assert np.asarray(file)[::2].tolist() == [[0, 0, 50, 50, 100, 100], [150, 150, 200, 200, 255, 255]]
        assert np.asarray(file)[1::2].tolist() == [[0, 0, 50, 50, 100, 100], [150, 150, 200, 200, 255, 255]]


def test_sheet():
    rows = np.zeros((2, 3, 2, 4))  # 2 rows of 3 images, each 2 high and 4 wide
    rows[0, 1], rows[1, 2], rows[1, 0, 1, 3] = 0.2, 1, 0.6
    expected = np.full((6, 16), 96)
    for i, top in enumerate((0, 4)):
        for j, left in enumerate((0, 6, 12)):
            expected[top:top + 2, left:left + 4] = {(0, 1): 51, (1, 2): 255}.get((i, j), 0)
    expected[5, 3] = 153
    grey = render.sheet(rows)
    assert grey.dtype == np.uint8 and grey.tolist() == expected.tolist()
    assert render.sheet(rows[:1, :1]).shape == (2, 4)
