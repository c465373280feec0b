"""Windows: every stored value survives the way to 0..1 and back."""

from __future__ import annotations

import numpy as np
import pytest

from ssmvision.recipes.fusion.postprocess import official_uint8
from ssmvision.recipes.fusion.windows import Window


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint8, 0, 255), (np.uint16, 0, 4095), (np.uint16, 0, 65535), (np.int16, -1024, 3071), (np.int32, -7, 100000)],
)
def test_integers_come_back_exactly(dtype, low, high):
    values = np.arange(low, high + 1).astype(dtype)
    unit = Window(low, high).to_unit(values)
    assert unit.dtype == np.float32
    assert (unit[0], unit[-1]) == (0, 1)
    back = Window(low, high).from_unit(unit, np.dtype(dtype))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


def test_values_outside_are_cut_and_integers_stay_in_their_type():
    window = Window(-10, 300)
    np.testing.assert_array_equal(window.to_unit(np.array([-99, -10, 300, 999])), [0, 0, 1, 1])
    np.testing.assert_array_equal(window.from_unit(np.array([0, 1], np.float32), np.dtype(np.uint8)), [0, 255])


def test_truncation_is_the_published_one():
    unit = np.linspace(0, 1, 4001, dtype=np.float32)
    stored = Window(0, 255).from_unit(unit, np.dtype(np.uint8), truncate=True)
    np.testing.assert_array_equal(stored, official_uint8(unit))


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (float("nan"), 1)])
def test_empty_windows_are_refused(limits):
    with pytest.raises(ValueError, match="is empty"):
        Window(*limits)
