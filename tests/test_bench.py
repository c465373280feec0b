"""The benchmarks without a GPU: floors, what is timed against what, tables, and errors."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmvision.bench import gpu, scan, timing, vim
from ssmvision.bench.config import BenchScanConfig, BenchVimConfig
from ssmvision.bench.contestants import VMambaOps, composed, make_inputs, mamba, ours, vmamba
from ssmvision.bench.floors import H200, ScanWork, rates_of, scan_floor
from ssmvision.bench.gpu import GpuRow, Measured
from ssmvision.bench.peers import find_peer
from ssmvision.bench.shapes import SHAPES, Shape
from ssmvision.bench.table import as_json
from ssmvision.cli import main
from ssmvision.kernels.selective_scan import selective_scan

# Forward and training floors, microseconds, computed independently for the published shapes at bf16.
FLOORS = {
    "a": (88, 227),
    "b": (111, 311),
    "b-core": (111, 222),
    "b16": (666, 1772),
    "c2": (547, 1157),
    "c6": (1642, 3472),
    "d": (39, 82),
    "d-wide": (79, 163),
}
SMALL = {
    "vim": Shape("", 2, (11,), 6, 3, ("forward", "backward"), "mamba_ssm", gate=True, shared=False),
    "volume": Shape("", 2, (2, 3, 4), 5, 3, SHAPES["c6"].routes, "mamba_ssm"),
    "cross": Shape("", 2, (3, 5), 4, 2, SHAPES["b"].routes, "VMamba"),
    "core": Shape("", 2, (3, 5), 4, 2, SHAPES["b"].routes, "VMamba", rank=3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_floors_of_the_named_shapes(name: str) -> None:
    forward, backward = scan_floor(SHAPES[name].work(2))
    expected = FLOORS[name]
    assert forward.us == pytest.approx(expected[0], rel=0.02)
    assert forward.us + backward.us == pytest.approx(expected[1], rel=0.02)
    assert forward.binds == "exponentials"


def test_floor_counts_what_a_scan_moves_and_computes() -> None:
    rates = rates_of("some GPU", 10, 1e9, 1e12)
    assert (rates.exponentials, rates.instructions) == (160e9, 1280e9)
    assert "nominal: 10 SMs" in rates.source
    work = ScanWork(1, 1000, 100, 4, 2, rank=3)
    forward, backward = scan_floor(work, rates)
    moved = 2 * 100_000 + 1000 * 2 * (2 * 4 + 3)
    assert forward.memory_us == pytest.approx(2 * moved / 1e12 * 1e6)
    assert forward.exponentials_us == pytest.approx((800_000 + 400_000) / 160e9 * 1e6)
    assert backward.instructions_us == pytest.approx(15 * 800_000 / 1280e9 * 1e6)
    assert scan_floor(replace(work, rank=0), rates)[0].memory_us > forward.memory_us
    assert scan_floor(replace(work, element_bytes=4), rates)[0].memory_us == pytest.approx(2 * forward.memory_us)
    assert scan_floor(replace(work, segments=True), rates)[0].exponentials_us > forward.exponentials_us
    assert rates_of("NVIDIA H200 NVL", 1, 1.0, 1.0) is H200


def flat_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, bias: Tensor, softplus: bool
) -> Tensor:
    """mamba_ssm's signature, by the drop-in on the CPU."""
    out = selective_scan(u, delta, A, B, C, D, z, bias, softplus)
    assert isinstance(out, Tensor)
    return out


def grouped_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, softplus: bool, oflex: bool
) -> Tensor:
    """VMamba's signature."""
    assert oflex
    return flat_scan(u, delta, A, B, C, D, None, bias, softplus)


def cross_scan(x: Tensor, in_channel_first: bool, out_channel_first: bool, scans: int) -> Tensor:
    """(B, E, H, W) -> (B, 4, E, H W): rows, columns, and both reversed."""
    assert in_channel_first
    assert out_channel_first
    assert scans == 0
    pair = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    return torch.cat([pair, pair.flip(-1)], 1)


def cross_merge(ys: Tensor, in_channel_first: bool, out_channel_first: bool, scans: int) -> Tensor:
    """(B, 4, E, H, W) -> (B, E, H W): every route back in place, added."""
    assert in_channel_first
    assert out_channel_first
    assert scans == 0
    height, width = ys.shape[-2:]
    flat = ys.flatten(3)
    pair = flat[:, :2] + flat[:, 2:].flip(-1)
    columns = pair[:, 1].unflatten(-1, (width, height)).transpose(2, 3).flatten(2)
    return pair[:, 0] + columns


