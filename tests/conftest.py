"""Settings of every test run; nothing here imports torch, so that the command-line tests start at once."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# A first call may compile or build a cache, so a deadline per example would measure the machine.
settings.register_profile("ssmvision", deadline=None, derandomize=True)
settings.load_profile("ssmvision")
