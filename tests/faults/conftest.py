"""Marks results with the fault and the part that they belong to, for `tests.faults.score`."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.faults.common import SilentlyWrongError, run_folder
from tests.faults.table import FAULTS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number, part): a part of the fault suite, see tests/faults/table.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is not None:
        number, part = mark.args[0], mark.kwargs["part"]
        assert number in FAULTS, f"fault {number} is not in the table"
        silent = call.excinfo is not None and call.excinfo.errisinstance(SilentlyWrongError)
        report.user_properties.append(("fault", {"number": number, "part": part, "silent": silent}))
    return report


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a small network for one channel and two classes that labels about half of a volume."""
    return run_folder(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def cuda() -> str:
    """The first GPU; where there is none the part counts as not run."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return "cuda:0"
