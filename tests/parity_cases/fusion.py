"""Golden folder of FusionMamba: layers and networks, weights by the deterministic fill of each `*.state.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ssmvision.kernels.subgrids import join_subgrids, split_subgrids
from ssmvision.layers.fusion_attention import BiAttention, EfficientChannelAttention
from ssmvision.layers.fusion_blocks import DFEM, DFFM, DVSSBlock
from ssmvision.layers.fusion_conv import LearnableDescriptiveConv
from ssmvision.layers.fusion_patch import PatchExpanding, PatchMerging
from ssmvision.layers.fusion_scan import ESS2D, CrossModalScan
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.recipes.fusion.colour import rgb_to_ycrcb, ycrcb_to_rgb
from ssmvision.recipes.fusion.config import LossConfig
from ssmvision.recipes.fusion.losses import FusionLoss, published_ms_ssim
from ssmvision.recipes.fusion.postprocess import official_uint8, stretched
from tests.golden.fill import fill_state_dict, make_input
from tests.parity_cases.common import Comparison, compare, load_json

__all__ = ["build", "matches", "run"]

GRADIENT_FLOOR = 1e-6
Config = dict[str, Any]
Case = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[..., dict[str, Tensor]]


def matches(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and str(load_json(manifest).get("source", "")).startswith("millieXie/FusionMamba")


def run(folder: Path) -> Iterator[Comparison]:
    """All comparisons of every case, in the manifest's order; a case that nothing here computes is a miss."""
    for case in load_json(folder / "manifest.json")["cases"]:
        with np.load(folder / case["npz"]) as stored:
            arrays = dict(stored)
        tensors = load_json(folder / case["state"]) if "state" in case else None
        yield from _run_case(case, arrays, tensors)


def _eps(config: Config) -> float:
    return float(config["norm_layer"].split("eps=")[1])


def network(config: Config, **settings: Any) -> FusionMamba:
    """Our network for the published constructor's arguments."""
    ours = {k: v for k, v in config.items() if k in ("depths", "depths_decoder", "dims")}
    if "d_state" in config:
        ours["fusion_d_state"] = config["d_state"]
    if config.get("dims_decoder", [*config.get("dims", ())][::-1]) != [*config.get("dims", ())][::-1]:
        raise ValueError(f"dims_decoder {config['dims_decoder']} does not mirror dims")
    return FusionMamba(**ours, **{"faithful": True, **settings})


# By the last word of a case's "class": our module for its config.
MODULES: dict[str, Callable[[Config], nn.Module]] = {
    "BiAttn": lambda c: BiAttention(c["in_channels"]),
    "eca_layer": lambda c: EfficientChannelAttention(),
    "LDC": lambda c: LearnableDescriptiveConv(c["in_channels"], c["out_channels"], base_mask=True),
    "SS2D": lambda c: ESS2D(c["d_model"], c.get("d_state", 16), c.get("ssm_ratio", 2.0)),
    "SS2D_cross_new": lambda c: CrossModalScan(c["d_model"], gate="official", unused_gate=True),
    "Cross_layer": lambda c: DFEM(c["hidden_dim"], official=True),
    "VSSBlock_new": lambda c: DVSSBlock(c["hidden_dim"], eps=_eps(c), base_mask=True),
    "VSSBlock_Cross_new": lambda c: DFFM(c["hidden_dim"], gate="official", eps=_eps(c), official=True),
    "PatchEmbed2D": lambda c: PatchEmbed(
        None,
        c["patch_size"],
        in_chans=c["in_chans"],
        embed_dim=c["embed_dim"],
        norm_layer=nn.LayerNorm,
        flatten=False,
        output_fmt="NHWC",
    ),
    "PatchMerging2D": lambda c: PatchMerging(c["dim"]),
    "PatchExpand2D": lambda c: PatchExpanding(2 * c["dim"], c["dim_scale"]),
    "Final_PatchExpand2D": lambda c: PatchExpanding(c["dim"], c["dim_scale"]),
    "VSSM_Fusion": network,
}


def _colour(rgb: Tensor) -> dict[str, Tensor]:
    there = rgb_to_ycrcb(rgb.permute(0, 2, 3, 1).numpy())
    arrays = {"out": there, "back": ycrcb_to_rgb(there)}
    return {name: torch.from_numpy(array).permute(0, 3, 1, 2) for name, array in arrays.items()}


def _postprocess(x: Tensor) -> dict[str, Tensor]:
    image = stretched(x.numpy())
    arrays = {"out": image, "uint8": official_uint8(image[0, 0])}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# By the last word of a case's "class": what we compute of its inputs where there are no weights.
FUNCTIONS: dict[str, Run] = {"YCrCb2RGB": _colour, "test.py": _postprocess}
CHANNELS_FIRST = {"eca_layer", "LDC", "Cross_layer"}  # in the published code; ours are channels-last throughout


def _subgrid_sequences(parts: Tensor) -> Tensor:
    """(B, 4, h, w, C) -> (B, 4, C, L) in the published order: every second sub-grid column by column."""
    ordered = [part.transpose(1, 2) if k % 2 else part for k, part in enumerate(parts.unbind(1))]
    return torch.stack([part.flatten(1, 2).transpose(1, 2) for part in ordered], 1)


