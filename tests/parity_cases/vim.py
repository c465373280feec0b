"""Golden folders of the format "vim-golden-1": Vision Mamba against the official code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmvision.convert import convert_state_dict
from ssmvision.layers.pos_embed import PosEmbedRule
from ssmvision.models.vim import VisionMamba
from ssmvision.models.vim_official import OFFICIAL_MODELS
from tests.parity_cases.common import Comparison, compare, filled_state, load_json, seeded_input

FORMAT = "vim-golden-1"
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"sum of squares of the logits": lambda logits: (logits**2).sum()}
INDICES = ("slice_token_index", "slice_layer_index")
SLICE_CHANNELS = 16
# Two float64 runs differ by the order of their sums only.
F64_RELATIVE = 1e-9


def matches(folder: Path) -> bool:
    return any(load_json(path).get("format") == FORMAT for path in manifests(folder))


def manifests(folder: Path) -> list[Path]:
    """JSON files of a folder that may be manifests (an object with a format)."""
    return [path for path in sorted(folder.glob("*.json")) if isinstance(load_json(path), dict)]


def run(folder: Path) -> Iterator[Comparison]:
    for path in manifests(folder):
        if load_json(path).get("format") == FORMAT:
            yield from run_case(path)


def run_case(path: Path) -> Iterator[Comparison]:
    """Every array of one case, float32 arrays from a float32 run and *_f64 arrays from a float64 run.

    Raises:
        ValueError: the case asks for an option, a loss or an array that is not known here.
    """
    case = load_json(path)
    golden = dict(np.load(path.with_name(case["npz"])))
    model = build(case["source"])
    parameters = sum(p.numel() for p in model.parameters())
    yield compare(case["case"], "parameters", parameters, case["parameters"], 0.0)
    wide = {name: array for name, array in golden.items() if name.endswith("_f64")}
    narrow = {name: array for name, array in golden.items() if name not in wide}
    compute = interpolated if case.get("interp_to") else observed
    got = compute(case, golden, torch.float32)
    for name, expected in narrow.items():
        if name not in INDICES:
            yield checked(case, name, pick(got, name), expected)
    if wide:
        got = compute(case, golden, torch.float64)
        for name, expected in wide.items():
            tolerance = F64_RELATIVE * float(np.abs(expected).max())
            yield compare(case["case"], name, pick(got, name.removesuffix("_f64")), expected, tolerance)


def build(source: dict[str, Any], **changes: Any) -> VisionMamba:
    """The model of a manifest's `source`: the official constructor with kwargs, or an official registered name."""
    name, kwargs = source["builder"], source["kwargs"] | changes
    if name.startswith("VisionMamba("):
        return VisionMamba.from_official_kwargs(**kwargs)
    if name not in OFFICIAL_MODELS:
        raise ValueError(f"builder {name!r}: no such official model")
    return VisionMamba.from_official_kwargs(**(OFFICIAL_MODELS[name] | kwargs))


def pick(got: dict[str, Any], name: str) -> Any:
    if name not in got:
        raise ValueError(f"no rule to compute the golden array {name!r}")
    return got[name]


def checked(case: dict[str, Any], name: str, got: Any, expected: np.ndarray) -> Comparison:
    """Compare by the manifest's tolerance rule."""
    if name.endswith("_stats"):
        got = np.asarray(got, dtype=np.float64)
        scale = np.stack([expected[..., 1], expected[..., 1], expected[..., 2]], axis=-1)
        scale = np.maximum(scale, np.finfo(np.float64).tiny)
        if got.shape != expected.shape:
            return compare(case["case"], name, got, expected, 1e-4)
        return compare(case["case"], name, got / scale, expected / scale, 1e-4)
    noise = case["noise"][name]
    tolerance = 1e-4 * noise["max_abs"] + 30 * noise["f32_vs_f64_max_abs"]
    return compare(case["case"], name, got, expected, tolerance)


def stats(values: Tensor) -> list[float]:
    """Sum, sum of absolute values and sum of squares, in float64."""
    values = values.detach().double()
    return [values.sum().item(), values.abs().sum().item(), (values**2).sum().item()]


