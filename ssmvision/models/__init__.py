"""The networks. Importing this package registers those that timm can build."""

from ssmvision.models.umamba import UMambaBot, UMambaEnc
from ssmvision.models.vim import VisionMamba

__all__ = ["UMambaBot", "UMambaEnc", "VisionMamba"]
