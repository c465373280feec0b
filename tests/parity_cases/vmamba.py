"""Golden folders of whole VMamba networks: outputs of every stage and gradients, weights by the deterministic fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssmvision.models.vmamba import VMamba
from tests.parity_cases.common import Comparison, compare, filled_state, load_json, seeded_input

__all__ = ["build", "matches", "run", "run_case"]

Case = dict[str, Any]


def matches(folder: Path) -> bool:
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    content = load_json(path)
    cases = content.get("cases", []) if isinstance(content, dict) else []
    functions = [case.get("function", "") for case in cases if isinstance(case, dict)]
    return bool(functions) and all(f.startswith("MzeroMiko/VMamba") and f.endswith(" VSSM") for f in functions)


def run(folder: Path) -> Iterator[Comparison]:
    """All comparisons of every case, in the manifest's order."""
    for case in load_json(folder / "manifest.json")["cases"]:
        yield from run_case(folder, case)


def build(case: Case) -> VMamba:
    """Our network for a case, with its weights."""
    model = VMamba.from_official_kwargs(**case["config"])
    model.load_state_dict(model.convert_official_state_dict(filled_state(case)))
    return model.eval()


def run_case(folder: Path, case: Case) -> Iterator[Comparison]:
    """Every stage's map, features, logits, stored gradients and the norms of all gradients."""
    name, tolerance = case["name"], case["tolerance"]
    with np.load(folder / case["npz"]) as stored:
        arrays = dict(stored)
    model = build(case)
    count = sum(p.numel() for p in model.parameters())
    yield Comparison(name, f"parameters {count} of {case['parameters']}", abs(count - case["parameters"]), 0)
    x = seeded_input(case["input"]["seed"], case["input"]["shape"]).requires_grad_()
    final, maps = model.forward_intermediates(x)
    logits = model(x)
    got: dict[str, Any] = {f"stage{i}": stage for i, stage in enumerate(maps)}
    got |= {"features": final.permute(0, 3, 1, 2), "logits": logits}
    (logits * seeded_input(case["gradients"]["seed"], list(logits.shape))).sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    gradients = model.convert_official_state_dict({k: g for k, g in gradients.items() if g is not None})
    got |= {f"grad.{k}": g for k, g in gradients.items()} | {"grad.in.x": x.grad}
    for key, expected in arrays.items():
        bound = tolerance["gradients_rel_to_max" if key.startswith("grad.") else "outputs_rel_to_max"]
        yield compare(name, key, got[key], expected, bound * float(np.abs(expected).max()))
    for key, norm in case["gradients"]["norms"].items():
        ours = gradients[key.removeprefix("classifier.")].double().norm()
        yield compare(name, f"norm of grad.{key}", ours, norm, tolerance["gradients_rel_to_max"] * norm)
