"""U-Mamba: residual U-Nets with state-space layers at the bottleneck (Bot) or after every encoder stage (Enc).

Source: Ma, Li, Wang, "U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation" (arXiv 2401.04722),
section 2, and the authors' code, to whose weights these networks are compatible. 2D and 3D differ there, and here: the
2D decoder has no skip at full resolution, and 2D Enc has a state-space layer at every other stage only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.mamba_layer import MambaLayer
from ssmvision.layers.mixers import Mixer, MixerLike, configure_mixer
from ssmvision.layers.unet_blocks import UpsampleConv, conv_nd, residual_stage
from ssmvision.models.umamba_official import canonical_state, constructor_arguments, official_state
from ssmvision.models.umamba_shape import PerStage, SizePerStage, UNetShape

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["UMambaBot", "UMambaEnc"]


def _run(module: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    # A layer that recomputes by itself would be run a third time.
    done = isinstance(module, nn.Identity) or (isinstance(module, MambaLayer) and module.recomputes(x))
    if checkpointed and torch.is_grad_enabled() and not done:
        out: Tensor = checkpoint(module, x, use_reentrant=False)
    else:
        out = module(x)
    return out


class UNetEncoder(nn.Module):
    """Stem and stages; each stage's output passes through its mixing layer and is both skip and next input."""

    def __init__(self, shape: UNetShape, in_channels: int, layers: Sequence[nn.Module], conv_bias: bool) -> None:
        super().__init__()
        self.grad_checkpointing = False
        features, kernels, blocks = shape.features, shape.kernel_sizes, shape.encoder_blocks
        self.stem = residual_stage(in_channels, features[0], kernels[0], blocks[0], conv_bias=conv_bias)
        self.mamba_layers = nn.ModuleList(layers)
        before = (features[0], *features)
        self.stages = nn.ModuleList(
            residual_stage(before[s], features[s], kernels[s], blocks[s], shape.strides[s], conv_bias)
            for s in range(shape.n_stages)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Every stage's map, finest first, of (B, in_channels, *spatial)."""
        x = _run(self.stem, x, self.grad_checkpointing)
        skips = []
        for stage, layer in zip(self.stages, self.mamba_layers, strict=True):
            x = _run(layer, _run(stage, x, self.grad_checkpointing), self.grad_checkpointing)
            skips.append(x)
        return skips


class UNetDecoder(nn.Module):
    """Upsample, join the skip, convolve, and a head at every level; level 0 is the deepest."""

    def __init__(self, shape: UNetShape, out_channels: int, deep_supervision: bool, conv_bias: bool) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.deep_supervision = deep_supervision
        stages, upsample, heads = [], [], []
        self.joins = []
        for level, s in enumerate(reversed(range(shape.n_stages - 1))):
            width, kernel = shape.features[s], shape.kernel_sizes[s]
            self.joins.append(s > 0 or shape.spatial_dims == 3)
            joined = 2 * width if self.joins[-1] else width
            upsample.append(UpsampleConv(shape.features[s + 1], width, shape.strides[s + 1]))
            stages.append(residual_stage(joined, width, kernel, shape.decoder_blocks[level], conv_bias=conv_bias))
            heads.append(conv_nd(width, out_channels, (1,) * shape.spatial_dims))
        self.stages = nn.ModuleList(stages)
        self.upsample_layers = nn.ModuleList(upsample)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits from the encoder's maps: full resolution, or a list of all levels with full resolution first."""
        x = skips[-1]
        outputs: list[Tensor] = []
        levels = zip(self.upsample_layers, self.stages, self.seg_layers, self.joins, reversed(skips[:-1]), strict=True)
        for upsample, stage, head, joins, skip in levels:
            x = upsample(x)
            if joins:
                x = torch.cat((x, skip), 1)
            x = _run(stage, x, self.grad_checkpointing)
            if self.deep_supervision or head is self.seg_layers[-1]:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class _UMamba(nn.Module):
    """What both networks share: size checks, switches, official names."""

    encoder: UNetEncoder
    decoder: UNetDecoder
    shape: UNetShape
    fixed_input_size: tuple[int, ...] | None = None

    def _choose(self, mixer: MixerLike, options: Mapping[str, Any] | None) -> Mixer | None:
        """The mixer of the layers, recorded where it has a name."""
        self.mixer_name = mixer if isinstance(mixer, str) else None
        self.mixer_args = dict(options or {})
        return configure_mixer(mixer, self.mixer_args)

    @property
    def deep_supervision(self) -> bool:
        """Whether forward returns a list with every level's logits; can be set at any time."""
        return self.decoder.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, on: bool) -> None:
        self.decoder.deep_supervision = on

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every stage and state-space layer in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = self.decoder.grad_checkpointing = enable

    def set_mixer_autocast(self, enable: bool = True) -> None:
        """Let autocast reach into the mixing layers, which compute in float32 otherwise; see `MambaLayer.autocast`."""
        for module in self.modules():
            if isinstance(module, MambaLayer):
                module.autocast = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: A_log, D and step-size biases."""
        names = set()
        for prefix, module in self.named_modules():
            if module is not self and callable(getattr(module, "no_weight_decay", None)):
                names |= {f"{prefix}.{name}" for name in module.no_weight_decay()}
        return names

    @classmethod
    def from_official_kwargs(cls, *, mixer: MixerLike = "mamba", **official: Any) -> Self:
        """Build from the official constructor's arguments (input_channels, num_classes, n_stages, conv_op, ...).

        Args:
            mixer: as in the constructor.
            official: see `ssmvision.models.umamba_official.constructor_arguments`; lists are not changed.

        Raises:
            ValueError, TypeError: an argument that U-Mamba's networks cannot honour.
        """
        return cls(**constructor_arguments(official), mixer=mixer)

    def convert_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict in this network's keys, for `load_state_dict`.

        Raises:
            ValueError: duplicates that differ, or keys that this network does not have.
        """
        return canonical_state(state_dict, set(self.state_dict()))

    def official_state_dict(self) -> dict[str, Tensor]:
        """The state dict under all keys, duplicates included, that the official classes load with strict=True."""
        return official_state(self.state_dict())

    def _checked(self, x: Tensor) -> Tensor:
        """The input, if this network can run it; the errors are those of forward."""
        size = self.shape.check_size(x.shape[2:], "input size")
        fixed = self.fixed_input_size
        if fixed is not None and size != fixed:
            raise ValueError(
                f"{type(self).__name__} cannot run size {size}: its channel-token layers were built for "
                f"input_size={fixed}; use sliding windows of {fixed}, or build it anew with input_size={size}"
            )
        return x


