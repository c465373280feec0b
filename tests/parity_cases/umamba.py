"""Golden folders of U-Mamba networks and layers: `cases` with a `net`, weights by the deterministic fill."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmvision.layers.mamba_layer import MambaLayer
from ssmvision.models.umamba import UMambaBot, UMambaEnc
from tests.parity_cases.common import Comparison, compare, filled_state, load_json, seeded_input

__all__ = ["build", "matches", "run"]

NETWORKS: dict[str, type[UMambaBot] | type[UMambaEnc]] = {"UMambaBot": UMambaBot, "UMambaEnc": UMambaEnc}
NETS = {*NETWORKS, "MambaLayer"}
NOT_ARGUMENTS = {"name", "net", "dim", "input_shape", "input_seed"}
# A float64 run leaves 1e-10 where the true gradient is zero; other gradients of these cases are above 1.
ZERO_GRADIENT = 1e-6
Case = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def matches(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    content = load_json(manifest)
    cases = content.get("cases", []) if isinstance(content, dict) else []
    return bool(cases) and all(isinstance(c, dict) and c.get("config", {}).get("net") in NETS for c in cases)


def run(folder: Path) -> Iterator[Comparison]:
    """All comparisons of every case, in the manifest's order."""
    for case in load_json(folder / "manifest.json")["cases"]:
        with np.load(folder / case["file"]) as stored:
            arrays = dict(stored)
        yield from _run_case(case, arrays)


def build(config: dict[str, Any]) -> UMambaBot | UMambaEnc | MambaLayer:
    """Our module for a case, through the official arguments."""
    if config["net"] == "MambaLayer":
        return MambaLayer(config["dim"], config["channel_token"])
    dim = config["dim"]
    official = {k: v for k, v in config.items() if k not in NOT_ARGUMENTS}
    official |= {
        "conv_op": getattr(nn, f"Conv{dim}d"),
        "norm_op": getattr(nn, f"InstanceNorm{dim}d"),
        "conv_bias": True,
    }
    return NETWORKS[config["net"]].from_official_kwargs(**official)


def _run_case(case: Case, arrays: Arrays) -> Iterator[Comparison]:
    name, tolerance = case["config"]["name"], case["tolerance"]
    model = build(case["config"])
    yield from _structure(name, model, case)
    for dtype, bound in ((torch.float32, tolerance["outputs_rel_to_max"]), (torch.float64, tolerance["float64_run"])):
        state = filled_state(case, dtype)
        if not isinstance(model, MambaLayer):
            state = model.convert_official_state_dict(state)
        model.to(dtype).load_state_dict(state)
        x = seeded_input(case["config"]["input_seed"], case["config"]["input_shape"], dtype)
        x.requires_grad_(dtype == torch.float64)
        with torch.set_grad_enabled(dtype == torch.float64):
            out = model(x)
        outputs = out if isinstance(out, list) else [out]
        yield Comparison(name, f"{dtype} number of outputs", abs(len(outputs) - len(case["outputs"])), 0)
        for i, o in enumerate(outputs):
            yield _relative(name, f"{dtype} out{i}", o, arrays[f"out{i}"], bound)
    loss = torch.stack([(o**2).sum() for o in outputs]).sum()
    loss.backward()
    yield _relative(name, "loss", loss, np.asarray(case["loss_value_f64"]), bound)
    yield _relative(name, "grad_input", x.grad, arrays["grad_input"], bound)
    yield from _gradients(name, dict(model.named_parameters()), case, arrays, bound)


def _relative(case: str, array: str, got: Any, expected: Any, bound: float) -> Comparison:
    """Largest difference against `bound` times the largest stored value."""
    return compare(case, array, got, expected, bound * float(np.abs(np.asarray(expected, np.float64)).max()))


def _structure(name: str, model: UMambaBot | UMambaEnc | MambaLayer, case: Case) -> Iterator[Comparison]:
    count = sum(p.numel() for p in model.parameters())
    yield Comparison(name, f"parameters {count} of {case['parameters']}", abs(count - case["parameters"]), 0)
    ours = model.state_dict() if isinstance(model, MambaLayer) else model.official_state_dict()
    expected = {t["key"]: list(t["shape"]) for t in case["tensors"]}
    wrong = [k for k in ours.keys() | expected.keys() if k not in ours or expected.get(k) != list(ours[k].shape)]
    yield Comparison(name, f"state dict {sorted(wrong)[:3]}", len(wrong), 0)
    for layer in case.get("mamba_layers", ()):
        module: Any = model.get_submodule(f"encoder.mamba_layers.{layer['stage']}")
        got = (
            {"identity": True}
            if isinstance(module, nn.Identity)
            else {"dim": module.dim, "channel_token": module.channel_token}
        )
        wrong = [k for k, v in got.items() if layer.get(k, False) != v]
        yield Comparison(name, f"mamba_layers.{layer['stage']} {wrong}", len(wrong), 0)


def _gradients(
    name: str, parameters: dict[str, nn.Parameter], case: Case, arrays: Arrays, bound: float
) -> Iterator[Comparison]:
    zero, none, keys = set(case["zero_true_gradient"]), set(case["no_gradient"]), case["grad_l2_keys"]
    odd = {k for k, p in parameters.items() if (p.grad is None) != (k in none)}
    odd |= (set(keys) | none) ^ parameters.keys()
    yield Comparison(name, f"which parameters get a gradient {sorted(odd)[:3]}", len(odd), 0)
    for key, norm in zip(keys, arrays["grad_l2"], strict=True):
        grad = parameters[key].grad
        got = float("nan") if grad is None else grad.norm()
        if key not in none:
            yield compare(name, f"grad_l2 {key}", got, norm, ZERO_GRADIENT if key in zero else bound * float(norm))
    for entry in case["gradients"]:
        key, expected = entry["key"], arrays[f"grad:{entry['key']}"]
        got_array = _stored_part(parameters[key].grad, entry["stored"])
        if key in zero:
            yield compare(name, f"grad:{key}", got_array, expected, ZERO_GRADIENT)
        else:
            yield _relative(name, f"grad:{key}", got_array, expected, bound)


def _stored_part(grad: Tensor | None, stored: str) -> Tensor:
    """The part of a gradient that the folder holds: "full", or a slice such as "flat[::4]"."""
    if grad is None:
        return torch.full((), float("nan"))
    if stored == "full":
        return grad
    parts = re.fullmatch(r"flat\[(-?\d*):(-?\d*)(?::(-?\d*))?\]", stored)
    if parts is None:
        raise ValueError(f"unknown form of a stored gradient: {stored!r}")
    return grad.flatten()[slice(*(int(p) if p else None for p in parts.groups()))]
