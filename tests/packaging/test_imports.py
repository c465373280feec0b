"""Who may import whom, and what importing the light modules may load."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from ssmvision.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {"kernels": "ssmvision.kernels", "recipes": "ssmvision.recipes", "configs": "ssmvision.configs"}
HEAVY = {"monai", "lightning", "pytorch_lightning", "nibabel", "nilearn", "albumentations", "matplotlib", "skimage"}

# What the modules under a name may import of ours; the longest name that matches counts. `ssmvision` itself is the
# facade, the command line reaches recipes only by name, when a sub-command runs.
MAY_IMPORT = {
    "ssmvision.kernels": {"ssmvision.kernels"},
    "ssmvision.ops": {"ssmvision.kernels", "ssmvision.ops"},
    "ssmvision.layers": {"ssmvision.kernels", "ssmvision.layers"},
    "ssmvision.errors": set(),
    "ssmvision.pickled_numbers": set(),
    "ssmvision.convert": {"ssmvision.errors", "ssmvision.pickled_numbers"},
    "ssmvision.metrics": {"ssmvision.metrics"},
    "ssmvision.models": {*(f"ssmvision.{name}" for name in ("convert", "errors", "kernels", "layers", "models"))},
    "ssmvision.bench": {
        *(f"ssmvision.{name}" for name in ("bench", "errors", "export", "kernels", "layers", "models", "ops")),
        "ssmvision.cli.model_counts",
    },
    "ssmvision.export": {*(f"ssmvision.{name}" for name in ("errors", "export", "kernels", "layers"))},
    "ssmvision.configs": set(),
    "ssmvision": {
        *("ssmvision.cli", "ssmvision.convert", "ssmvision.doctor", "ssmvision.errors", "ssmvision.export"),
        *("ssmvision.extras", "ssmvision.flops", "ssmvision.hub"),
        *("ssmvision.kernels", "ssmvision.layers", "ssmvision.metrics", "ssmvision.models", "ssmvision.ops"),
        *("ssmvision._timm_hook", "ssmvision.__version__"),
    },
    "ssmvision.recipes": {"ssmvision"},
}  # fmt: skip


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [ROOTS.get(relative.parts[0], relative.parts[0]), *relative.parts[1:]]
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {
    module_name(path): path for root in ("ssmvision", *ROOTS) for path in sorted((ROOT / root).rglob("*.py"))
}  # fmt: skip


@cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """Absolute names imported anywhere in a file, and whether that happens when the file is imported."""
    found = set()
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while waiting:
        node, at_once = waiting.pop()
        at_once = at_once and not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _only_for_types(node))
        waiting += [(inner, at_once) for inner in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            found |= {(alias.name, at_once) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found |= {(f"{node.module}.{alias.name}", at_once) for alias in node.names}
    return frozenset(found)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def below(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def test_there_are_sources() -> None:
    assert {"ssmvision.kernels.registry", "ssmvision.recipes.segmentation.config", "ssmvision.cli"} <= set(SOURCES)


def test_no_import_points_up() -> None:
    for module, path in SOURCES.items():
        rule = max((name for name in MAY_IMPORT if below(module, {name})), key=len)
        for name, _ in imports(path):
            assert name.split(".")[0] not in ROOTS, f"{module} imports {name}: the root folders go by ssmvision.*"
            allowed = name.split(".")[0] != "ssmvision" or below(name, MAY_IMPORT[rule])
            assert allowed, f"{module} imports {name}; it may import {sorted(MAY_IMPORT[rule])}"


def test_imaging_packages_stay_in_the_recipes() -> None:
    for module, path in SOURCES.items():
        if not below(module, {"ssmvision.recipes"}):
            assert not {name for name, _ in imports(path) if name.split(".")[0] in HEAVY}, module


def test_albumentations_has_one_importer() -> None:
    users = [name for name, path in SOURCES.items() if any(n.startswith("albumentations") for n, _ in imports(path))]
    assert users == ["ssmvision.recipes.data.albumentations"]


LIGHT = sorted({command.config.split(":")[0] for command in COMMANDS})


def test_light_modules_load_nothing_heavy() -> None:
    heavy = HEAVY | {"torch", "timm", "torchvision", "scipy", "triton", "cv2", "safetensors"}
    packages = [
        name for name, path in SOURCES.items() if path.name == "__init__.py" and below(name, {"ssmvision.recipes"})
    ]
    names = ["ssmvision", "ssmvision.cli", "ssmvision.extras", "ssmvision.configs", *packages, *LIGHT]
    code = f"import sys, {', '.join(names)}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def loaded(module: str) -> set[str]:
    """Foreign packages that importing one of our modules loads, through others of ours."""
    seen, waiting, found = set[str](), [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in [name, *(target for target, at_once in imports(SOURCES[name]) if at_once)]:
            parts = imported.split(".")
            prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
            waiting += [prefix for prefix in prefixes if prefix in SOURCES]
            found |= {parts[0]} - {"ssmvision"}
    return found


def test_commands_that_do_not_train_start_without_monai_and_lightning() -> None:
    modules = {command.name: command.run.split(":")[0] for command in COMMANDS}
    for name in ("check", "plan", "predict", "evaluate", "validate", "postprocess", "report", "fuse"):
        assert not {"monai", "lightning"} & loaded(modules[name]), name
    assert {"monai", "lightning"} <= loaded(modules["train"])


def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ssmvision", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1
