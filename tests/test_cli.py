from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ssmvision import __version__
from ssmvision.cli import commands, dispatch, main
from ssmvision.cli.commands import COMMANDS, Command
from ssmvision.errors import UserError

seen: list[object] = []


@dataclass(frozen=True)
class Inner:
    """Inner settings.

    Attributes:
        lr: step length.
        sizes: of each stage.
    """

    lr: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    """Outer settings.

    Attributes:
        root: where to start.
        inner: the nested ones.
        names: any mapping.
        mode: one of two.
        fast: a flag.
    """

    root: Path
    inner: Inner = field(default_factory=Inner)
    names: dict[str, int] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    fast: bool = False

    def __post_init__(self) -> None:
        if self.inner.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.inner.lr}")


def run(config: Outer) -> None:
    seen.append(config)


def fail(config: Outer) -> None:
    kind = config.root.name
    if kind == "user":
        raise UserError("volume.nii.gz has 2 channels:\n  give 1")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "bug":
        raise ZeroDivisionError
    __import__(kind)


@pytest.fixture(autouse=True)
def _own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    here = f"{__name__}:Outer"
    own = (
        Command("try", "options", here, f"{__name__}:run"),
        Command("place", "positional", here, f"{__name__}:run", positional=True),
        Command("fail", "fails", here, f"{__name__}:fail", positional=True, extra="recipes"),
    )
    for module in (commands, dispatch):
        monkeypatch.setattr(module, "COMMANDS", (*own, *COMMANDS))


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("ssmvision: error: ")
    return captured.err


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text and command.help in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ssmvision {__version__}\n"


def test_help_of_a_command_shows_documentation_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--inner.lr" in text
    assert "step length" in text
    assert "0.5" in text


def test_group_without_subcommand_lists_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    assert "configs copy" in text
    assert "predict" not in text


@pytest.mark.parametrize("flag", [["--fast"], ["--fast", "true"], ["--fast=true"]])
def test_defaults_file_and_overrides_in_that_order(tmp_path: Path, flag: list[str]) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("root: from_file\ninner: {lr: 1e-3, sizes: [3, 4]}\nnames: {liver: 1, 'a.b': 2}\n")
    second.write_text("mode: b\ninner.lr: 2\n")
    assert main(["try", "--config", str(first), f"--config={second}", "--inner.sizes", "[5]", *flag]) == 0
    assert seen == [Outer(Path("from_file"), Inner(2.0, (5,)), {"liver": 1, "a.b": 2}, "b", True)]


def test_required_settings_as_positionals() -> None:
    assert main(["place", "here", "--mode", "b"]) == 0
    assert seen == [Outer(Path("here"), mode="b")]


def test_print_config_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", "--root", "x", "--inner.lr", "3", "--print_config"]) == 0
    assert seen == []
    saved = tmp_path / "saved.yaml"
    saved.write_text(capsys.readouterr().out)
    assert main(["try", "--config", str(saved)]) == 0
    assert seen == [Outer(Path("x"), Inner(3.0))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root: x\ninner: {lrr: 1}", ["inner.lrr", "'inner.lr'"]),
        ("root: x\nlr: 1", ["'lr'", "'inner.lr'"]),
        ("root: x\nzzzz: 1", ["zzzz", "inner.lr"]),
        ("root: x\ninner: {lr: fast}", ["inner.lr", "fast"]),
        ("root: x\nmode: c", ["mode", "c"]),
        ("- 1\n- 2", ["list"]),
        ("root: [1", ["YAML"]),
    ],
)
def test_bad_file_is_named_with_the_key_and_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = error_of(capsys, "try", "--config", str(path))
    assert all(word in message for word in [str(path), *expected])
    assert seen == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trai"], "'train'"),
        (["xyzzy"], "choose from"),
        (["configs", "sho"], "'configs show'"),
        (["try"], "--root"),
        (["place"], "ROOT"),
        (["place", "a", "b"], "b"),
        (["try", "--root", "x", "--inner.l", "1"], "'--inner.lr'"),
        (["try", "--root", "x", "--inner.lr", "fast"], "fast"),
        (["try", "--root", "x", "--inner.lr", "-1"], "lr must be positive, got -1"),
        (["try", "--config", "no/such.yaml"], "segmentation/"),
        (["try", "--config", "."], "is a folder"),
        (["try", "--config", sys.executable], "not UTF-8"),
        (["models", "--jsno"], "'--json'"),
        (["configs", "list", "--all"], "--all"),
    ],
)
def test_bad_command_line(capsys: pytest.CaptureFixture[str], argv: list[str], expected: str) -> None:
    assert expected in error_of(capsys, *argv)


def test_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "fail", "user") == "ssmvision: error: volume.nii.gz has 2 channels: give 1\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        main(["fail", "--debug", "user"])
    monkeypatch.setenv("SSMVISION_DEBUG", "1")
    with pytest.raises(UserError):
        main(["fail", "user"])


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "interrupt"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_faults_of_ours_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["fail", "bug"])


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    message = error_of(capsys, "fail", "monai")
    assert "monai" in message
    assert "pip install 'ssmvision[recipes]'" in message


@pytest.mark.parametrize("module", ["no_such_module_at_all", "json.no_such_module"])
def test_other_import_errors_are_not_masked(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=module.rpartition(".")[2]):
        main(["fail", module])


def test_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ssmvision", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
