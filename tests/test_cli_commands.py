from __future__ import annotations

import ast
import json
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import docstring_parser
import pytest

from ssmvision import doctor
from ssmvision.cli import main
from ssmvision.cli.commands import COMMANDS, Command
from ssmvision.cli.config_files import shipped_names
from ssmvision.cli.models import registered_models
from ssmvision.kernels import registry


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_row_of_the_table_is_real(command: Command) -> None:
    module, name = command.config.split(":")
    config = getattr(import_module(module), name)
    assert is_dataclass(config)
    assert all(item.name not in ("config", "help", "debug") for item in fields(config))
    module, name = command.run.split(":")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.name.split(), "--help"]) == 0
    assert f"usage: ssmvision {command.name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_setting_is_documented_by_its_own_line(command: Command) -> None:
    module, name = command.config.split(":")
    assert undocumented(getattr(import_module(module), name)) == []


def undocumented(config: type) -> list[str]:
    """Fields whose text --help cannot show, since the class documents them together with others or not at all."""
    assert is_dataclass(config)
    documented = {param.arg_name for param in docstring_parser.parse(config.__doc__ or "").params if param.description}
    missing = [f"{config.__name__}.{item.name}" for item in fields(config) if item.name not in documented]
    nested = (kind for kind in get_type_hints(config).values() if is_dataclass(kind) and isinstance(kind, type))
    return missing + [path for kind in nested for path in undocumented(kind)]


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configurations_hold_only_known_keys(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"segmentation/demo.yaml": "demo", "resolution/mnist.yaml": "resolution digits"}
    own |= {"resolution/spacing.yaml": "resolution spacing"}
    own |= {"fusion/demo_gpu.yaml": "fusion demo"}
    own |= dict.fromkeys((other for other in shipped_names() if other.startswith("study/")), "study --out out")
    own |= dict.fromkeys(("fusion/small.yaml", "fusion/published.yaml"), "fusion train --data.a a --data.b b --out run")
    command = own.get(name, "train --data.root data --out run").split()
    assert main([*command, "--config", name, "--print_config"]) == 0, capsys.readouterr().err


def test_configs_list_show_and_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "list"]) == 0
    name = capsys.readouterr().out.split()[0]
    assert main(["configs", "show", name]) == 0
    text = capsys.readouterr().out
    assert main(["configs", "copy", name.removesuffix(".yaml"), str(tmp_path)]) == 0
    copy = tmp_path / Path(name).name
    assert copy.read_text(encoding="utf-8") == text

    copy.write_text("edited")
    assert main(["configs", "copy", name, str(copy)]) == 2
    assert f"{copy} exists" in capsys.readouterr().err
    assert copy.read_text() == "edited"
    assert main(["configs", "copy", name, str(copy), "--overwrite"]) == 0
    assert copy.read_text(encoding="utf-8") == text


def test_configs_copy_makes_folders_but_never_a_mess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = shipped_names()[0]
    assert main(["configs", "copy", name, str(tmp_path / "new" / "mine.yaml")]) == 0
    assert (tmp_path / "new" / "mine.yaml").is_file()
    assert main(["configs", "copy", name, str(tmp_path / "new" / "mine.yaml" / "below.yaml")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["configs", "show", "segmentation/dmo.yaml"]) == 2
    assert "available" in capsys.readouterr().err


def test_models_are_counted_and_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.name: row for row in registered_models("vim_t*")}
    assert set(rows) == {"vim_tiny", "vim_tiny_stride8"}
    assert rows["vim_tiny"].parameters == 7_148_008
    assert rows["vim_tiny"].input_size == (3, 224, 224)
    assert rows["vim_tiny"].licence == "apache-2.0"
    assert main(["models", "--filter", "vim_tiny", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["vim_tiny"]
    assert main(["models", "--filter", "vim_tiny"]) == 0
    assert "7.15 M" in capsys.readouterr().out
    assert main(["models", "--filter", "resnet*"]) == 0
    assert "no model matches" in capsys.readouterr().out


def test_doctor_tells_what_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"]
    assert {key: report["devices"][0][key] for key in ("name", "usable")} == {"name": "cpu", "usable": True}
    scan = next(row for row in report["backends"] if row["op"] == "selective_scan" and row["device"] == "cpu")
    assert scan["picked"] not in (None, "reference")
    assert "preferred" in scan["refused"]["reference"]
    assert main(["doctor", "--dtype", "bfloat16"]) == 0
    text = capsys.readouterr().out
    assert "bfloat16" in text
    assert "selective_scan" in text


def test_doctor_asks_for_every_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs of one machine may be of different generations."""
    devices = [doctor.Device(f"cuda:{i}", True, "") for i in range(2)]
    monkeypatch.setattr(doctor, "_devices", lambda: devices)
    monkeypatch.setattr(
        registry, "explain", lambda op, request, backend="auto": {"cuda": f"asked for {request.device}"}
    )
    found = {(row.device, row.refused["cuda"]) for row in doctor.examine().backends}
    assert found == {("cuda:0", "asked for cuda:0"), ("cuda:1", "asked for cuda:1")}


def test_doctor_follows_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SSMVISION_CACHE", raising=False)
    monkeypatch.setenv("SSMVISION_BACKEND", "reference")
    report = doctor.examine()
    scan = next(row for row in report.backends if row.op == "selective_scan")
    assert scan.picked == "reference"
    assert report.environment == {"SSMVISION_BACKEND": "reference"}
    monkeypatch.setenv("SSMVISION_BACKEND", "warp_drive")
    assert main(["doctor"]) == 2
    assert "warp_drive" in capsys.readouterr().err
