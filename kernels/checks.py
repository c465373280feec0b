"""Checks of arguments that every operator's public function makes in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ssmvision.kernels.routes import ROUTES

__all__ = ["check_merge", "check_routes", "check_shapes", "check_tensors"]


def check_tensors(tensors: Mapping[str, Tensor | None], like: str) -> None:
    """Refuses tensors that are not real floating-point ones, or lie on another device than the one named `like`.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a tensor lies elsewhere.
    """
    first = tensors[like]
    assert first is not None
    for name, t in tensors.items():
        if t is not None and not t.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
        if t is not None and t.device != first.device:
            raise ValueError(f"{name} is on {t.device} but {like} is on {first.device}; move it there")


def check_merge(merge: str) -> None:
    """Refuses a way to merge routes that there is not.

    Raises:
        ValueError: it is not "sum", "mean" or "none".
    """
    if merge not in ("sum", "mean", "none"):
        raise ValueError(f"merge must be 'sum', 'mean' or 'none', got {merge!r}")


def check_routes(routes: Sequence[str], grid: Sequence[int]) -> None:
    """Refuses routes that there are not on a grid.

    Raises:
        ValueError: a name is unknown, or a route for grids of other axes.
    """
    for route in routes:
        if route not in ROUTES:
            raise ValueError(f"unknown route {route!r}; choose from {', '.join(ROUTES)}")
        if ROUTES[route][0] not in (0, len(grid)):
            raise ValueError(f"route {route!r} needs a {ROUTES[route][0]}D grid, got {tuple(grid)}")


def check_shapes(
    tensors: Mapping[str, Tensor | None], wanted: Mapping[str, Sequence[tuple[int, ...]]], routes: int
) -> None:
    """Refuses tensors that have none of the shapes they may have with so many routes.

    Raises:
        ValueError: names the tensor, its shape and those it may have.
    """
    for name, shapes in wanted.items():
        t = tensors[name]
        if t is not None and tuple(t.shape) not in shapes:
            expected = " or ".join(str(tuple(s)) for s in shapes)
            raise ValueError(f"{name} must have shape {expected} for {routes} routes, got {tuple(t.shape)}")
