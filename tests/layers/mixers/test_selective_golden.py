"""The scanning mixers against stored outputs of public implementations; see tests/golden/mixers/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmvision.kernels.ssd import ssd_nd
from ssmvision.layers.mixers.biwkv import bi_wkv
from ssmvision.layers.mixers.hgrn import HGRN
from ssmvision.layers.mixers.vssd import VSSD

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[2] / "golden" / "mixers"


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Arrays, and weights by their names."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    weights = {key.removeprefix("weights."): arrays.pop(key) for key in list(arrays) if key.startswith("weights.")}
    return arrays, weights


def test_ssd_is_the_papers_listing() -> None:
    stored, _ = load("ssd_minimal")
    delta, B, C = (stored[name].unsqueeze(1) for name in ("delta", "B", "C"))
    y = ssd_nd(stored["x"], delta, stored["A"].unsqueeze(0), B, C, routes=("forward",))
    torch.testing.assert_close(y, stored["y"], rtol=1e-10, atol=1e-12)


def test_vssd_is_the_official_layer() -> None:
    stored, weights = load("vssd")
    layer = VSSD(12, 2, head_dim=6, d_state=4, dtype=torch.float64)
    renamed = {name.replace("conv2d.", "conv.conv."): value for name, value in weights.items()}
    layer.load_state_dict({k: v[None] if k in ("dt_bias", "A_log", "D") else v for k, v in renamed.items()})
    torch.testing.assert_close(layer(stored["x"]), stored["y"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_hgrn_is_flash_linear_attentions_layer(bound: float) -> None:
    stored, weights = load("hgrn")
    layer = HGRN(6, 1, lower_bound=bound, routes=("forward",), dtype=torch.float64)
    projections = torch.cat([weights[f"{name}_proj.weight"] for name in "ifg"])
    renamed = {"in_proj.weight": projections, "norm.weight": weights["g_norm.weight"]}
    layer.load_state_dict(renamed | {"out_proj.weight": weights["o_proj.weight"]})
    torch.testing.assert_close(layer(stored["x"]), stored[f"y_{bound}"], rtol=1e-10, atol=1e-12)


def test_bi_wkv_is_the_official_kernel_where_that_is_uniform() -> None:
    stored, _ = load("biwkv")
    w, u = stored["w"].requires_grad_(), stored["u"].requires_grad_()
    y = bi_wkv(stored["k"], stored["v"], 32 * w, u + w)
    torch.testing.assert_close(y, stored["y"], rtol=1e-10, atol=1e-12)
    dw, du = torch.autograd.grad(y, (w, u), stored["dy"])
    torch.testing.assert_close(dw, stored["dw"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(du, stored["du"], rtol=1e-9, atol=1e-11)
