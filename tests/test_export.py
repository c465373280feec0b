"""ONNX files against eager PyTorch in ONNX Runtime: every family of models, every kind of route."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import ssmvision  # noqa: F401  (registers the models)
from ssmvision.errors import UserError
from ssmvision.export import ExportReport, to_onnx, to_program
from ssmvision.export import onnx as onnx_module
from ssmvision.export.lowering import in_double, layer_by_layer
from ssmvision.export.routes import axis_order
from ssmvision.kernels.routes import ROUTES
from ssmvision.kernels.selective_scan import selective_scan_nd
from tests.small_models import FORMS

TOLERANCE = 2e-5


def image(*size: int) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


class Scan(nn.Module):
    """Only the scan, of maps (B, *grid, 8) whose slices are its inputs."""

    def __init__(self, routes: tuple[str, ...], merge: Any, full: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        k = len(routes)
        self.routes, self.merge, self.full = routes, merge, full
        self.A = nn.Parameter(-torch.rand(k, 8, 3))
        self.D, self.bias = (nn.Parameter(torch.randn(k, 8)) if full else None for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        k = len(self.routes)
        several = torch.stack([x * (i + 1) for i in range(k)], 1)
        out, last = selective_scan_nd(
            x if self.full else several,
            several - 1,
            self.A,
            several[..., :3],
            several[..., 3:6],
            self.D,
            (several if self.merge == "none" else x) if self.full else None,
            self.bias,
            True,
            True,
            routes=self.routes,
            merge=self.merge,
        )
        return torch.cat([out.flatten(1), last.flatten(1)], 1)


@pytest.mark.parametrize(
    ("grid", "routes", "merge", "full"),
    [
        ((7,), ("forward", "backward"), "mean", True),
        ((3, 4), ("row", "column", "row_reverse", "column_reverse"), "sum", True),
        ((3, 4), ("row", "column_reverse"), "none", False),
        ((5, 4), ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd"), "sum", True),
        ((2, 3, 4), ("dhw", "whd_reverse", "inter_slice"), "none", True),
    ],
    ids=str,
)
def test_scan(grid: tuple[int, ...], routes: tuple[str, ...], merge: str, full: bool, tmp_path: Path) -> None:
    report = to_onnx(Scan(routes, merge, full), tmp_path / "scan.onnx", image(*grid, 8))
    assert report.error < TOLERANCE


def test_every_whole_route_is_an_order_of_axes() -> None:
    for name, (dims, _) in ROUTES.items():
        for spatial in (dims,) if dims else (1, 2, 3):
            assert (axis_order(name, spatial) is None) == name.startswith("skip")


@pytest.mark.parametrize("write", [to_onnx, to_program])
@pytest.mark.parametrize("name", FORMS)
def test_networks(name: str, write: Callable[..., ExportReport], tmp_path: Path) -> None:
    form, path = FORMS[name], tmp_path / ("m.onnx" if write is to_onnx else "m.pt2")
    report = write(form.build(), path, form.images(1), samples=[form.images(2)])
    assert report.error < (1e-4 if write is to_onnx else 1e-5)
    assert (report.argmax_equal, report.inputs) == (1, 3)
    assert report.path.stat().st_size == pytest.approx(report.megabytes * 1e6)


def test_open_axes_take_other_sizes(tmp_path: Path) -> None:
    import onnxruntime

    scan = Scan(("row", "column_reverse"), "sum", True)
    to_onnx(scan, tmp_path / "m.onnx", image(3, 5, 8), (0, 1, 2))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    other = torch.randn(3, 7, 2, 8)
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), scan(other), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = Scan(("skip_even_even",), "sum", True)
    with pytest.raises(UserError, match="leaves positions out, so that height and width must be fixed"):
        to_onnx(skip, tmp_path / "m.onnx", image(6, 4, 8), (0, 1, 2))
    with pytest.raises(UserError, match=r"ends in '\.pt'; name the file \.onnx"):
        to_onnx(skip, tmp_path / "m.pt", image(6, 4, 8))
    with pytest.raises(UserError, match="kernels of one size"):
        to_onnx(timm.create_model("s4nd_convnext_micro"), tmp_path / "m.onnx", image(3, 32, 32), (0, 2, 3))
    monkeypatch.setattr(onnx_module, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"no_such_package not installed; pip install 'ssmvision\[onnx\]'"):
        to_onnx(skip, tmp_path / "m.onnx", image(6, 4, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_wrong_file_is_removed(wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module, "_session", lambda file: lambda values: values[0] + wrong)
    with pytest.raises(ValueError, match=r"m\.onnx: differs from PyTorch by .* where 0\.0001 is allowed"):
        to_onnx(nn.Identity(), tmp_path / "m.onnx", image(5))
    assert not list(tmp_path.iterdir())


class Magnifier(nn.Module):
    """Takes most of its input away again, so that what rounding left counts more."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.times) - self.times


