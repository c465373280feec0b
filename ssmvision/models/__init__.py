"""The networks. Importing this package registers those that timm can build."""

from ssmvision.models.vim import VisionMamba

__all__ = ["VisionMamba"]
