"""Vision Mamba against stored outputs of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity_cases import vim

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "vim"
MINI = sorted(FOLDER.glob("mini_*.json"))


def misses(path: Path) -> list[str]:
    comparisons = list(vim.run_case(path))
    assert len(comparisons) > 5
    return [f"{c.array}: {c.error:.2e} > {c.tolerance:.2e}" for c in comparisons if not c.passed]


@pytest.mark.parametrize("path", MINI, ids=lambda path: path.stem)
def test_small_networks_agree(path):
    assert misses(path) == []


@pytest.mark.slow
def test_vim_tiny_agrees():
    assert misses(FOLDER / "vim_tiny_224.json") == []


def test_folder_is_recognised(tmp_path):
    assert vim.matches(FOLDER)
    (tmp_path / "plans.json").write_text("[1]")
    assert not vim.matches(tmp_path)


def edited(tmp_path, case, **changes):
    manifest = json.loads((FOLDER / f"{case}.json").read_text()) | changes
    (tmp_path / manifest["npz"]).write_bytes((FOLDER / manifest["npz"]).read_bytes())
    path = tmp_path / f"{case}.json"
    path.write_text(json.dumps(manifest))
    return path, manifest


def test_wrong_norm_epsilon_is_seen(tmp_path):
    path, manifest = edited(tmp_path, "mini_64_eps")
    manifest["source"]["kwargs"]["norm_epsilon"] = 1e-6
    path.write_text(json.dumps(manifest))
    assert any(miss.startswith("logits:") for miss in misses(path))


def test_unknown_arrays_and_losses_are_errors(tmp_path):
    path, manifest = edited(tmp_path, "mini_64_cls_first", loss="mean of the logits")
    with pytest.raises(ValueError, match="mean of the logits"):
        misses(path)
    path, manifest = edited(tmp_path, "mini_64_cls_first")
    np.savez(tmp_path / manifest["npz"], attention=np.zeros(3))
    with pytest.raises(ValueError, match="attention"):
        misses(path)
