"""Every route of the table: a set of distinct positions, with a true inverse, and the order its name promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmvision.kernels.routes import ROUTES, inverse_route, route_index, route_names

SKIP = ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd")


@settings(deadline=None, max_examples=25)
@given(size=st.lists(st.integers(1, 6), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ROUTES)
def test_route_and_inverse(name: str, size: list[int]) -> None:
    dims = ROUTES[name][0]
    grid = tuple((size * 3)[: dims or len(size)])
    index, inverse = route_index(name, grid), inverse_route(name, grid)
    assert len(np.unique(index)) == len(index)
    np.testing.assert_array_equal(inverse[index], np.arange(len(index)))
    assert (inverse >= 0).sum() == len(index)
    if not name.startswith("skip"):
        assert len(index) == np.prod(grid)


@pytest.mark.parametrize("name", [n for n in ROUTES if n.endswith("_reverse")])
def test_reverse_is_reversed(name: str) -> None:
    grid = (3, 4, 5)[: ROUTES[name][0]]
    np.testing.assert_array_equal(route_index(name, grid), route_index(name.removesuffix("_reverse"), grid)[::-1])


def test_orders() -> None:
    assert route_index("backward", (4,)).tolist() == [3, 2, 1, 0]
    assert route_index("column", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    # 3D names list the axes from slowest to fastest; inter-slice runs through the slices (first axis) first.
    assert route_index("dwh", (1, 2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert route_index("inter_slice", (2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]


def test_segmamba_inter_slice_is_split_and_stack() -> None:
    """SegMamba cuts the flat sequence into one piece a slice and interleaves the pieces."""
    grid = (4, 3, 5)
    pieces = np.split(np.arange(60), grid[0])
    np.testing.assert_array_equal(route_index("inter_slice", grid), np.stack(pieces, axis=-1).ravel())


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1), (1, 4)])
def test_skip_grids_tile_the_map(grid: tuple[int, int]) -> None:
    visited = np.concatenate([route_index(name, grid) for name in SKIP])
    np.testing.assert_array_equal(np.sort(visited), np.arange(np.prod(grid)))


def test_skip_orders() -> None:
    assert route_index("skip_even_even", (4, 4)).tolist() == [0, 2, 8, 10]
    assert route_index("skip_odd_even", (4, 4)).tolist() == [4, 12, 6, 14]


def test_names_by_dimension_and_errors() -> None:
    assert set(route_names(1)) == {"forward", "backward"}
    assert "row" in route_names(2)
    assert "row" not in route_names(3)
    with pytest.raises(ValueError, match="unknown route 'spiral'"):
        route_index("spiral", (3,))
    with pytest.raises(ValueError, match="'row' needs a 2D grid"):
        route_index("row", (3,))


def test_a_route_of_one_step_has_no_negative_stride() -> None:
    """Torch refuses such arrays; numpy counts a reversed single element as contiguous and leaves its stride."""
    for name, grid in (("backward", (1,)), ("skip_even_even_reverse", (2, 2)), ("whd_reverse", (1, 1, 1))):
        assert min(route_index(name, grid).strides) > 0