class UMambaBot(_UMamba):
    """U-Mamba with one state-space layer, on the coarsest feature map.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        n_stages: resolutions, if no per-stage list tells; 6 if nothing does.
        features_per_stage: channels per stage; by default min(32 * 2^s, 320 in 3D, 512 in 2D).
        kernel_sizes: odd; one int, or per stage an int or one per axis.
        strides: one int for all stages after the first, or per stage (the first is usually 1) an int or one per axis.
        n_conv_per_stage: residual blocks per encoder stage. The coarser half of the stages always has one, as in the
            authors' networks.
        n_conv_per_stage_decoder: residual blocks per decoder level, deepest first; the finer half always has one.
        deep_supervision: forward returns a list of every level's logits. The attribute can be set later; without it
            the coarser levels' heads exist and get no gradient.
        mixer: "mamba"; "none" for the same network with nn.Identity in the layers' place; another registered name
            (`ssmvision.layers.mixers.mixer_names()`); a callable `(dim) -> nn.Module` on tokens (B, L, dim); or a
            `Mixer`, which can also work on grids.
        mixer_args: options of the mixer.
        conv_bias: whether the identity blocks' convolutions have a bias (published configurations: yes).

    Shape:
        (B, in_channels, *spatial) -> logits (B, out_channels, *spatial), or with deep supervision a list of
        n_stages - 1 logits, full resolution first. Any size that the strides divide, with more than one voxel left.

    Raises:
        ValueError: settings that contradict each other, an unknown mixer, or, from forward, a size that the strides do
            not divide.

    Attributes:
        mixer_name, mixer_args: the mixer's name, None for one without; its options.

    Example:
        >>> UMambaBot(3, 1, 2, features_per_stage=[4, 8])(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 2, 8, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        n_stages: int | None = None,
        features_per_stage: PerStage | None = None,
        kernel_sizes: SizePerStage = 3,
        strides: SizePerStage = 2,
        n_conv_per_stage: PerStage = 2,
        n_conv_per_stage_decoder: PerStage = 2,
        deep_supervision: bool = False,
        mixer: MixerLike = "mamba",
        mixer_args: Mapping[str, Any] | None = None,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        shape = self.shape = UNetShape.build(
            spatial_dims,
            n_stages,
            features_per_stage,
            kernel_sizes,
            strides,
            n_conv_per_stage,
            n_conv_per_stage_decoder,
        )
        resolved = self._choose(mixer, mixer_args)
        self.encoder = UNetEncoder(shape, in_channels, [nn.Identity() for _ in shape.features], conv_bias)
        self.mamba_layer: nn.Module = nn.Identity()
        if resolved is not None:
            self.mamba_layer = MambaLayer(shape.features[-1], mixer=resolved, spatial_dims=spatial_dims)
        self.decoder = UNetDecoder(shape, out_channels, deep_supervision, conv_bias)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image; shapes and errors as the class says."""
        skips = self.encoder(self._checked(x))
        skips[-1] = _run(self.mamba_layer, skips[-1], self.encoder.grad_checkpointing)
        out: Tensor | list[Tensor] = self.decoder(skips)
        return out


