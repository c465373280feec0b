"""Marks results with the fault and the part that they belong to, for `tests.faults.score`."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.common import FULL, SilentlyWrongError, cli, run_folder, train_words
from tests.faults.table import FAULTS
from tests.recipes.synthetic import nnunet_folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(number, part): a part of the fault suite, see tests/faults/table.py")
    config.addinivalue_line("markers", "full: injected by `make faults` only; a quicker test elsewhere covers it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not FULL:
        later = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]


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


@dataclass(frozen=True)
class Trained:
    """A finished training of two epochs.

    Args:
        root: its dataset.
        out: its run folder.
    """

    root: Path
    out: Path

    def copy(self, folder: Path) -> Trained:
        """The run in another folder, to be damaged there."""
        shutil.copytree(self.out, folder)
        return Trained(self.root, folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small training that ended well."""
    folder = tmp_path_factory.mktemp("trained")
    root = nnunet_folder(folder / "raw", [(12, 14, 10)] * 2)
    done = cli(*train_words(root, folder / "run"))
    assert done.status == 0, done.said
    return Trained(root, folder / "run")


@pytest.fixture
def cuda() -> str:
    """The first GPU; where there is none the part counts as not run."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return "cuda:0"
