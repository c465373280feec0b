"""Which ways the scanning mixers walk a grid, unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from ssmvision.kernels.routes import route_names

__all__ = ["resolve_routes"]

# Along every axis once, both ways: a sequence; the cross scan of VMamba; the same in a volume.
DEFAULTS: dict[int, tuple[str, ...]] = {
    1: ("forward", "backward"),
    2: ("row", "column", "row_reverse", "column_reverse"),
    3: ("dhw", "hwd", "wdh", "dhw_reverse", "hwd_reverse", "wdh_reverse"),
}


def resolve_routes(routes: Sequence[str] | None, spatial_dims: int) -> tuple[str, ...]:
    """The routes asked for, or along every axis in both directions.

    Args:
        routes: names out of `ssmvision.ops.route_names(spatial_dims)`, or None.
        spatial_dims: axes of the grid, 1 to 3.

    Raises:
        ValueError: no routes, one that such a grid does not have, or not 1 to 3 axes.
    """
    if spatial_dims not in DEFAULTS:
        raise ValueError(f"spatial_dims={spatial_dims}: a map has 1 to 3 axes")
    names = DEFAULTS[spatial_dims] if routes is None else (routes,) if isinstance(routes, str) else tuple(routes)
    known = route_names(spatial_dims)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"no route {unknown[0]!r} on a {spatial_dims}D grid" if unknown else "routes is empty"
        raise ValueError(f"{found}; choose from {', '.join(known)}")
    return names
