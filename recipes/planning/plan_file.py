"""Writes a plan as JSON that people can read and edit, and reads it back with every value checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.planning.plan import Configuration, Plan
from ssmvision.recipes.planning.typed_json import from_json
from ssmvision.recipes.segmentation.datalist import read_json

__all__ = ["FORMAT", "VERSION", "plan_text", "read_plan"]

FORMAT = "ssmvision plan"
VERSION = 1
WIDTH = 110
Rule = tuple[str, Any, bool, str]


def plan_text(plan: Plan) -> str:
    """The plan as JSON, short lists on one line."""
    return _format({"format": FORMAT, "version": VERSION, **asdict(plan)}, "") + "\n"


def _format(value: Any, margin: str) -> str:
    inner = margin + "  "
    line = json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and (len(line) > WIDTH or any(isinstance(v, dict) for v in value.values())):
        rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_format(v, inner)}" for key, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    if isinstance(value, (list, tuple)) and len(line) > WIDTH:
        return "[\n" + ",\n".join(inner + _format(v, inner) for v in value) + f"\n{margin}]"
    return line


def read_plan(path: Path) -> Plan:
    """Reads a plan file.

    Raises:
        UserError: not a plan, of another version, or with values that are missing, mistyped or contradict each other;
            names the file, the key, the value and the fix.
    """
    content = read_json(path, "make one with `ssmvision plan DATA`")
    found = content.pop("format", None)
    if found != FORMAT:
        raise UserError(f"{path}: format is {found!r}, not {FORMAT!r}; make a plan with `ssmvision plan DATA`")
    version = content.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path}: version is {version!r}, this program reads {VERSION}; make the plan again")
    plan = from_json(Plan, content, f"{path}:")
    _check(path, plan)
    return plan


def _check(path: Path, plan: Plan) -> None:
    # One rule at a time: a later one may rely on those before it.
    for key, value, fine, allowed in _plan_rules(plan):
        if not fine:
            raise UserError(f"{path}: {key} is {_plain(value)}; give {allowed}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _plan_rules(plan: Plan) -> Iterator[Rule]:
    order, inverse = plan.transpose_forward, plan.transpose_backward
    yield "transpose_forward", order, sorted(order) == [0, 1, 2], "the numbers 0, 1 and 2 in any order"
    expected = tuple(order.index(axis) for axis in range(3))
    yield "transpose_backward", inverse, inverse == expected, f"{list(expected)}, the inverse of transpose_forward"
    axes = tuple("zyx"[axis] for axis in order)
    yield "axes", plan.axes, plan.axes == axes, f"{list(axes)}, the order of transpose_forward"
    ids = sorted(plan.labels.values())
    yield "labels", plan.labels, ids == list(range(len(ids))) and len(ids) > 1, "ids from 0 (background) up, no gaps"
    yield "configurations", [*plan.configurations], bool(plan.configurations), "at least one configuration"
    for name, stage in plan.cascade.items():
        for other in (stage.inherits_from, stage.previous_stage):
            yield f"cascade.{name}", other, other in plan.configurations, f"one of {[*plan.configurations]}"
    described = len(plan.foreground_intensities)
    fine = described in (0, len(plan.channels))
    yield "foreground_intensities", f"a list of {described}", fine, f"one entry per channel, {len(plan.channels)}"
    for name, configuration in plan.configurations.items():
        for rules in (_size_rules, _channel_rules, _stage_rules):
            for key, *rest in rules(plan, 2 if name.startswith("2d") else 3, configuration):
                yield (f"configurations.{name}.{key}", *rest)


def _size_rules(plan: Plan, dims: int, c: Configuration) -> Iterator[Rule]:
    for key in ("spacing_mm", "median_shape", "patch_size"):
        row = getattr(c, key)
        yield key, row, len(row) == dims and min(row) > 0, f"{dims} numbers above 0"
    yield "batch_size", c.batch_size, c.batch_size >= 1, "1 or more"


def _channel_rules(plan: Plan, dims: int, c: Configuration) -> Iterator[Rule]:
    channels = len(plan.channels)
    for key in ("normalization", "use_mask_for_norm"):
        yield key, getattr(c, key), len(getattr(c, key)) == channels, f"one entry per channel, {channels}"
    known = bool(plan.foreground_intensities) or "ct" not in c.normalization
    yield "normalization", c.normalization, known, "zscore: the plan has no foreground_intensities, which ct needs"


def _stage_rules(plan: Plan, dims: int, c: Configuration) -> Iterator[Rule]:
    stages = len(c.strides)
    yield "strides", c.strides, stages > 0 and _is_table(c.strides, dims), f"{dims} numbers above 0 per stage"
    odd = all(k % 2 for row in c.kernel_sizes for k in row)
    yield "kernel_sizes", c.kernel_sizes, _is_table(c.kernel_sizes, dims) and odd, f"{dims} odd numbers per stage"
    for key in ("kernel_sizes", "features_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder"):
        row, expected = getattr(c, key), stages - 1 if key.endswith("decoder") else stages
        yield key, row, len(row) == expected, f"{expected} entries, as strides has {stages} stages"
        if key != "kernel_sizes":
            yield key, row, min(row, default=1) > 0, "numbers above 0"
    divisor = [math.prod(axis) for axis in zip(*c.strides, strict=True)]
    fit = [math.ceil(n / d) * d for n, d in zip(c.patch_size, divisor, strict=True)]
    fine = fit == list(c.patch_size)
    yield "patch_size", c.patch_size, fine, f"multiples of the strides' product {divisor}, such as {fit}"


def _is_table(rows: tuple[tuple[int, ...], ...], dims: int) -> bool:
    return all(len(row) == dims and min(row) > 0 for row in rows)
