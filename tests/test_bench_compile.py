"""`ssmvision bench compile` and `bench export`: their steps, tables and refusals; the times need a GPU, or long."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ssmvision.bench import compile as bench_compile
from ssmvision.bench import export as bench_export
from ssmvision.bench.compile import CompileRow, make_step
from ssmvision.bench.export import ExportRow
from ssmvision.bench.table import as_json, write_text
from ssmvision.cli import main
from ssmvision.cli.model_counts import full_size

pytestmark = pytest.mark.usefixtures("one_thread")


def test_steps_infer_and_train() -> None:
    torch.manual_seed(0)
    model, images = nn.Linear(4, 3), torch.randn(5, 4)
    infer, train = (make_step(model, model, images, step, torch.float32) for step in ("infer", "train"))
    assert not infer().requires_grad
    before = float(infer().square().mean())
    assert float(train()) == pytest.approx(before)  # the loss before its update
    losses = [float(train()) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert model.training


def test_tables() -> None:
    rows = [CompileRow("vim", "infer", 64, 12.3, 4.0, 2.0, 1.6, 1.0), CompileRow("vim", "train", 64, missing="no room")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in bench_compile.table(rows).splitlines()]
    assert lines[2] == ["vim", "64", "infer", "4.00", "2.00 (2.00x)", "1.60 (2.50x)", "1.00 (4.00x)", "12"]
    assert lines[3] == ["vim", "64", "train", "no room", "", "", "", ""]
    on_cpu = bench_compile.table([CompileRow("vim", "infer", 1, 12.3, 4.0, 2.0)]).splitlines()[2]
    assert [cell.strip() for cell in on_cpu.split("|")[4:-1]] == ["4.00", "2.00 (2.00x)", "", "", "12"]
    row = ExportRow("vim", 7_100_000, (3, 32, 32), 30.0, None, None, 28.6, 3.0, 0.0, 29.0, 9.0, 40.0, 2e-7, 1.0)
    line = bench_export.table([row]).splitlines()[2]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["vim", "7.1", "3x32x32", "30", "", "3 / 29 / 0e+00", "9 / 29", "40", "2e-07", "100.00%"]


def test_volumes_of_another_side_get_networks_that_take_them() -> None:
    for name in ("UMambaBot", "UMambaEnc"):
        build, shapes = full_size(name, 64)
        assert shapes == ((1, 64, 64, 64),)
        with torch.device("meta"):
            assert build().eval()(torch.empty(1, *shapes[0])).shape == (1, 2, 64, 64, 64)
    assert full_size("vim_tiny", 32)[1] == ((3, 224, 224),)


def test_rows_that_a_file_has_are_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = ExportRow("vim_tiny", 7, (3, 32, 32), 30.0, 1.0, 0.0, 28.6, 3.0, 0.0, 29.0, 9.0, 40.0, 2e-7, 1.0)
    out = tmp_path / "rows.json"
    write_text(out, as_json("here", [row]))
    assert main(["bench", "export", "--models", "vim_tiny", "--out", str(out)]) == 0
    assert "vim_tiny" in capsys.readouterr().out
    out.write_text("{}")
    assert main(["bench", "export", "--models", "vim_tiny", "--out", str(out)]) == 2
    assert "holds no rows of this benchmark" in capsys.readouterr().err


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compile", "--models", "no_such"]) == 2
    assert "timm has no 'no_such'" in capsys.readouterr().err
    assert main(["bench", "export", "--models", "no_such"]) == 2
    assert "no model matches" in capsys.readouterr().err
