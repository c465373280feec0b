"""`ssmvision bench umamba` on a CPU: what it times, what it compares, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ssmvision.bench import umamba
from ssmvision.bench.umamba import UMambaRow
from ssmvision.bench.umamba_config import BenchUMambaConfig
from ssmvision.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(umamba, "WARM_UP", 0)
    out = tmp_path / "umamba.json"
    rows = umamba.run(BenchUMambaConfig(shape="tiny", precisions="float32,bfloat16_ssm", steps=1, out=out))
    assert [(row.network, row.precision) for row in rows] == [
        *((network, "float32") for network in umamba.NETWORKS),
        *((network, "bfloat16_ssm") for network in ("bot", "enc")),
    ]
    assert all(row.step_ms > 0 and row.peak_gb is None and row.batch == 2 for row in rows)
    assert [row.time_ratio for row in rows[:3]] == [row.step_ms / rows[0].step_ms for row in rows[:3]]
    assert all(row.time_ratio is None for row in rows[3:])  # its twin is the one in bfloat16
    assert len(json.loads(out.read_text(encoding="utf-8"))["rows"]) == len(rows)


def test_full_size_is_the_published_network() -> None:
    size = umamba.SHAPES["abdomen_ct"]
    with torch.device("meta"):
        count = sum(p.numel() for p in umamba._network(size, "enc").parameters())
    assert round(count / 1e6, 2) == 42.84
    assert [math.prod(s) for s in zip(*size.strides, strict=True)] == [8, 32, 32]


def test_loss_of_perfect_and_of_uniform_logits() -> None:
    labels = [torch.randint(3, (2, 4, 4, 4)), torch.randint(3, (2, 2, 2, 2))]
    perfect = [100 * torch.nn.functional.one_hot(t, 3).movedim(-1, 1).float() for t in labels]
    assert umamba.supervised_loss(perfect, labels) == pytest.approx(-1, abs=1e-5)
    spoilt = [perfect[0], torch.full_like(perfect[1], float("nan"))]
    assert umamba.supervised_loss(spoilt, labels) == pytest.approx(-1, abs=1e-5)  # the coarsest level does not count
    even = umamba.supervised_loss([torch.zeros(2, 3, 4, 4, 4)], labels[:1])
    voxels = torch.nn.functional.one_hot(labels[0], 3).sum((1, 2, 3))[:, 1:]
    dice = (2 * voxels / 3 / (64 / 3 + voxels)).mean()
    assert even == pytest.approx(math.log(3) - float(dice), abs=1e-4)


def test_table_leaves_out_what_is_not_known() -> None:
    rows = [
        UMambaRow("twin", "float32", 2, 200.0, 16.0, 1.0, 1.0),
        UMambaRow("enc", "float32", 2, missing="out of memory"),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in umamba.table(rows).splitlines()]
    assert lines[2] == ["twin", "float32", "200.0", "10.00", "16.0", "1.00", "1.00"]
    assert lines[3] == ["enc", "float32", "out of memory", "", "", "", ""]


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--networks", "twin,vim"], "'vim' is not known; choose from twin, bot, enc"),
        (["--precisions", "fp8"], "'fp8' is not known; choose from float32, tf32, bfloat16"),
        (["--steps", "0"], "give 1 or more"),
    ):
        assert main(["bench", "umamba", "--shape", "tiny", *words]) == 2
        assert message in capsys.readouterr().err
