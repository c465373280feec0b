"""Settings of every test run; nothing here imports torch, so that the command-line tests start at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# A first call may compile or build a cache, so a deadline per example would measure the machine.
settings.register_profile("ssmvision", deadline=None, derandomize=True)
settings.load_profile("ssmvision")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to waiting threads than they gain, above all on a shared machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
