"""`ssmvision doctor`: what is installed, which devices there are, and which backend each op picks and why."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from ssmvision.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BackendChoice", "Device", "DoctorConfig", "Report", "examine", "run"]

PACKAGES = (
    *("ssmvision", "torch", "triton", "torchvision", "timm", "numpy", "numba", "safetensors", "jsonargparse", "rich"),
    *("monai", "lightning", "nibabel", "scipy", "scikit-learn", "blosc2", "albumentations", "opencv-python-headless"),
    *("jinja2", "matplotlib", "nilearn", "pydicom", "highdicom", "scikit-image", "onnx", "onnxruntime"),
)


@dataclass(frozen=True)
class DoctorConfig:
    """Show versions, devices, and which backend each op picks and why.

    Attributes:
        dtype: of the tensors that the ops would be called with.
        json: print JSON instead of tables.
    """

    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    json: bool = False


@dataclass(frozen=True)
class Device:
    """A device of this machine, or the reason why a kind of device cannot be used."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True)
class BackendChoice:
    """What an op picks on a device: the backend's name (None: no backend runs) and why each other one is not it."""

    op: str
    device: str
    picked: str | None
    refused: dict[str, str]


@dataclass(frozen=True)
class Report:
    """All that `ssmvision doctor` knows; `versions` maps distributions to their version, None where not installed."""

    python: str
    system: str
    versions: dict[str, str | None]
    devices: list[Device]
    dtype: str
    backends: list[BackendChoice]
    environment: dict[str, str]


def examine(dtype: str = "float32") -> Report:
    """Look at this process's installation and machine.

    Raises:
        UserError: the environment variable SSMVISION_BACKEND names a backend that an op does not have.
    """
    devices = _devices()
    return Report(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.machine()}",
        versions={name: _version(name) for name in PACKAGES},
        devices=devices,
        dtype=dtype,
        backends=[choice for device in devices if device.usable for choice in _choices(device.name, dtype)],
        environment={key: value for key, value in sorted(os.environ.items()) if key.startswith("SSMVISION_")},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[Device]:
    import torch

    cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    devices = [Device("cpu", True, cpu)]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.1f} GiB"
        devices.append(Device(f"cuda:{index}", True, f"{device.name}, sm_{device.major}{device.minor}, {memory}"))
    if len(devices) == 1:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        devices.append(Device("cuda", False, f"{built}; no CUDA device is visible"))
    if platform.system() == "Darwin":
        usable = torch.backends.mps.is_available()
        devices.append(Device("mps", usable, "Apple GPU" if usable else "torch sees no Apple GPU"))
    return devices


def _choices(device: str, dtype: str) -> list[BackendChoice]:
    import torch

    import ssmvision.ops  # noqa: F401  (registers every op's backends)
    from ssmvision.kernels import registry

    request = registry.Request(device, getattr(torch, dtype))
    choices = []
    for op in registry.ops():
        try:
            reasons = registry.explain(op, request)
        except ValueError as error:
            raise UserError(str(error)) from error
        picked = next((name for name, reason in reasons.items() if reason is None), None)
        refused = {
            name: reason or f"can run; {picked} is preferred" for name, reason in reasons.items() if name != picked
        }
        choices.append(BackendChoice(op, device, picked, refused))
    return choices


def run(config: DoctorConfig) -> None:
    """Print the report.

    Raises:
        UserError: see `examine`.
    """
    report = examine(config.dtype)
    if config.json:
        print(json.dumps(asdict(report), indent=2))
        return
    from rich.console import Console

    _print(report, Console(highlight=False))


def _print(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    versions = Table("package", "version", box=None)
    versions.add_row("python", escape(report.python))
    for name, found in report.versions.items():
        versions.add_row(name, found or "not installed")
    devices = Table("device", "usable", "detail", box=None)
    for device in report.devices:
        devices.add_row(device.name, "yes" if device.usable else "no", escape(device.detail))
    backends = Table("op", "device", "backend", "why not the others", box=None)
    for choice in report.backends:
        why = "\n".join(f"{name}: {reason}" for name, reason in choice.refused.items()) or "there is no other"
        backends.add_row(choice.op, choice.device, choice.picked or "none", escape(why))
    for table in (versions, devices, backends):
        console.print(table, end="\n\n")
    for key, value in report.environment.items():
        console.print(f"{key}={value}", markup=False)
    console.print(f"Backends are those for {report.dtype}; `backend=` in a call or SSMVISION_BACKEND overrides.")
