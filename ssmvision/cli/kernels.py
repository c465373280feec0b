"""`ssmvision kernels build`: compiles every CUDA kernel variant that ships, so that no first call has to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmvision.errors import UserError

if TYPE_CHECKING:
    from ssmvision.kernels.cuda.program import Build, Variant

__all__ = ["BuildConfig", "run_build"]

NATIVE = "native"


@dataclass(frozen=True)
class BuildConfig:
    """Compile the CUDA kernels ahead of their first use; needs no GPU, except for "native".

    Attributes:
        arch: architectures with commas between them, such as "sm_80,sm_90"; "native" is that of every GPU here.
        jobs: compilations side by side; 0 is one a core.
        list: only print what would be built, and what the disk holds already.
    """

    arch: str = NATIVE
    jobs: int = 0
    list: bool = False


def run_build(config: BuildConfig) -> None:
    """Build or list the variants, a line each.

    Raises:
        UserError: an unknown architecture, no GPU for "native", a part of CUDA that is not installed, or variants that
            do not compile.
    """
    import ssmvision.ops  # noqa: F401  (registers every op's programs)
    from ssmvision.kernels.cuda.program import programs
    from ssmvision.kernels.cuda.toolkit import MissingToolkitError

    if config.jobs < 0:
        raise UserError(f"--jobs is {config.jobs}; give the number of compilations side by side, or 0 for one a core")
    try:
        archs = _archs(config.arch)
        work = [(variant, arch) for program in programs() for variant in program.shipped() for arch in archs]
        if config.list:
            _print_list(work)
        else:
            _build(work, config.jobs or os.cpu_count() or 1)
    except MissingToolkitError as error:
        raise UserError(str(error)) from error


def _archs(text: str) -> list[str]:
    from ssmvision.kernels.cuda.availability import compilable_archs

    known = compilable_archs()
    archs: dict[str, None] = {}
    for word in re.split(r"[,\s]+", text.strip(", ")):
        if word == NATIVE:
            archs.update(dict.fromkeys(_native()))
        elif re.fullmatch(r"sm_\d+[af]?", word) and word.rstrip("af") in known:
            archs[word] = None
        else:
            raise UserError(f"--arch names {word!r}; this compiler knows {NATIVE}, {', '.join(known)}")
    return list(archs)


def _native() -> Iterator[str]:
    import torch

    from ssmvision.kernels.cuda.availability import available, device_arch

    if torch.cuda.device_count() == 0:
        raise UserError(f"--arch {NATIVE}: {available()}; name the architecture, such as --arch sm_90")
    for index in range(torch.cuda.device_count()):
        if (reason := available(index)) is not None:
            raise UserError(f"--arch {NATIVE}: {reason}")
        yield device_arch(index)


def _print_list(work: list[tuple[Variant, str]]) -> None:
    for variant, arch in work:
        print(f"{arch}  {'on disk' if variant.is_stored(arch) else 'to build'}  {variant.label}")
    print(f"{len(work)} kernel builds")


def _build(work: list[tuple[Variant, str]], jobs: int) -> None:
    failures = 0
    # Threads do: the compiler runs outside Python's lock, and a process each would first have to load it.
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(variant.build, arch): (variant, arch) for variant, arch in work}
        for future in as_completed(futures):
            variant, arch = futures[future]
            failures += not _report(variant, arch, future)
    print(f"{len(work) - failures} of {len(work)} kernel builds done")
    if failures:
        raise UserError(f"{failures} of {len(work)} kernel builds failed; each one's reason is above")


def _report(variant: Variant, arch: str, future: Future[Build]) -> bool:
    """Print a finished build's line; False where it failed."""
    from ssmvision.kernels.cuda.compiler import CompileError

    try:
        build = future.result()
    except (CompileError, FileNotFoundError) as error:
        print(f"{arch}  failed    {variant.label}\n{error}", flush=True)
        return False
    how = "on disk" if build.from_disk else f"{build.seconds:5.1f} s"
    print(f"{arch}  {how}  {len(build.cubin) / 1024:7.1f} KiB  {variant.label}", flush=True)
    return True