class UMambaEnc(_UMamba):
    """U-Mamba with a state-space layer after every encoder stage (3D) or every other one up to the last (2D).

    A stage whose map has at most as many voxels as channels uses channel tokens: each channel is a token, its voxels
    are the features, and the layer's parameters have the shape of that map. A network with such a stage runs at
    `input_size` only (`fixed_input_size` tells), so larger images need sliding windows of that size. Grid mixers and
    mixer="none" have no such stages.

    Args:
        spatial_dims, in_channels, out_channels: see `UMambaBot`.
        input_size: spatial size of the training patches, one per axis, or one int for all axes.
        n_stages, features_per_stage, kernel_sizes, strides, n_conv_per_stage, n_conv_per_stage_decoder,
            deep_supervision, mixer, mixer_args, conv_bias: see `UMambaBot`.

    Attributes:
        fixed_input_size: the only spatial size the network can run, None if it can run any that the strides divide.

    Shape:
        See `UMambaBot`.

    Raises:
        ValueError: see `UMambaBot`; `input_size` not divisible by the strides; from forward, another size than
            `fixed_input_size`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        input_size: int | Sequence[int],
        n_stages: int | None = None,
        features_per_stage: PerStage | None = None,
        kernel_sizes: SizePerStage = 3,
        strides: SizePerStage = 2,
        n_conv_per_stage: PerStage = 2,
        n_conv_per_stage_decoder: PerStage = 2,
        deep_supervision: bool = False,
        mixer: MixerLike = "mamba",
        mixer_args: Mapping[str, Any] | None = None,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        shape = self.shape = UNetShape.build(
            spatial_dims,
            n_stages,
            features_per_stage,
            kernel_sizes,
            strides,
            n_conv_per_stage,
            n_conv_per_stage_decoder,
        )
        sizes = [input_size] * spatial_dims if isinstance(input_size, int) else [int(n) for n in input_size]
        self.input_size = shape.check_size(sizes, "input_size")
        layers = _encoder_layers(shape, self.input_size, self._choose(mixer, mixer_args))
        if any(isinstance(layer, MambaLayer) and layer.channel_token for layer in layers):
            self.fixed_input_size = self.input_size
        self.encoder = UNetEncoder(shape, in_channels, layers, conv_bias)
        self.decoder = UNetDecoder(shape, out_channels, deep_supervision, conv_bias)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image; shapes and errors as the class says."""
        out: Tensor | list[Tensor] = self.decoder(self.encoder(self._checked(x)))
        return out


def _encoder_layers(shape: UNetShape, input_size: tuple[int, ...], mixer: Mixer | None) -> list[nn.Module]:
    """A mixing layer or nn.Identity per stage; in 2D every other stage counted back from the last."""
    layers: list[nn.Module] = []
    for s, size in enumerate(shape.map_sizes(input_size)):
        skipped = shape.spatial_dims == 2 and (shape.n_stages - 1 - s) % 2 == 1
        if mixer is None or skipped:
            layers.append(nn.Identity())
            continue
        voxels, width = math.prod(size), shape.features[s]
        channel_token = mixer.layout == "tokens" and voxels <= width
        layers.append(MambaLayer(voxels if channel_token else width, channel_token, mixer, shape.spatial_dims))
    return layers
