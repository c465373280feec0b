"""The networks. Importing this package registers those that timm can build."""

# timm as a whole before any part of it: two threads that import different parts first can deadlock inside timm
# (tests/packaging/test_timm_hook.py).
import timm  # noqa: F401

from ssmvision.models.umamba import UMambaBot, UMambaEnc
from ssmvision.models.vim import VisionMamba

__all__ = ["UMambaBot", "UMambaEnc", "VisionMamba"]