def _subgrid_maps(sequences: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_subgrid_sequences`."""
    h, w = -(-height // 2), -(-width // 2)
    maps = [s.transpose(1, 2).unflatten(1, (w, h) if k % 2 else (h, w)) for k, s in enumerate(sequences.unbind(1))]
    return torch.stack([m.transpose(1, 2) if k % 2 else m for k, m in enumerate(maps)], 1)


def _scan(x: Tensor) -> dict[str, Tensor]:
    return {"out": _subgrid_sequences(split_subgrids(x.permute(0, 2, 3, 1)))}


def _merge(config: Config, ys: Tensor) -> dict[str, Tensor]:
    size = (config["ori_h"], config["ori_w"])
    return {"out": join_subgrids(_subgrid_maps(ys, *size), size).permute(0, 3, 1, 2).flatten(2)}


def _loss(config: Config, vis: Tensor, ir: Tensor, fused: Tensor) -> dict[str, Tensor]:
    """The published loss, by itself: clamping is done by the published training loop."""
    weights = {"structure" if k == "ssim" else k: float(v) for k, v in config.get("weights", {}).items()}
    terms = FusionLoss(replace(LossConfig.published(), clamp=False, **weights))(fused, vis, ir)
    return {
        "out": terms.total.reshape(1),
        "loss_in": terms.intensity.reshape(1),
        "loss_ssim": terms.structure.reshape(1),
        "loss_grad": terms.gradient.reshape(1),
        "msssim_norm": published_ms_ssim(fused, ir).reshape(1),
        "msssim_raw": published_ms_ssim(fused, ir, normalize=False).reshape(1),
    }


def _outputs(kind: str, module: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    if kind == "Cross_layer":
        inputs = inputs[-2:]  # the published layer is also given their sum
    if kind in CHANNELS_FIRST:
        out = module(*(x.permute(0, 2, 3, 1) for x in inputs))
        outs = [o.permute(0, 3, 1, 2) for o in (out if isinstance(out, tuple) else (out,))]
        return dict(zip(("out", "out2"), outs, strict=False))
    return {"out": module(*inputs)}


def _intermediates(net: FusionMamba, x1: Tensor, x2: Tensor) -> dict[str, Tensor]:
    skips, bottleneck = net.encode(x1, x2)
    found = {"bottleneck": bottleneck}
    for i, skip in enumerate(skips):
        found |= {f"skip1.{i}": skip.chunk(2)[0], f"fused_skip.{i}": net.Cross_block[str(i)](*skip.chunk(2))}
    return found


def build(case: Case) -> nn.Module:
    """Our module for a case, in evaluation mode, without the case's weights."""
    return MODULES[case["class"].split()[-1]](case["config"]).eval()


def _run_case(case: Case, arrays: Arrays, tensors: dict[str, Any] | None) -> Iterator[Comparison]:
    name, kind = case["name"], case["class"].split()[-1]
    inputs = {k.removeprefix("in."): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("in.")}
    for x in inputs.values():
        x.requires_grad_("gradients" in case)
    module = nn.Module()
    with torch.set_grad_enabled("gradients" in case):
        if kind == "EfficientScan":
            outputs = _scan(**inputs)
        elif kind == "EfficientMerge":
            outputs = _merge(case["config"], **inputs)
        elif kind == "Fusionloss":
            outputs = _loss(case["config"], **inputs)
        elif kind in FUNCTIONS:
            outputs = FUNCTIONS[kind](**inputs)
        elif kind in MODULES:
            module = build(case)
            yield from _structure(name, module, case, tensors or {})
            outputs = _outputs(kind, module, *inputs.values())
        else:
            yield Comparison(name, "nothing of ours computes this case yet", float("inf"), 0)
            return
    if isinstance(module, FusionMamba) and "bottleneck" in case["outputs"]:
        with torch.no_grad():
            outputs |= _intermediates(module, *inputs.values())
    for key in case["outputs"]:
        if not key.startswith("grad."):
            yield _close(name, key, outputs.get(key, torch.zeros(0)), arrays[key], case["tolerance"])
    if "gradients" in case:
        yield from _gradients(name, module, inputs, outputs["out"], case, arrays)


def _close(case: str, key: str, got: Tensor, expected: np.ndarray[Any, Any], tolerance: dict[str, float]) -> Comparison:
    """The largest difference against atol + rtol times the largest value."""
    bound = tolerance["atol"] + tolerance["rtol"] * float(np.abs(expected).max())
    return compare(case, key, got, expected, bound)


def _structure(name: str, module: nn.Module, case: Case, tensors: dict[str, Any]) -> Iterator[Comparison]:
    """Counts, keys and shapes; and loads the case's weights, strictly."""
    count = sum(p.numel() for p in module.parameters())
    yield Comparison(name, f"parameters {count} of {case['parameters']}", abs(count - case["parameters"]), 0)
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    yield Comparison(name, f"trainable {count} of {case['trainable']}", abs(count - case["trainable"]), 0)
    ours = {k: list(v.shape) for k, v in module.state_dict().items()}
    expected = {t["key"]: t["shape"] for t in tensors["tensors"]}
    wrong = sorted(k for k in ours.keys() | expected.keys() if ours.get(k) != expected.get(k))
    yield Comparison(name, f"state dict {wrong[:3]}", len(wrong), 0)
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in fill_state_dict(tensors).items()})


def _gradients(
    name: str, module: nn.Module, inputs: dict[str, Tensor], out: Tensor, case: Case, arrays: Arrays
) -> Iterator[Comparison]:
    (out * torch.from_numpy(make_input(case["gradients"]["seed"], out.shape))).sum().backward()
    parameters = dict(module.named_parameters())
    found = {f"in.{k}": x.grad for k, x in inputs.items()} | {k: p.grad for k, p in parameters.items()}
    for key in case["outputs"]:
        if key.startswith("grad."):
            expected, got = arrays[key], found[key.removeprefix("grad.")]
            bound = 1e-3 * float(np.abs(expected).max()) + GRADIENT_FLOOR
            yield compare(name, key, torch.zeros(0) if got is None else got, expected, bound)
    present = [key for key in case["gradients"]["no_gradient"] if found[key] is not None]
    yield Comparison(name, f"gradients where there are none {present}", len(present), 0)
