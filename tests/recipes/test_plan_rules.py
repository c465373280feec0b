from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.planning.budgets import BUDGETS
from ssmvision.recipes.planning.fingerprint import Fingerprint
from ssmvision.recipes.planning.memory import count_activations
from ssmvision.recipes.planning.normalization import mask_for_norm, scheme_of
from ssmvision.recipes.planning.patch import plan_patch
from ssmvision.recipes.planning.planner import decide
from ssmvision.recipes.planning.spacing import coarsest_first, resampled_shape, target_spacing
from tests.parity_cases import nnunet_plans

GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet_plans"


def test_plans_are_those_of_nnunet() -> None:
    cases = 0
    for case, group in itertools.groupby(nnunet_plans.run(GOLDEN), key=lambda c: c.case):
        comparisons = list(group)
        assert len(comparisons) > 20
        assert [c for c in comparisons if not c.passed] == [], case
        cases += 1
    assert cases == 13


def test_parity_notices_a_wrong_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmvision.recipes.planning.planner.coarsest_first", lambda spacing: (0, 1, 2))
    wrong = {c.case for c in nnunet_plans.run(GOLDEN) if not c.passed}
    assert "iso_ct default_8GB" in wrong


def test_published_activation_counts() -> None:
    # Figures that nnU-Net gives for its residual encoder U-Net with all segmentation heads: 558319104 and 129793792.
    budget = BUDGETS["resenc_m"]
    strides = [(1,) * 3] + [(2,) * 3] * 5
    heads = 3 * sum((128 >> i) ** 3 for i in range(1, 5))
    count = count_activations(budget, (128,) * 3, strides, (32, 64, 128, 256, 320, 320), 3)
    assert count + heads == 558319104
    strides = [(1, 1)] + [(2, 2)] * 6
    heads = 3 * sum((512 >> i) ** 2 for i in range(1, 6))
    count = count_activations(budget, (512, 512), strides, (32, 64, 128, 256, 512, 512, 512), 3)
    assert count + heads == 129793792


def test_coarse_axis_with_few_slices_takes_the_tenth_percentile() -> None:
    spacings = [(z, 1.0, 1.0) for z in (4.0, 5.0, 8.0, 8.0, 9.0)]
    few = [(10, 200, 200)] * 5
    assert target_spacing(spacings, few).tolist() == [pytest.approx(4.4), 1.0, 1.0]
    many = [(100, 200, 200)] * 5
    assert target_spacing(spacings, many).tolist() == [8.0, 1.0, 1.0]
    # A tenth percentile below the other axes stays above them, so that the axis leads.
    isotropic = [(0.5, 1.0, 1.0)] * 2 + [(8.0, 1.0, 1.0)] * 4
    assert target_spacing(isotropic, [(10, 200, 200)] * 6).tolist() == [1.00001, 1.0, 1.0]


def test_halves_round_to_even_and_the_first_of_equals_leads() -> None:
    assert resampled_shape((5, 7, 9), (0.5, 0.5, 1.0), (1.0, 1.0, 1.0)) == (2, 4, 9)
    assert coarsest_first((1.0, 3.0, 3.0)) == (1, 0, 2)


def test_normalisation_goes_by_channel_name() -> None:
    assert [scheme_of(n) for n in ("CT", "Ct", "T1", "noNorm", "RGB_to_0_1")] == [
        *("ct", "ct", "zscore", "none", "rgb_to_0_1")
    ]
    assert mask_for_norm(("ct", "zscore", "none"), 0.7) == (False, True, False)
    assert mask_for_norm(("zscore",), 0.75) == (False,)


def test_more_memory_gives_a_larger_patch_and_too_little_none() -> None:
    def patch(gigabytes: float) -> int:
        plan = plan_patch((1, 1, 1), (300, 300, 300), 1e9, 3, BUDGETS["default"].scaled(gigabytes))
        return int(np.prod(plan.patch_size))

    assert patch(4) < patch(8) < patch(24)
    with pytest.raises(UserError, match=r"vram: 0.0001 GB leave no room .* give more memory"):
        patch(1e-4)


def test_half_voxel_medians_count_as_they_are() -> None:
    # 14.5 voxels make 16, which halves twice; 14 would stop at one halving.
    fingerprint = Fingerprint(((1.0, 1.0, 1.0),) * 2, ((14, 32, 32), (15, 32, 32)), (), 1.0)
    fullres = decide(fingerprint, ["MRI"], 2, 2, BUDGETS["default"]).configurations["3d_fullres"]
    assert fullres.median_shape == (14.5, 32.0, 32.0)
    assert fullres.patch_size == (16, 32, 32)
    assert [sum(s[0] == 2 for s in fullres.strides)] == [2]


def test_single_slices_get_no_3d_configuration() -> None:
    fingerprint = Fingerprint(((999.0, 1.0, 1.0),) * 3, ((1, 64, 80),) * 3, (), 1.0)
    decisions = decide(fingerprint, ["R"], 2, 3, BUDGETS["default"])
    assert list(decisions.configurations) == ["2d"]


def test_voxels_larger_than_the_median_case_are_refused() -> None:
    fingerprint = Fingerprint(((1.0, 1.0, 1.0),) * 3, ((40, 50, 60),) * 3, (), 1.0)
    with pytest.raises(UserError, match=r"voxels of 1 x 1 x 100 mm .* which measures 60 x 50 x 40 mm; give smaller"):
        decide(fingerprint, ["R"], 2, 3, BUDGETS["default"], (100.0, 1.0, 1.0))
