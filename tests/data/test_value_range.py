"""Values become bytes by `data.range`: exact bytes of every kind of bound."""

from typing import Any

import numpy as np
import pytest

from dino_exp.data.value_range import pairs_of, to_bytes


def mapped(values: Any, *setting: Any) -> list[int]:
    """Return the bytes of values in one channel."""
    array = np.asarray(values)
    return to_bytes(array.reshape(1, -1, 1), pairs_of(list(setting))).ravel().tolist()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_numbers_are_rounded_and_clipped(kind: type) -> None:
    values: np.ndarray = np.array([0, 100, 101, 104, 2100, 4099, 4100, 60_000], kind)
    assert mapped(values, 100, 4100) == [0, 0, 0, 0, 128, 255, 255, 255]
    assert mapped(np.array([0, 1, 2, 3], kind), 0, 255 * 2) == [0, 0, 1, 2]  # halves go to the even number


def test_the_shift_of_earlier_versions_is_a_range() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert mapped(every, 127.5, 65407.5) == (every >> 8).tolist()
    difference = np.array(mapped(every, 0, 65535)) - (every >> 8)
    assert (difference.min(), difference.max()) == (-1, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float64])
@pytest.mark.parametrize("share", [0, 0.5, 50, 99.7, 100])
def test_percentiles_are_those_of_the_channel_of_the_image(share: float, kind: type) -> None:
    values: np.ndarray = np.random.default_rng(0).integers(0, 120, 501).astype(kind)
    high = float(np.percentile(values, share)) + 200
    one = to_bytes(values.reshape(3, -1, 1), ((f"p{share}", high),))
    other = to_bytes(values.reshape(3, -1, 1), ((high - 200, high),))
    assert np.array_equal(one, other)


def test_words_are_measured_per_channel_and_numbers_are_not() -> None:
    values = np.stack([np.arange(101), np.arange(101) * 10], axis=1).reshape(1, 101, 2).astype(np.uint16)
    found = to_bytes(values, pairs_of(["p0", "p100"]))
    assert np.array_equal(found[:, :, 0], found[:, :, 1])
    found = to_bytes(values, pairs_of([[0, 100], [0, 1000]]))
    assert np.array_equal(found[:, :, 0], found[:, :, 1])
    assert found[0, 50].tolist() == [128, 128]
    deviation = np.arange(101).std()
    assert mapped(np.arange(101), "mean-2sd", "mean + 2 sd") == mapped(
        np.arange(101), 50 - 2 * deviation, 50 + 2 * deviation
    )
    assert mapped([0, 10, 20], "mean", 20) == [0, 0, 255]


def test_a_constant_channel_becomes_zero_and_few_bright_pixels_stay_bright() -> None:
    assert mapped([7] * 9, "p0.5", "p99.5") == [0] * 9
    assert mapped([7.5] * 9, "mean-2sd", "mean+2sd") == [0] * 9
    assert mapped([7] * 900 + [60_000], "p0.5", "p99") == [0] * 900 + [255]


def test_a_channel_with_several_pairs_becomes_as_many() -> None:
    found = to_bytes(np.array([[[50]]], np.uint16), pairs_of([[0, 100], [0, 200], [50, 60]]))
    assert found.tolist() == [[[128, 64, 0]]]
