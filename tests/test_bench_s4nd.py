"""`ssmvision bench s4nd` on a CPU: what is timed against what, errors, memory, tables, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ssmvision.bench import s4nd, s4nd_cpu, s4nd_gpu
from ssmvision.bench.floors import H200
from ssmvision.bench.s4nd import Exact, Figures, Row, table
from ssmvision.bench.s4nd_config import BenchS4NDConfig
from ssmvision.bench.s4nd_shapes import DEPTHWISE, FFT, MATMUL, OURS, SHAPES, Map, contestants, make_inputs, part_of
from ssmvision.cli import main

SMALL = {"plane": Map("", 2, 6, (5, 8)), "volume": Map("", 1, 5, (4, 6, 5)), "line": Map("", 3, 4, (9,))}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", SMALL)
def test_ours_and_the_fft_compute_the_same(name: str) -> None:
    inputs = make_inputs(SMALL[name], torch.float64, "cpu")
    runs = {key: make() for key, make in contestants(inputs, "toeplitz", "auto").items()}
    torch.testing.assert_close(runs[OURS].forward(), runs[FFT].forward())
    for found, expected in zip(runs[OURS].training(), runs[FFT].training(), strict=True):
        torch.testing.assert_close(found, expected)
    assert list(runs[OURS].leaves) == ["u", *(f"kernel{a}" for a in range(len(SMALL[name].grid))), "D"]


def test_depthwise_convolution_keeps_the_grid_and_has_seven_taps_an_axis() -> None:
    inputs = make_inputs(SMALL["volume"], torch.float32, "cpu")
    run = contestants(inputs, "auto", "auto")[DEPTHWISE]()
    expected = F.conv3d(inputs["u"], inputs["depthwise"], padding=3, groups=5)
    torch.testing.assert_close(run.forward(), expected)
    assert inputs["depthwise"].shape == (5, 1, 7, 7, 7)
    assert [t.shape for t in run.training()] == [inputs["u"].shape, inputs["depthwise"].shape]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [1 << 22, 500])
def test_errors_are_those_of_the_computation(dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(s4nd.REFERENCE_VALUES, "cpu", limit)
    inputs = make_inputs(SMALL["plane"], dtype, "cpu")
    exact = Exact(inputs)
    out, worst = exact.errors_of(contestants(inputs, "toeplitz", "auto")[OURS]())
    low, high = (1e-9, 1e-6) if dtype == torch.float32 else (1e-4, 1e-2)
    assert low < out <= worst < high
    wrong = contestants(inputs, "toeplitz", "auto")[OURS]()
    forward = wrong.forward
    wrong.forward = lambda: forward() * 1.5
    assert exact.errors_of(wrong)[0] == pytest.approx(0.5, rel=0.02)


def test_part_holds_whole_features() -> None:
    part = part_of(make_inputs(SMALL["plane"], torch.float32, "cpu"), 2)
    assert {name: tuple(t.shape) for name, t in part.items()} == {
        "u": (2, 2, 5, 8),
        "dout": (2, 2, 5, 8),
        "kernel0": (2, 10),
        "kernel1": (2, 16),
        "D": (2,),
        "depthwise": (2, 1, 7, 7),
    }


def test_memory_is_the_most_held_at_once() -> None:
    def work() -> torch.Tensor:
        first = torch.zeros(1 << 20)
        second = first + 1
        del first
        return second * 2

    assert s4nd_cpu.allocated_mib(work) == pytest.approx(8, abs=0.01)


def test_works_take_turns() -> None:
    calls: list[str] = []
    times = s4nd_cpu.in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 3
    assert [len(t) for t in times] == [2, 2]


def test_command_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SMALL["plane"])
    out = tmp_path / "deep" / "s4nd.json"
    assert main(["bench", "s4nd", "--shapes", "tiny", "--repeats", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "| (tiny) B2 H6 5x8 | forward            |" in text
    rows = json.loads(out.read_text())["rows"]
    assert [(row["step"], row["backend"]) for row in rows] == [
        ("forward", "toeplitz"),
        ("forward + backward", "toeplitz"),
    ]
    for row in rows:
        assert row["floor_us"] > 0
        assert list(row["figures"]) == [OURS, FFT, DEPTHWISE]
        for name, figures in row["figures"].items():
            assert 0 < figures["us"] <= figures["median_us"]
            assert figures["peak_mib"] > 0
            assert figures["error"] is None if name == DEPTHWISE else figures["error"] < 1e-5
    assert main(["bench", "s4nd", "--shapes", "tiny", "--repeats", "1", "--backend", "fft", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["backend"] == "fft"
    assert list(row["figures"]) == [OURS, MATMUL, FFT, DEPTHWISE]


def test_sizes_on_a_gpu() -> None:
    sizes = {shape.size for shape in SHAPES.values() if shape.device == "cuda"}
    assert sizes == {"B128 H96 56x56", "B128 H384 14x14", "B2 H32 64x64x64", "B1 H32 128x128x128"}


@pytest.mark.parametrize(
    ("error", "told"),
    [(torch.OutOfMemoryError(), "out of memory"), (RuntimeError("not in a graph\nsee"), "failed: not in a graph")],
)
def test_rows_of_a_gpu_without_its_clock(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's path with its graphs, clock and memory counter replaced: the FFT does not run, depthwise long."""
    monkeypatch.setitem(SHAPES, "tiny", SMALL["plane"])
    inputs = make_inputs(SMALL["plane"], torch.float32, "cpu")
    held: list[int] = []

    def peak(work: Callable[[], object], base: int) -> float:
        held.append(base)
        if len(held) == 5:
            raise error
        work()
        return 7.0

    def once(work: Callable[[], object]) -> float:
        work()
        calls.append(work)
        return 10.0 if len(calls) <= 4 else 60_000.0 + len(calls) % 3

    calls: list[object] = []
    replaced = {
        "side_stream": nullcontext,
        "make_inputs": lambda shape, dtype, device: inputs,
        "capture": lambda work: SimpleNamespace(replay=work),
        "in_turns_us": lambda works: [float(i + 1) for i, work in enumerate(works) if work() is not None],
        "peak_mib": peak,
        "device_rates": lambda: H200,
        "chosen_backend": lambda shape, dtype, device, config: device,
        "_once_us": once,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(s4nd_gpu, name, value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    rows = s4nd_gpu.measure("tiny", "float32", BenchS4NDConfig(device="cuda"))
    assert [(row.step, row.backend) for row in rows] == [("forward", "cuda"), ("forward + backward", "cuda")]
    for row in rows:
        assert row.figures[FFT] == told
        ours, matmul, depthwise = row.figures[OURS], row.figures[MATMUL], row.figures[DEPTHWISE]
        assert isinstance(ours, Figures)
        assert isinstance(matmul, Figures)
        assert isinstance(depthwise, Figures)
        assert (ours.us, matmul.us, depthwise.us, ours.median_us, ours.peak_mib) == (1, 2, 60_001, None, 7)
        assert ours.error is not None
        assert 0 < ours.error < 1e-5
        assert depthwise.error is None
    assert told in table(rows)
    assert "matmul / ours" in table(rows)


def test_floor_on_a_gpu_is_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s4nd_gpu, "device_rates", lambda: H200)
    assert s4nd_gpu.floor_us(SHAPES["stage1"], "bfloat16", 0) == pytest.approx(36, rel=0.02)
    assert s4nd_gpu.floor_us(SHAPES["volume128"], "bfloat16", 0) == pytest.approx(63, rel=0.02)
    assert s4nd_gpu.floor_us(SHAPES["volume128"], "float32", 1) == pytest.approx(5 * 63, rel=0.02)


def test_table_says_what_did_not_run() -> None:
    figures = {
        OURS: Figures(10.0, None, 3.0, 1e-3),
        FFT: "out of memory",
        DEPTHWISE: Figures(25, 30, 4, None),
    }
    lines = table([Row("a", "B1 H1 2x2", "bfloat16", "forward", "toeplitz", 5.0, dict(figures))]).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[2])), strict=True))
    assert cells["FFT us"] == "out of memory"
    assert cells["depthwise 7^d us"] == "25 (median 30)"
    assert (cells["FFT / ours"], cells["depthwise 7^d / ours"]) == ("", "2.5")
    assert (cells["ours error"], cells["FFT error"], cells["FFT MiB"]) == ("1e-03", "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "image,none"], "there is no shape 'none'; choose from all, stage1"),
        (["--repeats", "0"], "--repeats 0: give 1 or more"),
    ],
)
def test_bad_settings(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "s4nd", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(s4nd.UserError, match="--device cuda: PyTorch sees no CUDA device"):
        s4nd.run(BenchS4NDConfig(device="cuda"))