def observed(case: dict[str, Any], golden: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, Any]:
    """Everything a plain case may hold, by golden name."""
    model = build(case["source"]).to(dtype).eval()
    model.load_state_dict(filled_state(case, dtype), strict=True)
    image = seeded_input(case["input"]["seed"], case["input"]["shape"], dtype)
    with torch.no_grad():
        out = traced(model, image, golden)
    if case["loss"]:
        if case["loss"] not in LOSSES:
            raise ValueError(f"loss {case['loss']!r}: choose from {', '.join(LOSSES)}")
        out |= gradients(model, image, LOSSES[case["loss"]], case["grad_stats_keys"])
    return out


def traced(model: VisionMamba, image: Tensor, golden: dict[str, np.ndarray]) -> dict[str, Any]:
    """One forward pass, watched: `hidden` is a mixer's output, `residual` the stream that went into its norm."""
    seen: list[tuple[Tensor, Tensor]] = []
    final: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in model.layers]
    hooks.append(model.norm_f.register_forward_hook(lambda _, __, out: final.append(out)))
    logits = model(image)
    for hook in hooks:
        hook.remove()
    embedded = model.embed(image)
    streams = {"embed": embedded, "final_tokens": final[0]}
    hiddens, residuals = zip(*seen, strict=True)
    streams |= {"hidden": torch.stack(hiddens), "residual": torch.stack(residuals)}
    out: dict[str, Any] = {"logits": logits, "pooled": model.forward_head(final[0], pre_logits=True)}
    layers = [int(i) for i in golden.get("slice_layer_index", [])]
    tokens = [int(i) for i in golden.get("slice_token_index", [])]
    for name, stream in streams.items():
        layered = stream.dim() == 4
        out[f"{name}_full"] = stream
        out[f"{name}_stats"] = [stats(s) for s in stream] if layered else stats(stream)
        out[f"{name}_slice"] = (stream[layers] if layered else stream)[..., tokens, :SLICE_CHANNELS]
    return out | first_scans(model, embedded)


def first_scans(model: VisionMamba, embedded: Tensor) -> dict[str, Any]:
    """The first block's gated scans (B, E, L), the backward one in its own (reversed) order."""
    block = model._blocks()[0]
    scans = block.mixer.scan(block.norm(embedded), merge="none").transpose(2, 3)
    out = {"layer0_forward_scan": scans[:, 0]}
    if len(block.mixer.routes) == 2:
        out["layer0_backward_scan_flipped_order"] = scans[:, 1].flip(-1)
    return out


def gradients(
    model: VisionMamba, image: Tensor, loss_of: Callable[[Tensor], Tensor], keys: list[str] | None
) -> dict[str, Any]:
    """Loss, its gradients by parameter and input, and their statistics in the order of `keys`."""
    image = image.clone().requires_grad_()
    loss = loss_of(model(image))
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()} | {"input": image.grad}
    without = [name for name, grad in grads.items() if grad is None]
    if without:
        raise ValueError(f"no gradient reaches {', '.join(without)}")
    out: dict[str, Any] = {f"grad/{name}": grad for name, grad in grads.items()}
    return out | {"loss": loss, "grad_stats": [stats(out[f"grad/{key}"]) for key in keys or []]}


def interpolated(case: dict[str, Any], golden: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, Any]:
    """Weights moved to another input size by the official rule and by ours."""
    source = build(case["source"])
    size = case["interp_to"]
    target = build(case["source"], img_size=size if isinstance(size, int) else tuple(size)).to(dtype).eval()
    state = filled_state(case, dtype)
    image = seeded_input(case["input"]["seed"], case["input"]["shape"], dtype)
    rules: dict[str, PosEmbedRule] = {"official": "official", "cls_aware": "class_aware"}
    out: dict[str, Any] = {}
    for name, rule in rules.items():
        grid = source.patch_embed.grid_size
        converted = convert_state_dict(target, state, pos_embed_rule=rule, source_grid=grid)
        target.load_state_dict(converted, strict=True)
        out[f"pos_embed_{name}_interp"] = converted["pos_embed"]
        with torch.no_grad():
            out[f"logits_{name}_interp"] = target(image)
    return out
