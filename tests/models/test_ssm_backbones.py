"""The backbones that take any mixer, beyond timm's contract (test_timm_contract.py)."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch

from ssmvision.layers.sincos import SinCosPosition, sincos_position
from ssmvision.models import HierarchicalSSM, IsotropicSSM

SMALL: dict[str, Any] = {"patch_size": 2, "embed_dim": 8, "depth": 2, "mixer": "s4d", "mixer_args": {"d_state": 2}}


def test_position_code_is_vaswanis_on_a_map_of_sixteen_units() -> None:
    code = sincos_position((16, 4), 10, dtype=torch.float64)
    assert code.shape == (16, 4, 10)
    row, column = 5 + 0.5, (2 + 0.5) * 4
    wanted = [f(place * rate) for place in (row, column) for f in (math.sin, math.cos) for rate in (1.0, 0.01)]
    torch.testing.assert_close(code[5, 2], torch.tensor([*wanted, 0.0, 0.0], dtype=torch.float64))
    # A position of the coarser map lies between two of the finer one.
    fine = sincos_position((32, 4), 10, dtype=torch.float64)[:, 0, 0]
    middle = sincos_position((16, 4), 10, dtype=torch.float64)[:, 0, 0]
    torch.testing.assert_close(middle, (fine[0::2] + fine[1::2]) / 2 / math.cos(0.25))


def test_attention_is_not_blind_to_positions() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 1, 8, 8)
    patches = image.unflatten(2, (4, 2)).unflatten(4, (4, 2))
    moved = patches.flip(2).flatten(4, 5).flatten(2, 3)
    for position, same in (("none", True), ("sincos", False)):
        model = IsotropicSSM(8, 1, 3, **SMALL | {"mixer": "attention", "mixer_args": {}}, pos_embed=position).eval()
        assert torch.allclose(model(image), model(moved), atol=1e-6) is same


def test_codes_that_a_cuda_graph_reads_outlive_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = SinCosPosition()
    code(torch.zeros(1, 2, 2, 4))
    assert code._kept is not None
    plain = weakref.ref(code._kept[1])
    with monkeypatch.context() as recording:
        recording.setattr("ssmvision.layers.sincos._is_recorded", lambda x: True)
        code(torch.zeros(1, 3, 3, 4))
    recorded = weakref.ref(code._kept[1])
    code(torch.zeros(1, 4, 4, 4))
    assert plain() is None
    assert recorded() is not None


def test_kept_position_codes_follow_size_precision_and_inference() -> None:
    model = IsotropicSSM(8, 1, 3, **SMALL)
    with torch.inference_mode():
        first = model(torch.zeros(1, 1, 8, 8))
    model(torch.zeros(1, 1, 8, 8)).sum().backward()
    model(torch.zeros(1, 1, 6, 10))
    torch.testing.assert_close(model(torch.zeros(1, 1, 8, 8)), first.clone())
    assert model.double()(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_state_space_parameters_have_their_own_rules() -> None:
    model = IsotropicSSM(8, 1, 3, **SMALL | {"mixer": "s4nd", "mixer_args": {"d_state": 2, "lr": 1e-4}})
    groups = model.param_groups(1e-2, 0.05)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {1e-2, 1e-4}
    scans = IsotropicSSM(8, 1, 3, **SMALL | {"mixer": "s6"})
    decayed = [p for group in scans.param_groups(1e-2, 0.05) if group["weight_decay"] for p in group["params"]]
    spared = [p for name, p in scans.named_parameters() if name.endswith("A_logs")]
    assert len(spared) == 2
    assert not any(p is q for p in decayed for q in spared)


def test_volumes_and_gates() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"depths": (1, 1), "dims": (4, 8), "mixer": "s4d", "mixer_args": {"d_state": 2}}
    model = HierarchicalSSM(8, 2, 3, spatial_dims=3, patch_size=(1, 2, 2), gate="gss", **settings)
    x = torch.randn(1, 2, 4, 9, 8)
    assert model(x).shape == (1, 3)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 4, 4, 4), (8, 2, 2, 2)]
    model.set_rate((1.0, 2.0, 2.0))
    model.set_input_size((4, 8, 8))
    assert model.img_size == (4, 8, 8)
    for given, words in (
        ({"mixer": "s4d", "gate": "h4"}, "gate"),
        ({"mixer": "attention", "mixer_args": {}, "gate": "glu"}, "mixer 'attention' has no option 'gate'"),
        ({"dims": (4,)}, r"depths \(1, 1\) and dims \(4,\) need one entry a stage each"),
        ({"spatial_dims": 4}, "spatial_dims=4"),
        ({"pos_embed": "learned"}, "pos_embed='learned'"),
        ({"patch_size": (2, 2)}, "a 3D network needs one positive size an axis"),
    ):
        with pytest.raises(ValueError, match=words):
            HierarchicalSSM(8, 2, 3, **{"spatial_dims": 3, "patch_size": 2, **settings, **given})
    with pytest.raises(ValueError, match=r"HierarchicalSSM takes images .* of at least \(2, 4, 4\)"):
        model(torch.zeros(1, 2, 4, 3, 8))
