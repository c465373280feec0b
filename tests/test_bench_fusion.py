"""`ssmvision bench fusion` on a CPU: what it times, what it states, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssmvision.bench import fusion
from ssmvision.bench.fusion import FusionRow
from ssmvision.bench.fusion_config import BenchFusionConfig
from ssmvision.cli import main
from ssmvision.models import FusionMamba

pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> FusionMamba:
    return FusionMamba(depths=(1, 1), depths_decoder=(1, 1), dims=(16, 32))


def test_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(fusion.NETWORKS, "tiny", small)
    out = tmp_path / "fusion.json"
    rows = fusion.run(BenchFusionConfig(model="tiny", sizes="16/1,24/2", train=True, repeats=1, out=out))
    assert [(row.pixels, row.batch, row.step, row.form) for row in rows] == [
        (pixels, batch, step, form)
        for pixels, batch in ((16, 1), (24, 2))
        for step, forms in (("infer", fusion.FORMS), ("train", fusion.TRAINED))
        for form in forms
    ]
    assert all(row.eager_ms > 0 and row.graph_ms is None and row.launches is None for row in rows)
    errors = {row.form: row.error for row in rows if row.pixels == 24 and row.step == "infer"}
    assert errors["float32"] == 0
    assert (errors["for_inference(float32)"] or 0) < 1e-5
    assert all(1e-4 < (errors[form] or 0) < 0.05 for form in errors if "bfloat16" in form)
    assert len(json.loads(out.read_text(encoding="utf-8"))["rows"]) == len(rows)


def test_training_step_learns() -> None:
    torch.manual_seed(0)
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x1, x2 = torch.rand(2, 2, 1, 16, 16).unbind(0)
    losses = [float(fusion.training_step(net, optimizer, x1, x2, None)) for _ in range(12)]
    assert losses[-1] < losses[0]


def test_table() -> None:
    rows = [
        FusionRow("default", 256, 1, "infer", "float32", 10.0, 5.25, 1300, 812.4, 0.0),
        FusionRow("default", 256, 2, "train", "float32", 80.0),
    ]
    lines = fusion.table(rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == [
        *("model", "px / batch", "step", "form", "eager ms", "graph ms"),
        *("launches", "peak MiB", "error"),
    ]
    assert cells[2] == ["default", "256 / 1", "infer", "float32", "10.00", "5.25", "1300", "812", "0e+00"]
    assert cells[3] == ["default", "256 / 2", "train", "float32", "80.00", "", "", "", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [("--sizes 256", "'256' is not PIXELS/BATCH"), ("--repeats 0", "give 1 or more"), ("--device cuda", "no CUDA")],
)
def test_refusals(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if message == "no CUDA" and torch.cuda.is_available():
        words, message = "--device cuda --sizes 0/1", "'0/1' is not PIXELS/BATCH"
    assert main(["bench", "fusion", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_rows_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fusion.NETWORKS, "tiny", small)
    rows = fusion.run(BenchFusionConfig(device="cuda", model="tiny", sizes="64/2", train=True, tf32=True))
    torch.set_float32_matmul_precision("highest")
    assert all(row.graph_ms and row.launches and row.peak_mib for row in rows)
