"""Golden folders of VMamba's SS2D: cross scan and merge, grouped selective scan, and the layer in all its forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.routes import route_index
from ssmvision.kernels.selective_scan import selective_scan
from ssmvision.layers.ss2d import ROUTES, SS2D
from tests.parity_cases.common import Comparison, compare, filled_state, load_json, seeded_input

__all__ = ["matches", "run", "run_case"]

SCANS = ("cross", "one_way", "two_way")  # the official numbers of the scans
Case = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def matches(folder: Path) -> bool:
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    content = load_json(path)
    cases = content.get("cases", []) if isinstance(content, dict) else []
    functions = [case.get("function", "") for case in cases if isinstance(case, dict)]
    return bool(functions) and all(f.startswith("MzeroMiko/VMamba") and "VSSM" not in f for f in functions)


def run(folder: Path) -> Iterator[Comparison]:
    """All comparisons of every case, in the manifest's order."""
    for case in load_json(folder / "manifest.json")["cases"]:
        yield from run_case(folder, case)


def run_case(folder: Path, case: Case) -> Iterator[Comparison]:
    """Outputs and all stored gradients of one case."""
    with np.load(folder / case["npz"]) as stored:
        arrays = dict(stored)
    inputs = {k: _input(spec).requires_grad_() for k, spec in case["inputs"].items()}
    kind = case["name"].split("_")[0]
    tensors = {f"in.{k}": x for k, x in inputs.items()}
    if kind == "ss2d":
        layer = SS2D.from_official_kwargs(**case["config"])
        layer.load_state_dict(filled_state(load_json(folder / case["state"])))
        out = layer.eval()(inputs["x"])
        tensors |= dict(layer.named_parameters())
    elif kind == "sscan":
        out = _selective_scan(inputs, case["config"])
    elif kind.startswith("scan"):
        out = _cross_scan(inputs["x"], **case["config"])
    else:
        out = _cross_merge(inputs["y"], **case["config"])
    (out * seeded_input(case["gradients"]["seed"], list(out.shape))).sum().backward()
    yield from _compare(case, arrays, out, tensors)


def _input(spec: dict[str, Any]) -> Tensor:
    x = seeded_input(spec["seed"], spec["shape"])
    return -torch.exp(0.5 * x) if spec.get("map") == "negexp" else x


def _compare(case: Case, arrays: Arrays, out: Tensor, tensors: dict[str, Tensor]) -> Iterator[Comparison]:
    name, tolerance = case["name"], case["tolerance"]
    if set(case["outputs"]) != {k for k in arrays if not k.startswith("in.")}:
        raise ValueError(f"{name}: the manifest and the arrays name different outputs")
    for key in case["outputs"]:
        expected = arrays[key]
        largest = float(np.abs(expected).max())
        if key == "out":
            yield compare(name, key, out, expected, tolerance["atol"] + tolerance["rtol"] * largest)
        else:
            grad = tensors[key.removeprefix("grad.")].grad
            got = torch.full((), float("nan")) if grad is None else grad
            yield compare(name, key, got, expected, 1e-6 + 1e-3 * largest)


def _selective_scan(inputs: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    # Without softplus the folder's step sizes are stored with the sign changed.
    delta = inputs["delta"] if config["delta_softplus"] else -inputs["delta"]
    out = selective_scan(
        inputs["u"],
        delta,
        *(inputs[k] for k in "ABC"),
        inputs.get("D"),
        delta_bias=inputs.get("delta_bias"),
        delta_softplus=config["delta_softplus"],
    )
    assert isinstance(out, Tensor)
    return out


def _cross_scan(
    x: Tensor, in_channel_first: bool, out_channel_first: bool, scans: int = 0, one_by_one: bool = False
) -> Tensor:
    """The map(s) in the order of each route: (B, 4, C, L), or (B, L, 4, C)."""
    if not in_channel_first:
        x = x.permute(0, 3, 4, 1, 2) if one_by_one else x.permute(0, 3, 1, 2)
    grid = (x.shape[-2], x.shape[-1])
    flat = x.flatten(-2)
    orders = [torch.from_numpy(route_index(route, grid).copy()) for route in ROUTES[SCANS[scans]]]
    lines = [(flat[:, k] if one_by_one else flat)[..., order] for k, order in enumerate(orders)]
    out = torch.stack(lines, 1)
    return out if out_channel_first else out.permute(0, 3, 1, 2)


def _cross_merge(
    y: Tensor, in_channel_first: bool, out_channel_first: bool, scans: int = 0, one_by_one: bool = False
) -> Tensor:
    """Routes' sequences put back on the map: their sum (B, C, L) or (B, L, C), or each one apart.

    "in" and "out" are those of the scan that this undoes, so that `y` has the latter's layout.
    """
    grid = (y.shape[3], y.shape[4]) if out_channel_first else (y.shape[1], y.shape[2])
    flat = y.flatten(3) if out_channel_first else y.flatten(1, 2).permute(0, 2, 3, 1)
    maps = []
    for k, route in enumerate(ROUTES[SCANS[scans]]):
        order = torch.from_numpy(route_index(route, grid).copy())
        maps.append(torch.zeros_like(flat[:, k]).index_copy(-1, order, flat[:, k]))
    if one_by_one:
        out = torch.stack(maps, 1)
        return out if in_channel_first else out.permute(0, 3, 1, 2)
    total = torch.stack(maps, 1).sum(1)
    return total if in_channel_first else total.transpose(1, 2)
