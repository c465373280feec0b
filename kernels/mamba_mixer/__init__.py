"""The whole Mamba mixer, from tokens to tokens, as one operator with few launches and a hand-written backward."""

from ssmvision.kernels.mamba_mixer.interface import mamba_mixer

__all__ = ["mamba_mixer"]
