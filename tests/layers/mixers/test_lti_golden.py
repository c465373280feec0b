"""S5 and Hyena against stored outputs of public implementations; see tests/golden/mixers/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssmvision.layers.mixers import build_mixer

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[2] / "golden" / "mixers"


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
def test_s5_at_two_sampling_rates(disc: str, rate: float) -> None:
    stored = load("s5")
    options = {"disc": disc, "rate": rate, "bidirectional": False, "dtype": torch.float64}
    layer: Any = build_mixer("s5", 6, 1, gate="none", d_state=10, **options).core
    system = {"A_real": torch.log(-stored["Lambda"][:, 0]), "A_imag": stored["Lambda"][:, 1]}
    system["log_dt"] = stored["log_step"]
    named = {f"states.kernel.0.{name}": value for name, value in system.items()}
    layer.load_state_dict(named | {name: stored[name] for name in "BCD"})
    y = layer(stored["x"].unsqueeze(0))[0]
    torch.testing.assert_close(y, stored[f"y_{disc}_{rate}"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("full_nd", [False, True])
def test_hyena_is_the_authors_operator_behind_a_multiplication(full_nd: bool) -> None:
    """Theirs of order 2 has one long convolution: v o x_1 goes in, ours has one more before that."""
    stored = load("hyena")
    network = {"filter_width": 6, "bands": 2, "reference": 7, "full_nd": full_nd}
    layer: Any = build_mixer("hyena", 4, 1, bidirectional=False, **network).double()
    second = "cores.1." if full_nd else "cores.1.kernel.0."
    reordered = [*range(8, 12), *range(4, 8), *range(4)]  # theirs lie as x_0, x_1, v; ours as v, x_1, x_2
    renamed = {
        "projections.weight": stored["weights.in_proj.weight"][reordered],
        "projections.bias": stored["weights.in_proj.bias"][reordered],
        "short.conv.conv.weight": stored["weights.short_filter.weight"][reordered],
        "short.conv.conv.bias": stored["weights.short_filter.bias"][reordered],
        "out.weight": stored["weights.out_proj.weight"],
        "out.bias": stored["weights.out_proj.bias"],
        "cores.1.D": stored["weights.filter_fn.bias"].reshape((4,) if full_nd else (1, 4)),
        f"{second}network.frequency": stored["weights.filter_fn.implicit_filter.1.freq"][0],
        f"{second}network.out.weight": stored["weights.filter_fn.implicit_filter.6.weight"],
    }
    for i, place in enumerate((0, 2, 4)):
        for part in ("weight", "bias"):
            theirs = stored[f"weights.filter_fn.implicit_filter.{place}.{part}"]
            renamed[f"{second}network.hidden.{i}.{part}"] = theirs
    layer.cores[0] = nn.Identity()
    layer.load_state_dict(renamed)
    torch.testing.assert_close(layer(stored["x"]), stored["y"], rtol=1e-9, atol=1e-10)
