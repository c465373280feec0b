"""Golden folders of S4ND: HiPPO matrices, 1D kernels, layers and small networks, in float64 with stored weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd.hippo import hippo_matrices, low_rank_correction, nplr
from ssmvision.layers.s4nd import KERNELS, S4ND
from ssmvision.layers.s4nd_kernel import AxisKernel
from ssmvision.models.s4nd_convnext import S4NDConvNeXt
from ssmvision.models.s4nd_vit import S4NDVisionTransformer
from tests.parity_cases.common import Comparison, compare, load_json, seeded_input

__all__ = ["matches", "run"]

SOURCE = "state-spaces/s4"
FILES = ("hippo", "kernel1d", "s4nd_layer", "model")
Case = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def matches(folder: Path) -> bool:
    manifests = [folder / f"{name}.json" for name in FILES if (folder / f"{name}.json").is_file()]
    return bool(manifests) and all(load_json(path).get("source") == SOURCE for path in manifests)


def run(folder: Path) -> Iterator[Comparison]:
    """All comparisons of every case of the files that are there."""
    for name in FILES:
        path = folder / f"{name}.json"
        if path.is_file():
            manifest = load_json(path)
            arrays = dict(np.load(folder / manifest["npz"]))
            for case in manifest["cases"]:
                yield from RUNNERS[case["kind"]](case, _of_case(arrays, case["name"]))


def _of_case(arrays: Arrays, name: str) -> Arrays:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def stored_state(arrays: Arrays) -> dict[str, Tensor]:
    """Parameters of a case, floats in float64."""
    state = {k.removeprefix("param/"): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith("param/")}
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def relative(case: str, array: str, got: Any, expected: np.ndarray[Any, Any], bound: float) -> Comparison:
    """Largest difference against `bound` times the largest stored value."""
    return compare(case, array, got, expected, bound * float(np.abs(expected).max()))


def run_hippo(case: Case, arrays: Arrays) -> Iterator[Comparison]:
    """Matrices; of the eigenvectors, which have a free phase, what does not depend on it."""
    name, config, tolerance = case["name"], case["config"], case["tolerance"]
    A, B = hippo_matrices(config["measure"], config["N"], **config.get("args", {}))
    for key, got in (("A", A), ("B", B)):
        scale = float(np.abs(arrays[key]).max())
        yield compare(name, key, got, arrays[key], tolerance["atol"] + tolerance["rtol"] * scale)
    if "rank" not in config:
        return
    loose = case["tolerance_nplr"]["atol"]
    yield compare(name, "P_real", low_rank_correction(config["measure"], config["N"], config["rank"]).numpy(),
                  arrays["P_real"], loose)  # fmt: skip
    form = {"nplr_raw": None, "nplr_clip": 2.0}
    for key, clip in form.items():
        W, P, B, _ = nplr(config["measure"], config["N"], config["rank"], clip)
        yield compare(name, f"{key}/W", torch.view_as_real(W), _real(arrays[f"{key}/W"]), loose)
        yield (
            relative(name, f"|{key}/P|", P.abs(), np.abs(arrays[f"{key}/P"]), loose)
            if P.abs().max() > 0
            else (compare(name, f"|{key}/P|", P.abs(), np.abs(arrays[f"{key}/P"]), 0.0))
        )
        # The authors' Fourier-diag form has a wrong vector for its zero-frequency pair, and says so.
        if clip is None and case["nplr_valid"]:
            yield relative(name, f"|{key}/B|", B.abs(), np.abs(arrays[f"{key}/B"]), loose)
            product = arrays[f"{key}/B"] * arrays[f"{key}/P"].conj()
            scale = float(np.abs(product).max())
            yield compare(name, f"{key}/B conj(P)", torch.view_as_real(B * P.conj()), _real(product), loose * scale)


def _real(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack((values.real, values.imag), -1)


def run_kernel(case: Case, arrays: Arrays) -> Iterator[Comparison]:
    """Every call's kernel, the state dict after the first, its gradients, and the recurrence step by step."""
    name, config, bound = case["name"], case["config"], case["tolerance"]["float64"]["rel_to_max"]
    kwargs = dict(config["kwargs"])
    kernel = KERNELS[config["kernel"]](kwargs.pop("d_model"), **kwargs).double()
    kernel.load_state_dict(stored_state(arrays))
    for i, call in enumerate(config["calls"]):
        out = kernel(call["L"], call["rate"])
        yield relative(name, f"out{i}", out, arrays[f"out{i}"], bound)
        if i == 0:
            for key in [k for k in arrays if k.startswith("after0/")]:
                value = kernel.state_dict()[key.removeprefix("after0/")]
                yield relative(name, key, value, arrays[key], bound)
            if config.get("grad"):
                yield from _gradients(case["name"], kernel, out, case["grad_weight"]["seed"], arrays, bound)
    if config.get("step"):
        yield relative(name, "step_y", _steps(kernel, case["step_input"]), arrays["step_y"], bound)