@pytest.mark.parametrize(("times", "passes"), [(1.0, False), (3e4, True), (1e8, False)])
def test_a_model_that_magnifies_rounding_may_differ_by_as_much(
    times: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file's result is off by 0.8 of how far PyTorch's is from float64's; at 1e8 nothing is left of the input.
    monkeypatch.setattr(onnx_module, "_session", lambda file: lambda values: values[0] * (1 - 2e-4))
    x = image(1000)
    if not passes:
        with pytest.raises(ValueError, match="differs from PyTorch by"):
            to_onnx(Magnifier(times), tmp_path / "m.onnx", x)
        return
    with pytest.raises(ValueError, match="differs from PyTorch by"):
        to_onnx(Magnifier(times), tmp_path / "m.onnx", x, tolerance=1e-4)  # a number that is given holds
    report = to_onnx(Magnifier(times), tmp_path / "m.onnx", x)
    rounding = float((Magnifier(times)(x) - x).abs().max() / x.abs().max())
    assert report.eager_error == pytest.approx(rounding, rel=0.5)
    assert report.exact_error == pytest.approx(2e-4, rel=0.01)
    assert 1e-4 < report.exact_error < report.eager_error < 1e-2


def test_a_file_further_from_float64_than_pytorch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module, "_session", lambda file: lambda values: values[0] * (1 - 1e-3))
    with pytest.raises(ValueError, match=r"it is 1\.0e-03 away from float64, PyTorch [2-9]\.\de-04"):
        to_onnx(Magnifier(3e4), tmp_path / "m.onnx", image(1000))


class Single(nn.Module):
    """Has a matrix that `double()` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = (torch.eye(4),)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix[0]


def test_a_model_that_does_not_run_in_float64_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module, "_session", lambda file: lambda values: values[0] * (1 - 1e-3))
    with pytest.raises(ValueError, match=r"where 0\.0001 is allowed, and its float64 form cannot be run .*dtype"):
        to_onnx(Single(), tmp_path / "m.onnx", image(4))


@pytest.mark.parametrize("name", FORMS)
def test_float64_of_what_is_exported(name: str) -> None:
    form = FORMS[name]
    inputs = form.images(1)
    ready = layer_by_layer(form.build(), inputs)
    with torch.no_grad():
        found, wanted = ready(*inputs), in_double(ready)(*(t.double() for t in inputs))
    assert (found.dtype, wanted.dtype) == (torch.float32, torch.float64)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_means_of_large_volumes_keep_their_digits(tmp_path: Path) -> None:
    import onnxruntime

    norm, x = nn.InstanceNorm3d(2).eval(), image(2, 64, 64, 64)
    to_onnx(norm, tmp_path / "m.onnx", x)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = norm.double()(x.double())
    # One sum over a volume: 1e-6 and more.
    assert float((torch.from_numpy(got) - wanted).norm() / wanted.norm()) < 2e-7
