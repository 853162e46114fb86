"""Randomness, binarization, and the training stream."""
import numpy as np
import pytest

from dataset import stream
from dataset.images import sha256
from dataset.noise import generator


def test_every_seed_purpose_and_position_has_its_own_numbers():
    arguments = [(0, 'noise', 0), (1, 'noise', 0), (0, 'noise', 1), (0, 'order', 0), (2 ** 32, 'noise', 0),
                 (0, 'noise', 2 ** 32), (1, 'noise', 1), (2 ** 32 - 1, 'noise', 10 ** 12)]
    assert len({tuple(generator(*each).random(4)) for each in arguments}) == len(arguments)


def test_bernoulli_with_the_intensity_as_mean():
    n = 4000
    intensities = np.tile(np.arange(256, dtype=np.uint8), (n, 1))
    pixels = stream.binarize(intensities, 'dynamic', np.random.default_rng(0))
    assert (pixels.dtype, pixels.shape, set(np.unique(pixels))) == (np.float32, intensities.shape, {0, 1})
    p = np.arange(256) / 255
    assert np.all(abs(pixels.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / n))  # exact for p = 0 and p = 1
    assert abs((pixels.mean(axis=0) - p).mean()) < 5 * np.sqrt((p * (1 - p)).mean() / n / 256)


def test_evaluation_images_are_drawn_once_each_with_its_own_numbers():
    intensities = np.random.default_rng(0).integers(256, size=(2500, 20), dtype=np.uint8)
    first = stream.evaluation_images(intensities, 'dynamic')
    for number, binarization in ((2500, 'dynamic'), (2500, 'static'), (7, 'static')):
        found = stream.evaluation_images(intensities[:number], binarization)
        np.testing.assert_array_equal(found, first[:number])
    np.testing.assert_array_equal(stream.evaluation_images(intensities, 'threshold'), intensities >= 128)
    grey = np.full((2500, 64), 128, dtype=np.uint8)
    assert len(np.unique(stream.evaluation_images(grey, 'static'), axis=0)) == 2500


def test_pixels_are_what_they_were():
    """A run is resumed, and compared with others, on the same pixels as ever."""
    intensities = np.random.default_rng(0).integers(256, size=(50, 30), dtype=np.uint8)
    for binarization, trained, evaluated in (('dynamic', '1a95f3ec2bb8e702', 'ef57fe37af3fd199'),
                                             ('static', '76d60716d0aa3521', 'ef57fe37af3fd199'),
                                             ('threshold', '099ef4145320ebcd', '85aff51569cc7ef1')):
        batch = stream.TrainingStream(intensities, binarization, seed=7).batch(1234567, 77)
        assert sha256(batch)[:16] == trained
        assert sha256(stream.evaluation_images(intensities, binarization))[:16] == evaluated


# Training stream

BITS = 2 ** np.arange(6)
CODED = ((np.arange(50)[:, None] & BITS > 0) * 255).astype(np.uint8)  # 50 images that tell their number


def numbers_of(pixels):
    return (pixels @ BITS).astype(int).tolist()


@pytest.mark.parametrize('binarization', stream.BINARIZATIONS)
def test_every_epoch_is_another_permutation(binarization):
    batches = stream.TrainingStream(CODED, binarization, seed=1)
    epochs = [numbers_of(batches.batch(50 * epoch, 50)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(50)) not in epochs
    others = [numbers_of(stream.TrainingStream(CODED, binarization, seed=seed).batch(0, 50)) for seed in (2, 3)]
    assert epochs[0] not in others
    assert others[0] != others[1]


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(256, size=(10, 30), dtype=np.uint8)


@pytest.mark.parametrize('binarization', stream.BINARIZATIONS)
def test_random_access_equals_sequential_access(grey, binarization):
    whole = stream.TrainingStream(grey, binarization, seed=4).batch(0, 57)  # straddles five borders
    assert whole.shape == (57, 30)
    assert whole.dtype == np.float32
    assert set(np.unique(whole)) == {0, 1}
    batches = stream.TrainingStream(grey, binarization, seed=4)
    for position, batch_size in ((40, 17), (8, 4), (0, 1), (19, 25), (33, 7), (33, 7)):
        batch = batches.batch(position, batch_size)
        np.testing.assert_array_equal(batch, whole[position:position + batch_size])


def test_dynamic_draws_anew_and_depends_on_the_seed():
    one = np.full((1, 200), 128, dtype=np.uint8)
    epochs = stream.TrainingStream(one, 'dynamic', seed=0).batch(0, 50)
    assert len(np.unique(epochs, axis=0)) == 50
    assert abs(epochs.mean() - 128 / 255) < 5 * 0.5 / epochs.size ** 0.5
    assert np.any(epochs != stream.TrainingStream(one, 'dynamic', seed=1).batch(0, 50))


def test_static_is_drawn_once_for_all_seeds(grey):
    def images(seed, epoch):
        return sorted(map(tuple, stream.TrainingStream(grey, 'static', seed).batch(10 * epoch, 10)))
    assert images(0, 0) == images(0, 1) == images(7, 3)
    assert images(0, 0) == sorted(map(tuple, stream.evaluation_images(grey, 'static')))