@pytest.mark.parametrize("name", SMALL)
def test_peers_compute_the_same_from_the_same_values(name: str) -> None:
    shape = SMALL[name]
    inputs = {key: value.double() for key, value in make_inputs(shape, torch.float64, "cpu").items()}
    exact = composed(shape, inputs, "reference")
    if shape.peer == "mamba_ssm":
        peer = mamba(shape, inputs, flat_scan)
    else:
        peer = vmamba(shape, inputs, VMambaOps(cross_scan, cross_merge, grouped_scan))
        peer.dout = peer.dout.double()  # VMamba's own result is float32
    torch.testing.assert_close(peer.to_map(peer.forward()), exact.forward())
    gradients = dict(zip(peer.leaves, peer.training(), strict=True))
    expected = dict(zip(exact.leaves, exact.training(), strict=True))
    found = torch.stack([gradients[key].norm() for key in gradients]).norm()
    torch.testing.assert_close(found, torch.stack([expected[key].norm() for key in expected]).norm())


@pytest.mark.parametrize("name", SMALL)
def test_ours_is_the_public_scan(name: str) -> None:
    shape = SMALL[name]
    inputs = make_inputs(shape, torch.float32, "cpu")
    found, exact = ours(shape, inputs), composed(shape, inputs, "reference")
    torch.testing.assert_close(found.forward(), exact.forward())
    assert list(found.leaves) == [key for key in inputs if key != "dout"]
    for a, b in zip(found.training(), exact.training(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_gpu_table_and_json() -> None:
    size = SHAPES["a"].size
    assert size == "B64 197 E768 N16 K2"
    figures = Measured(100.0, 50.0, 300.4, {"out": 1.6e-3, "x": 1e-3})
    peer = Measured(886.0, 70.0, 293.0, {"out": 2.1e-3})
    beside = GpuRow("a", size, "bfloat16", "forward", figures, 88.0, "mamba_ssm", peer)
    alone = replace(beside, peer=None, peer_missing="not installed (no module mamba_ssm)")
    lines = gpu.table([beside, alone]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert dict(zip(cells[0], cells[2], strict=True)) == {
        "shape": "(a) B64 197 E768 N16 K2", "pass": "forward", "ours us": "100", "host us": "50", "floor us": "88",
        "ours / floor": "1.14", "error": "1.6e-03", "peak MiB": "300", "peer": "mamba_ssm", "peer us": "886",
        "peer / ours": "8.86", "peer error": "2.1e-03", "peer MiB": "293",
    }  # fmt: skip
    assert cells[3][8:] == ["mamba_ssm: not installed (no module mamba_ssm)", "", "", "", ""]
    report = json.loads(as_json("a GPU", [beside, alone]))
    assert report["machine"] == "a GPU"
    assert report["rows"][0]["peer"]["us"] == 886.0
    assert report["rows"][0]["ours"]["errors"] == {"out": 1.6e-3, "x": 1e-3}
    assert report["rows"][1]["peer"] is None


def test_model_table() -> None:
    row = vim.ModelRow("vim_small", 224, 64, "train", 40.0, 32.0, 4000.6)
    lost = vim.ModelRow("vim_small", 1248, 4, "train", missing="out of memory")
    lines = vim.table([row, lost]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["vim_small", "224 / 64", "train", "40.00 (1600)", "32.00 (2000)", "4001"]
    assert "out of memory" in lines[3]


@pytest.mark.parametrize("name", ["vim_tiny", "convnext_atto", "s4nd_convnext_micro"])
def test_models_get_the_size_that_they_ask_for(name: str) -> None:
    with torch.device("meta"):
        model = vim.create_model(name, 64)
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, vim.CLASSES)
    size = getattr(model, "img_size", (64, 64))
    assert size in ((64, 64), 64)


def test_training_step_learns_and_updates_once() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images, labels = torch.randn(3, 3, 2, 2), torch.tensor([0, 1, 2])
    losses = [float(vim.training_step(model, optimizer, images, labels, torch.bfloat16)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert all(state["step"] == 5 for state in optimizer.state.values())


def test_host_times_are_medians_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    slow, fast = timing.in_rounds_us([lambda: time.sleep(2e-3), lambda: time.sleep(2e-4)], budget_ms=5.0, rounds=3)
    assert slow > 2000
    assert 200 < fast < slow
    assert timing.host_us(lambda: time.sleep(1e-3), calls=3) > 1000


def test_a_missing_or_broken_peer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("selective_scan_cuda", "selective_scan_cuda_oflex", "mamba_ssm", "csm_triton", "csms6s"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "selective_scan_cuda.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    assert find_peer("mamba_ssm") == "does not load (undefined symbol: _ZN3c10)"
    (tmp_path / "selective_scan_cuda_oflex.py").touch()
    assert find_peer("VMamba") == "not installed (no module csm_triton)"
    (tmp_path / "csm_triton.py").write_text("def cross_scan_fn(): ...\ndef cross_merge_fn(): ...\n")
    (tmp_path / "csms6s.py").write_text("def selective_scan_fn(): ...\n")
    assert callable(find_peer("VMamba"))
    for name in ("selective_scan_cuda_oflex", "csm_triton", "csms6s"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scan --shapes a", "there is no shape 'a'; choose from all, sequence, vim, volume"),
        ("scan --device cuda --shapes a,x9", "there is no shape 'x9'; choose from all, a, b,"),
        ("vim --sizes 224x64", "'224x64' is not PIXELS/BATCH, such as 224/64"),
        ("vim --sizes 224/0", "'224/0' is not PIXELS/BATCH"),
        ("vim --model vim_smal", "timm has no model 'vim_smal'"),
        ("cpu --peer vim_smal", "timm has no model 'vim_smal'"),
        ("cpu --rounds 0", "--rounds 0: give 1 or more"),
        ("scan --repeats 0", "--repeats 0: give 1 or more"),
    ],
)
def test_a_wrong_setting_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["scan --device cuda", "vim"])
def test_no_gpu_is_one_line(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *words.split()]) == 2
    error = capsys.readouterr().err
    assert "PyTorch sees no" in error
    assert error.count("\n") == 1


def test_scan_on_a_cpu_prints_and_writes_the_same_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scan.SHAPES, "vim", scan.Case(1, (9,), 8, 4, ("forward", "backward")))
    out = tmp_path / "new" / "scan.json"
    assert main(["bench", "scan", "--shapes", "vim", "--repeats", "1", "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == out.read_text(encoding="utf-8")
    report = json.loads(printed)
    assert "float32" in report["machine"]
    assert report["rows"][0]["size"] == "B1 9 E8 N4 K2"
    assert report["rows"][0]["error"] < 1e-4
    assert main(["bench", "scan", "--shapes", "vim", "--repeats", "1", "--out", str(out / "below.json")]) == 2
    assert "choose another place with --out" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vim", "volume", "cross"])
def test_measured_on_a_gpu(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SHAPES, "tiny", SMALL[name])
    rows = gpu.run_gpu(BenchScanConfig(device="cuda", dtype="float32", shapes="tiny"))
    assert [row.step for row in rows] == ["forward", "forward + backward"]
    for row in rows:
        assert row.ours.us > row.floor_us > 0
        assert row.ours.host_us > 0
        assert 0 < max(row.ours.errors.values()) < 1e-5
    assert set(rows[0].ours.errors) == {"out"}
    assert set(rows[1].ours.errors) == {"out", *make_inputs(SMALL[name], torch.float32, "cpu")} - {"dout"}
    assert rows[0].ours.peak_mib < rows[1].ours.peak_mib
    assert SMALL[name].size in capsys.readouterr().out


@pytest.mark.gpu
def test_models_measured_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "vim.json"
    rows = vim.run(BenchVimConfig("vim_tiny", "vit_tiny_patch16_224", "32/2", out=out))
    assert [(row.model, row.step) for row in rows] == [
        (model, step) for step in ("infer", "train") for model in ("vim_tiny", "vit_tiny_patch16_224")
    ]
    assert all(row.eager_ms > 0 and row.graph_ms > 0 and row.peak_mib > 0 for row in rows)
    assert len(json.loads(out.read_text(encoding="utf-8"))["rows"]) == 4


def test_models_and_scans_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "cpu", "--pixels", "32", "--rounds", "1", "--threads", "1", "--out"]
    before = torch.get_num_threads()
    try:
        assert main([*words, str(tmp_path / "cpu.json")]) == 0
    finally:
        torch.set_num_threads(before)
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["what"] == "scan"] == ["numba", "chunked", "loop"] * 2
    assert [row["name"] for row in rows if row["what"] == "1 x 32 px"] == [
        *("vim_tiny (numba)", "vim_tiny (chunked)", "vit_tiny_patch16_224")
    ] * 2
    assert all(row["best_ms"] > 0 and row["times"] > 0 for row in rows)
    assert "vim_tiny (numba)" in capsys.readouterr().out
