"""The wheel as a user gets it: complete, pure Python, and working in an environment with no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"ssmvision": "ssmvision", **{name: f"ssmvision/{name}" for name in ("kernels", "recipes", "configs")}}
META = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def shipped(root: Path) -> set[str]:
    """Every file of the four folders, by its path in the wheel; whatever is put there is meant to be shipped."""
    return {
        f"{target}/{path.relative_to(root / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build needs, so that it leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in META:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def dist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def test_wheel_has_every_file_and_no_other(tree: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    payload = {name for name in names if ".dist-info/" not in name}
    assert payload == shipped(tree)
    assert {"ssmvision/py.typed", "ssmvision/kernels/registry.py", "ssmvision/recipes/__init__.py"} <= payload


def test_wheel_is_pure_python(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_metadata(wheel: Path) -> None:
    from ssmvision import __version__

    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(name).decode().splitlines()
    assert f"Version: {__version__}" in lines
    assert "Requires-Python: >=3.10" in lines
    assert {"Provides-Extra: recipes", "Provides-Extra: demo", "Provides-Extra: dev"} <= set(lines)
    required = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert not [line for line in required if "monai" in line or "lightning" in line or "mamba" in line]


def test_sdist_can_be_built_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*META, "kernels/registry.py", "recipes/segmentation/config.py"} <= names


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of a fresh environment with only the wheel; its dependencies are seen through a path file."""
    home = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    programs = home / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    # A path line does not run that folder's own .pth files, so an editable install there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def run(programs: Path, *command: str) -> str:
    environment = {"PATH": str(programs), "HOME": str(programs)}  # no compiler to be found
    done = subprocess.run(
        [str(programs / command[0]), *command[1:]], cwd=programs, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_runs(clean: Path) -> None:
    assert run(clean, "ssmvision", "--help").startswith("usage: ssmvision")
    assert "segmentation/demo.yaml" in run(clean, "ssmvision", "configs", "list").split()
    assert "usage: ssmvision train" in run(clean, "ssmvision", "train", "--help")


def test_model_trains_a_step_without_a_compiler(clean: Path) -> None:
    code = """
import shutil, sys
import timm, torch, ssmvision
assert ssmvision.__file__.startswith(sys.prefix), ssmvision.__file__
assert not [name for name in ("cc", "gcc", "c++", "nvcc", "ninja") if shutil.which(name)]
model = timm.create_model("vim_tiny", img_size=64, num_classes=3)
model(torch.randn(2, 3, 64, 64)).sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
print("trained")
"""
    assert run(clean, "python", "-c", code) == "trained\n"
