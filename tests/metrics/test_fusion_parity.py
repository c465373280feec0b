"""Fusion metrics against the stored values of the tool boxes in use."""

from pathlib import Path

import pytest

from tests.parity_cases import fusion_metrics
from tests.parity_cases.common import load_json

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "fusion_metrics"
MANIFEST = load_json(FOLDER / "manifest.json")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", MANIFEST["cases"], ids=lambda case: case["name"])
def test_values_agree(case):
    comparisons = list(fusion_metrics.run_case(FOLDER, case, MANIFEST["keys"]["tolerance"]))
    assert {c.array for c in comparisons} == set(fusion_metrics.METRICS)
    assert [f"{c.array}: {c.error:.2e} > {c.tolerance:.2e}" for c in comparisons if not c.passed] == []
