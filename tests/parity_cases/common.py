"""What every golden-folder format shares: the result of one comparison and the deterministic fill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.fill import fill_state_dict, make_input

__all__ = ["Comparison", "compare", "filled_state", "load_json", "seeded_input"]


@dataclass(frozen=True)
class Comparison:
    """One array of one case: the largest error and what it may be, in the same unit."""

    case: str
    array: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)  # NaN compares false


def compare(case: str, array: str, got: Any, expected: Any, tolerance: float) -> Comparison:
    """Largest absolute difference, in float64; a wrong shape is an infinite error."""
    got64 = np.asarray(got.detach().cpu() if isinstance(got, torch.Tensor) else got, dtype=np.float64)
    expected64 = np.asarray(expected, dtype=np.float64)
    if got64.shape != expected64.shape:
        return Comparison(case, f"{array} shape {got64.shape} != {expected64.shape}", float("inf"), tolerance)
    error = float(np.abs(got64 - expected64).max()) if got64.size else 0.0
    return Comparison(case, array, error, tolerance)


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def filled_state(manifest: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The manifest's tensors as a state dict, floats in `dtype`."""
    state = {key: torch.from_numpy(np.array(value)) for key, value in fill_state_dict(manifest).items()}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def seeded_input(seed: int, shape: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(make_input(seed, shape)).to(dtype)
