"""The networks. Importing this package registers those that timm can build."""

# timm as a whole before any part of it: two threads that import different parts first can deadlock inside timm
# (tests/packaging/test_timm_hook.py).
import timm  # noqa: F401

from ssmvision.models import s4nd_models  # noqa: F401  (registers)
from ssmvision.models.fusion_mamba import FusionMamba
from ssmvision.models.s4nd_convnext import S4NDConvNeXt
from ssmvision.models.s4nd_vit import S4NDVisionTransformer
from ssmvision.models.ssm_hier import HierarchicalSSM
from ssmvision.models.ssm_iso import IsotropicSSM
from ssmvision.models.umamba import UMambaBot, UMambaEnc
from ssmvision.models.useg_s4nd import USegS4NDBot, USegS4NDEnc
from ssmvision.models.vim import VisionMamba
from ssmvision.models.vmamba import VMamba

__all__ = [
    "FusionMamba",
    "HierarchicalSSM",
    "IsotropicSSM",
    "S4NDConvNeXt",
    "S4NDVisionTransformer",
    "UMambaBot",
    "UMambaEnc",
    "USegS4NDBot",
    "USegS4NDEnc",
    "VMamba",
    "VisionMamba",
]
