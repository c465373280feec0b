"""A whole model on a GPU in a process that reaches no compiler: none on PATH, no CUDA_HOME, an empty cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

CHILD = """
import os, shutil
found = [name for name in ("nvcc", "ptxas", "gcc", "cc", "clang", "ld") if shutil.which(name)]
assert not found, found
import timm, torch
import ssmvision
torch.manual_seed(0)
model = timm.create_model("vim_small", num_classes=10).cuda()
with torch.autocast("cuda", dtype=torch.bfloat16):
    loss = model(torch.randn(2, 3, 224, 224, device="cuda")).float().square().mean()
loss.backward()
print(repr(loss.item()), repr(sum(p.grad.double().square().sum().item() for p in model.parameters())))
"""


def run(folder: Path) -> list[float]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    (folder / "empty").mkdir(exist_ok=True)
    environment = {
        **kept,
        "PATH": str(folder / "empty"),
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "SSMVISION_CACHE": str(folder / "cache"),
        "SSMVISION_BACKEND": "cuda",
    }
    child = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return [float(word) for word in child.stdout.split()]


def test_vim_trains_without_a_compiler_and_then_from_the_cache(tmp_path: Path) -> None:
    first = run(tmp_path)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "kernels").glob("*.cubin")}
    assert entries
    assert run(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "kernels").iterdir()} == entries
