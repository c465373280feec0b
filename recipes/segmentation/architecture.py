"""Chooses the stages of the network from patch and voxel size (nnU-Net's topology rule) and builds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import ModelConfig

__all__ = ["Topology", "build_network", "plan_network", "plan_topology"]

BASELINES = ("DynUNet", "SegResNet", "MedNeXt")
NETWORKS = ("UMambaBot", "UMambaEnc", *BASELINES)
# The same networks with the mixer "s4nd", which take the spacing of their images.
SPACED = {"UMambaBot": "USegS4NDBot", "UMambaEnc": "USegS4NDEnc"}
MIN_EDGE = 4


@dataclass(frozen=True)
class Topology:
    """Per stage and axis: stride on entering the stage, and kernel size."""

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]


def plan_topology(patch_size: Sequence[float], spacing_mm: Sequence[float]) -> Topology:
    """Halves the finest axes until patches get too small (Isensee et al., nnU-Net, arXiv 1904.08128, section 2.3).

    An axis is halved while it has at least 8 voxels and its voxels are less than twice as large as the smallest; its
    kernel widens from 1 to 3 once its voxels are less than twice the smallest.

    Args:
        patch_size: voxels per axis; a median may end in .5.
        spacing_mm: voxel size per axis.
    """
    size, spacing = [float(n) for n in patch_size], [float(s) for s in spacing_mm]
    strides, kernels = [(1,) * len(size)], []
    kernel = [1] * len(size)
    while True:
        finest = min(spacing)
        kernel = [3 if k == 3 or s / finest < 2 else 1 for k, s in zip(kernel, spacing, strict=True)]
        large = [d for d, n in enumerate(size) if n >= 2 * MIN_EDGE]
        if not large:
            break
        near = min(spacing[d] for d in large)
        chosen = [d for d in large if spacing[d] / near < 2]
        if len(chosen) == 1 and size[chosen[0]] < 3 * MIN_EDGE:
            break
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if d in chosen else 1 for d in range(len(size))))
        size = [math.ceil(n / s) for n, s in zip(size, strides[-1], strict=True)]
        spacing = [edge * s for edge, s in zip(spacing, strides[-1], strict=True)]
    return Topology(tuple(strides), (*kernels, (3,) * len(strides[0])))


def plan_network(
    config: ModelConfig, patch_size: Sequence[int], spacing_mm: Sequence[float], channels: int, classes: int
) -> dict[str, Any]:
    """Name and constructor arguments of the network, as plain JSON values; with "s4nd" its reference spacing too.

    Raises:
        UserError: stages disagree, the patch does not divide by the strides, or the reference spacing does not fit.
    """
    dims = len(patch_size)
    if config.name in BASELINES:
        _check_plain(config)
    planned = plan_topology(patch_size, spacing_mm)
    strides = config.strides or _limit(planned.strides, config.features_per_stage)
    kernels = config.kernel_sizes or (*planned.kernel_sizes[: len(strides) - 1], (3,) * dims)
    if len(kernels) < len(strides):
        kernels = (*kernels, *[(3,) * dims] * (len(strides) - len(kernels)))
    features = config.features_per_stage or tuple(
        min(32 * 2**i, 512 if dims == 2 else 320) for i in range(len(strides))
    )
    arguments: dict[str, Any] = {
        "spatial_dims": dims,
        "in_channels": channels,
        "out_channels": classes,
        "deep_supervision": config.deep_supervision,
    }
    if config.name in ("SegResNet", "MedNeXt"):
        own = _own_stages(config, patch_size, spacing_mm, features)
        return {"name": config.name, "arguments": arguments | own}
    _check_stages(patch_size, features, strides, kernels)
    arguments |= {
        "features_per_stage": list(features),
        "kernel_sizes": [list(row) for row in kernels],
        "strides": [list(row) for row in strides],
    }
    if config.name == "DynUNet":
        return {"name": config.name, "arguments": arguments}
    arguments |= {
        "n_conv_per_stage": _plain(config.n_conv_per_stage),
        "n_conv_per_stage_decoder": _plain(config.n_conv_per_stage_decoder),
        "mixer": config.mixer,
    }
    if config.mixer_args:
        arguments["mixer_args"] = dict(config.mixer_args)
    if config.name == "UMambaEnc":
        arguments["input_size"] = list(patch_size)
    return {"name": config.name, "arguments": arguments, **_reference(config, spacing_mm)}


def _check_stages(
    patch_size: Sequence[int],
    features: Sequence[int],
    strides: Sequence[tuple[int, ...]],
    kernels: Sequence[tuple[int, ...]],
) -> None:
    """Refuses stages that contradict each other or the patch."""
    dims = len(patch_size)
    lengths = {"features_per_stage": len(features), "strides": len(strides), "kernel_sizes": len(kernels)}
    if len(set(lengths.values())) != 1:
        raise UserError(f"model: stages differ, {lengths} entries; give each the same number of entries, one per stage")
    for name, table in (("strides", strides), ("kernel_sizes", kernels)):
        if any(len(row) != dims for row in table):
            raise UserError(
                f"model.{name}: {table} does not fit patch_size {tuple(patch_size)}; give {dims} numbers per stage"
            )
    divisor = [math.prod(row[d] for row in strides) for d in range(dims)]
    if any(n % d for n, d in zip(patch_size, divisor, strict=True)):
        upward = [math.ceil(n / d) * d for n, d in zip(patch_size, divisor, strict=True)]
        raise UserError(
            f"patch_size: {list(patch_size)} does not divide by the strides' product {divisor}; use {upward}"
        )


def _check_plain(config: ModelConfig) -> None:
    """Refuses settings that a baseline has no use for."""
    if config.mixer not in ("mamba", "none") or config.mixer_args or config.reference_spacing_mm is not None:
        raise UserError(
            f"model.mixer: {config.name} has no state-space layers (mixer {config.mixer!r}, reference_spacing_mm "
            f"{config.reference_spacing_mm}); leave both out"
        )
    if config.name != "DynUNet":
        return
    for name in ("n_conv_per_stage", "n_conv_per_stage_decoder"):
        counts = _plain(getattr(config, name))
        if set(counts if isinstance(counts, list) else [counts]) != {2}:
            raise UserError(f"model.{name}: {counts} does not fit DynUNet, which has 2; plan with --budget default")


def _own_stages(
    config: ModelConfig, patch_size: Sequence[int], spacing_mm: Sequence[float], features: Sequence[int]
) -> dict[str, Any]:
    """Stages of a network with strides, kernels and channels of its own: as many as planned, where the patch fits."""
    from ssmvision.recipes.segmentation.monai_networks import own_stages  # imports MONAI

    stages = own_stages(config.name, patch_size, spacing_mm, len(features))
    if stages < 2:
        raise UserError(f"patch_size: {list(patch_size)} does not divide by 2, as {config.name} needs; use even sizes")
    blocks = {
        "n_conv_per_stage": _per_stage("n_conv_per_stage", config.n_conv_per_stage, stages),
        "n_conv_per_stage_decoder": _per_stage("n_conv_per_stage_decoder", config.n_conv_per_stage_decoder, stages - 1),
    }
    spacing = {"spacing_mm": [float(edge) for edge in spacing_mm]} if config.name == "SegResNet" else {}
    return {"features_per_stage": [features[0] * 2**i for i in range(stages)], **blocks, **spacing}


def _per_stage(name: str, counts: int | tuple[int, ...], stages: int) -> list[int]:
    """One count per stage; a plan may have more stages than the network takes."""
    row = [counts] * stages if isinstance(counts, int) else list(counts[:stages])
    if len(row) < stages:
        raise UserError(f"model.{name}: {list(row)} has {len(row)} entries; give one number, or {stages}")
    return row


def _plain(counts: int | tuple[int, ...]) -> int | list[int]:
    return counts if isinstance(counts, int) else list(counts)


def _reference(config: ModelConfig, spacing_mm: Sequence[float]) -> dict[str, list[float]]:
    """The reference spacing of a network that asks for spacings."""
    given, axes = config.reference_spacing_mm, len(spacing_mm)
    if config.mixer != "s4nd":
        if given is not None:
            raise UserError(
                f"model.reference_spacing_mm: {list(given)} has no use with mixer {config.mixer!r}; "
                "leave it out or set model.mixer to s4nd"
            )
        return {}
    if given is not None and (len(given) != axes or not all(0 < edge < math.inf for edge in given)):
        raise UserError(f"model.reference_spacing_mm: {list(given)} does not fit; give {axes} sizes above 0 in mm")
    return {"reference_spacing_mm": [float(edge) for edge in given or spacing_mm]}


def _limit(strides: Sequence[tuple[int, ...]], features: Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
    """As many planned stages as `features` asks for."""
    if features is None:
        return tuple(strides)
    if len(features) > len(strides):
        raise UserError(
            f"model.features_per_stage: {len(features)} stages, but the patch size allows {len(strides)}; "
            "use fewer stages, a larger patch, or give model.strides"
        )
    return tuple(strides[: len(features)])


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """The network that `plan_network` described.

    Raises:
        UserError: an unknown name or arguments that its constructor refuses.
    """
    from ssmvision.models import umamba, useg_s4nd

    name = architecture["name"]
    if name not in NETWORKS:
        raise UserError(f"model.name: {name!r} is unknown; use one of {', '.join(NETWORKS)}")
    try:
        arguments = architecture["arguments"]
        if name == "DynUNet":
            from ssmvision.recipes.segmentation.dynunet import PlainUNet  # imports MONAI

            return PlainUNet(**arguments)
        if name in BASELINES:
            from ssmvision.recipes.segmentation import monai_networks

            baseline: nn.Module = getattr(monai_networks, name)(**arguments)
            return baseline
        spaced = arguments.get("mixer") == "s4nd"
        kind = getattr(useg_s4nd, SPACED[name]) if spaced else getattr(umamba, name)
        network = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: {error}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name} is a {type(network).__name__}, not a torch module")
    return network
