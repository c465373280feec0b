from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmvision.cli import main
from ssmvision.kernels.cuda import cache, program
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.kernels.cuda.program import Program, ProgramSpec, register_program
from tests.kernels.cuda_programs import HEADERS, KERNELS, make_program, write_package

PACKAGE = "op_in_a_folder"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.ENV_VAR, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_told", set())
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    write_package(tmp_path, PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield PACKAGE
    sys.modules.pop(PACKAGE, None)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Architectures that the real compiler was called for."""
    calls: list[str] = []

    def counted(source: str, *, arch: str, **rest: object) -> bytes:
        calls.append(arch)
        return compile_cubin(source, arch=arch, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(program, "compile_cubin", counted)
    return calls


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_reads_what_the_first_compiled(package: str, folder: Path, compilations: list[str]) -> None:
    first = make_program(package).variant({"FACTOR": 2})
    assert not first.is_stored("sm_90")
    built = first.build("sm_90")
    assert not built.from_disk
    assert first.is_stored("sm_90")
    again = make_program(package).variant({"FACTOR": 2}).build("sm_90")
    assert again.from_disk
    assert again.cubin == built.cubin
    assert compilations == ["sm_90"]
    assert len(stored(folder)) == 1
    assert stored(folder)[0].startswith("scaling-sm_90-")


def test_whatever_changes_the_result_changes_the_key(
    package: str, folder: Path, tmp_path: Path, compilations: list[str]
) -> None:
    make_program(package).variant({"FACTOR": 2}).build("sm_90")
    make_program(package).variant({"FACTOR": 3}).build("sm_90")
    make_program(package).variant({"FACTOR": 2}).build("sm_80")
    fast = ProgramSpec("scaling", package, "csrc/kernel.cu", KERNELS, [], options=["--use_fast_math"])
    Program(fast).variant({"FACTOR": 2}).build("sm_90")
    header = tmp_path / package / "csrc" / "detail" / "scale.cuh"
    header.write_text(HEADERS["detail/scale.cuh"].replace("FACTOR * x", "FACTOR * x + 1"), encoding="utf-8")
    make_program(package).variant({"FACTOR": 2}).build("sm_90")
    assert compilations == ["sm_90", "sm_90", "sm_80", "sm_90", "sm_90"]
    assert len(stored(folder)) == 5


def test_borders_between_the_parts_of_a_key_count() -> None:
    assert cache.key_of(["ab", "c"]) != cache.key_of(["a", "bc"])
    assert cache.key_of(["ab", ""]) != cache.key_of(["ab"])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_compiled_again(
    damage: str, package: str, folder: Path, compilations: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    variant = make_program(package).variant({"FACTOR": 2})
    cubin = variant.build("sm_90").cubin
    (entry,) = folder.iterdir()
    raw = entry.read_bytes()
    flipped = bytearray(raw)
    flipped[-100] ^= 1
    entry.write_bytes({"truncated": raw[:-64], "flipped": bytes(flipped), "empty": b"", "foreign": cubin}[damage])
    assert not variant.is_stored("sm_90")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rebuilt = variant.build("sm_90")
    assert (rebuilt.cubin, rebuilt.from_disk) == (cubin, False)
    assert compilations == ["sm_90", "sm_90"]
    assert [record.message for record in caplog.records] == [
        f"the compiled kernel {entry} is damaged; it is compiled again"
    ]
    assert entry.read_bytes() == raw


def test_a_folder_that_cannot_be_made_costs_one_warning(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(cache.ENV_VAR, str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not make_program(package).variant({"FACTOR": 2}).build("sm_90").from_disk
    kept = [record.message for record in caplog.records if "cannot be kept" in record.message]
    assert len(kept) == 1
    assert cache.ENV_VAR in kept[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_costs_one_warning_and_leaves_nothing(
    code: int, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with caplog.at_level(logging.WARNING):
        for factor in (2, 3):
            assert make_program(package).variant({"FACTOR": factor}).build("sm_90").cubin[:4] == b"\x7fELF"
    assert [os.strerror(code) in record.message for record in caplog.records] == [True]
    assert stored(folder) == []


def test_an_entry_that_cannot_be_read_is_compiled_again(
    package: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variant = make_program(package).variant({"FACTOR": 2})
    variant.build("sm_90")
    (entry,) = folder.iterdir()
    entry.unlink()
    entry.mkdir()  # an error for every user, root too
    with caplog.at_level(logging.WARNING):
        assert variant.build("sm_90").cubin[:4] == b"\x7fELF"
    assert any("cannot be read" in record.message for record in caplog.records)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_other_users_may_read_an_entry_as_the_umask_says(package: str, folder: Path) -> None:
    before = os.umask(0o022)
    try:
        make_program(package).variant({"FACTOR": 2}).build("sm_90")
    finally:
        os.umask(before)
    (entry,) = folder.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o644


def test_without_a_home_folder_kernels_are_still_compiled(
    package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (cache.ENV_VAR, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with caplog.at_level(logging.WARNING):
        built = make_program(package).variant({"FACTOR": 2}).build("sm_90")
    assert built.cubin[:4] == b"\x7fELF"
    assert any("not kept on disk" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/ssmvision/kernels"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/ssmvision/kernels"),
        ("darwin", {}, "home/Library/Caches/ssmvision/kernels"),
        ("win32", {}, "home/AppData/Local/ssmvision/kernels"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/ssmvision/kernels"),
        ("linux", {"SSMVISION_CACHE": "mine", "XDG_CACHE_HOME": "xdg"}, "mine/kernels"),
    ],
)
def test_the_cache_is_where_the_platform_wants_it(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (cache.ENV_VAR, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cache.sys, "platform", platform)  # type: ignore[attr-defined]
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    assert cache.cache_folder() == Path(expected)


def _build_in_child(start: object, queue: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    made: list[int] = []

    def slow_build() -> bytes:
        made.append(1)
        return b"cubin" * 50_000

    results = [cache.cached("shared", f"key{i % 3}", slow_build)[0] == b"cubin" * 50_000 for i in range(60)]
    queue.put((all(results), len(made)))  # type: ignore[attr-defined]


def test_four_processes_at_once_agree(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, queue = context.Event(), context.Queue()
    children = [context.Process(target=_build_in_child, args=(start, queue)) for _ in range(4)]
    for child in children:
        child.start()
    start.set()
    outcomes = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(timeout=30)
        assert child.exitcode == 0
    assert all(right for right, _ in outcomes)
    assert all(made <= 3 for _, made in outcomes)
    assert stored(folder) == [f"shared-key{i}.cubin" for i in range(3)]


def test_definitions_are_checked_and_ordered(package: str) -> None:
    made = make_program(package)
    assert made.variant({"A": 1, "FACTOR": 2}) is made.variant({"FACTOR": 2, "A": 1})
    assert made.variant({"FACTOR": 2, "A": "x"}).label == "scaling A=x FACTOR=2"
    with pytest.raises(ValueError, match="'1X' is no macro name"):
        made.variant({"1X": 1})
    with pytest.raises(ValueError, match="FACTOR spans lines"):
        made.variant({"FACTOR": "1\n#error"})


@pytest.fixture
def registered(package: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The test's program as the only one."""
    import ssmvision.ops  # noqa: F401  (registers the package's own before the table is replaced)

    monkeypatch.setattr(program, "_PROGRAMS", {})
    return register_program(make_program(package).spec)


def test_a_name_is_registered_once(registered: Program) -> None:
    assert program.programs() == (registered,)
    with pytest.raises(ValueError, match="named scaling is registered already"):
        register_program(registered.spec)
    with pytest.raises(ValueError, match="no CUDA program is named 'scan'; registered: scaling"):
        program.kernel("scan", "scale", {}, 0)


@pytest.mark.usefixtures("registered")
def test_kernels_build_builds_every_variant_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["kernels", "build", "--arch", "sm_80,sm_90"]
    assert main([*command, "--list"]) == 0
    assert capsys.readouterr().out.count("to build") == 4
    assert not folder.exists()
    assert main([*command, "--jobs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 of 4 kernel builds done"
    assert sum(" KiB  scaling FACTOR=" in line for line in lines) == 4
    assert len(stored(folder)) == 4
    assert main(command) == 0
    assert capsys.readouterr().out.count("on disk") == 4
    assert main([*command, "--list"]) == 0
    assert capsys.readouterr().out.count("on disk") == 4


def test_kernels_build_fails_where_a_variant_does(
    registered: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PACKAGE / "csrc" / "kernel.cu").write_text("#if FACTOR == 3\n#error three is too many\n#endif\n")
    assert main(["kernels", "build", "--arch", "sm_90"]) == 2
    captured = capsys.readouterr()
    assert "three is too many" in captured.out
    assert "failed    scaling FACTOR=3" in captured.out
    assert "1 of 2 kernel builds done" in captured.out
    assert "1 of 2 kernel builds failed" in captured.err


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sm_91"], "--arch names 'sm_91'; this compiler knows native, sm_80"),
        (["--arch", "sm_75"], "--arch names 'sm_75'"),
        (["--arch", ""], "--arch names ''"),
        (["--arch", "sm_90", "--jobs", "-1"], "--jobs is -1"),
    ],
)
def test_kernels_build_refuses_what_it_cannot_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "build", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_native_without_a_gpu_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["kernels", "build"]) == 2
    assert "such as --arch sm_90" in capsys.readouterr().err
