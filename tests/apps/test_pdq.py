"""Hashes of pictures: PDQ against its definition, eight ways to lay it, borders, bad input."""

import numpy as np
import pytest

from cv_pipeline.apps.hash_lists import (
    parse_list,
)
from cv_pipeline.apps.pdq import as_hex, as_words, hashes_of, pdq_bits, pdq_quality, pdq_samples, trimmed
from cv_pipeline.core.likeness import perceptual_hash
from cv_pipeline.core.types import DataError
from tests.helpers.scenes import compressed, framed, scene

FLAT = np.full((120, 160, 3), 90, np.uint8)


def apart(a, b):
    return int(np.bitwise_count(a ^ b).sum())


def box_means(line, w):
    "The mean over PDQ's window, written as its definition has it."
    half = (w + 2) // 2
    spans = [(max(0, i - (w - half)), min(len(line), i + half)) for i in range(len(line))]
    return np.array([line[a:b].mean() for a, b in spans])


@pytest.mark.parametrize("size", [(64, 64), (200, 300), (129, 511)])
def test_the_samples_are_those_of_the_definition(size):
    import cv2

    image = scene(5, size)
    a = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)
    for _ in range(2):
        a = np.stack([box_means(row, (size[1] + 127) // 128) for row in a])
        a = np.stack([box_means(column, (size[0] + 127) // 128) for column in a.T]).T
    rows, columns = (((np.arange(64) + 0.5) * n / 64).astype(int) for n in size)
    assert np.abs(pdq_samples(image) - a[np.ix_(rows, columns)]).max() < 0.01


def test_half_of_the_bits_are_set():
    assert pdq_bits(pdq_samples(scene(2))).sum(axis=1).tolist() == [128] * 8


TURNS = [np.rot90, np.flipud, np.fliplr, lambda i: np.rot90(i, 2), lambda i: np.rot90(i, 3)]


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_picture_is_one_of_eight(turn):
    eight = as_words(pdq_bits(pdq_samples(scene(4))))
    one = as_words(pdq_bits(pdq_samples(np.ascontiguousarray(turn(scene(4)))), 1))[0]
    assert min(apart(e, one) for e in eight) <= 31


def test_the_text_of_a_hash_is_read_back():
    words = as_words(pdq_bits(pdq_samples(scene(6)), 1))
    listed = parse_list(f"{as_hex(words[0])}\ta\tb\tc")
    assert (listed.index["pdq"].words == words).all()


def test_the_short_hash_is_the_one_of_likeness():
    assert int(hashes_of(scene(3))[0].phash[0, 0]) == perceptual_hash(scene(3))


def test_large_pictures_are_scaled_down_first():
    import cv2

    large = cv2.resize(scene(3), (1600, 1200), interpolation=cv2.INTER_CUBIC)
    assert apart(hashes_of(large)[0].pdq[0], hashes_of(scene(3))[0].pdq[0]) <= 31


@pytest.mark.parametrize(
    "image", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3))]
)
def test_an_array_that_is_no_picture(image):
    with pytest.raises(DataError, match="uint8 BGR"):
        hashes_of(image)


def test_a_border_is_cut_off_and_a_picture_without_one_stays():
    assert abs(trimmed(compressed(framed(scene(1)), 50)).shape[0] - 240) <= 12
    assert trimmed(scene(1)).shape == scene(1).shape and trimmed(FLAT).shape == FLAT.shape


def test_the_quality_of_a_picture_is_capped():
    assert pdq_quality(np.random.default_rng(0).uniform(0, 255, (64, 64))) == 100