def _gradients(
    name: str, module: nn.Module, out: Tensor, seed: int, arrays: Arrays, bound: float
) -> Iterator[Comparison]:
    (out * seeded_input(seed, list(out.shape), torch.float64)).sum().backward()
    grads = {key: parameter.grad for key, parameter in module.named_parameters() if parameter.requires_grad}
    stored = {key.removeprefix("grad0/") for key in arrays if key.startswith("grad0/")} - {"input"}
    yield Comparison(
        name, f"gradients of {sorted(stored ^ set(grads))[:3]} too few or many", len(stored ^ set(grads)), 0
    )
    for key in sorted(stored & set(grads)):
        yield relative(name, f"grad0/{key}", grads[key], arrays[f"grad0/{key}"], bound)


def _steps(kernel: AxisKernel, given: dict[str, Any]) -> Tensor:
    """Outputs (B, C, H, L) of the recurrence, one position at a time."""
    u = seeded_input(given["seed"], given["shape"], torch.float64)
    system = kernel.system()
    state = u.new_zeros(u.shape[0], *system.B.shape)
    outputs = []
    for value in u.unbind(-1):
        state = torch.einsum("hst,bht->bhs", system.A, state) + system.B * value.unsqueeze(-1)
        outputs.append(torch.einsum("chs,bhs->bch", system.C, state))
    return torch.stack(outputs, -1)


def run_layer(case: Case, arrays: Arrays) -> Iterator[Comparison]:
    """Every call by every engine; the first one's gradients."""
    tolerance = case["tolerance"]
    for backend in ("toeplitz", "fft"):
        name = f"{case['name']} {backend}"
        layer = S4ND.from_official_kwargs(**case["config"]["kwargs"], backend=backend).double()
        layer.load_state_dict(stored_state(arrays))
        for i, call in enumerate(case["calls"]):
            u = seeded_input(call["seed"], call["shape"], torch.float64).requires_grad_()
            out = layer(u, call.get("rate", 1.0))
            if f"out{i}" in arrays:
                yield relative(name, f"out{i}", out, arrays[f"out{i}"], tolerance["float64_out0"]["rel_to_max"])
            if call.get("grad"):
                bound = tolerance["grad"]["rel_to_max"]
                yield from _gradients(name, layer, out, call["grad_weight_seed"], arrays, bound)
                yield relative(name, "grad0/input", u.grad, arrays["grad0/input"], bound)


def build_model(config: dict[str, Any]) -> S4NDConvNeXt | S4NDVisionTransformer:
    """The small network of a case."""
    common = {"num_classes": config["num_classes"], "d_state": config["d_state"]}
    if config["arch"] == "vit1d":
        sizes = {key: config[key] for key in ("img_size", "patch_size", "depth")}
        options = {"channels": config["channels"]}
        return S4NDVisionTransformer(embed_dim=config["d_model"], s4nd_args=options, **sizes, **common)
    common |= {"dims": config["dims"], "depths": config["depths"]}
    if config["arch"] == "convnext2d":
        full = {"stem": "s4nd", "downsample": "s4nd", "stem_channels": config["stem_channels"]}
        return S4NDConvNeXt(tuple(config["img_size"]), **full, **common)
    return S4NDConvNeXt(tuple(config["video_size"]), spatial_dims=3, **common)


def run_model(case: Case, arrays: Arrays) -> Iterator[Comparison]:
    """Logits and every stage's output (in the ViT every mixer's and every MLP's), and the number of parameters."""
    name, bound = case["name"], case["tolerance"]["float64"]
    model = build_model(case["config"]).double().eval()
    official = stored_state(arrays)
    unused = sum(v.numel() for k, v in official.items() if "layer.kernel.1." in k and not k.endswith("l_kernel"))
    count = sum(p.numel() for p in model.parameters())
    yield Comparison(name, f"parameters {count}", abs(count + unused - case["n_params"]), 0)
    model.load_state_dict(model.convert_official_state_dict(official))
    outputs: list[Tensor] = []
    _watch(model, outputs)
    with torch.no_grad():
        logits = model(seeded_input(case["input"]["seed"], case["input"]["shape"], torch.float64))
    yield relative(name, "logits", logits, arrays["logits"], bound)
    for i, out in enumerate(outputs):
        yield relative(name, f"stage{i}", out, arrays[f"stage{i}"], bound)


def _watch(model: S4NDConvNeXt | S4NDVisionTransformer, outputs: list[Tensor]) -> None:
    """Collect what the folder calls stages: of a ViT what each mixer and each MLP leaves in the stream."""
    if isinstance(model, S4NDConvNeXt):
        for stage in model.stages:
            stage.register_forward_hook(lambda _, __, out: outputs.append(out))
        return
    for block in model.blocks:
        block.norm2.register_forward_hook(lambda _, given, __: outputs.append(given[0]))
        block.register_forward_hook(lambda _, __, out: outputs.append(out))


RUNNERS: dict[str, Callable[[Case, Arrays], Iterator[Comparison]]] = {
    "hippo": run_hippo,
    "kernel1d": run_kernel,
    "s4nd_layer": run_layer,
    "model": run_model,
}
