"""FusionMamba: fusion of two registered images of one scene by state-space networks.

Source: Xie, Cui, Tan, Zheng, Yu, "FusionMamba: Dynamic Feature Enhancement for Multimodal Image Fusion with Mamba"
(arXiv 2404.09498; Visual Intelligence 2, 37, 2024) and the published code, to whose weights the network is compatible.
Another network of this name, for pan-sharpening (arXiv 2404.07932), is not meant.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvision.layers.coupled_ssm import CoupledFusion
from ssmvision.layers.fusion_attention import BiAttention
from ssmvision.layers.fusion_blocks import DFFM, DVSSBlock
from ssmvision.layers.fusion_conv import LearnableDescriptiveConv
from ssmvision.layers.fusion_patch import PatchExpanding, PatchMerging
from ssmvision.layers.fusion_scan import Gate, SubgridScan
from ssmvision.layers.norm import LayerNorm
from ssmvision.models.fusion_mamba_official import lean_state

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FusionMamba"]

FusionBlock = Literal["dffm", "coupled"]
PATCH = 4
# What `for_inference` gives another dtype: the blocks, without the parameters that the scan reads in its own.
BLOCKS = ("layers", "Cross_block")
WIDE = (".Ds", ".dt_projs_bias", ".A_log", ".angles", ".dt_bias", ".D")
TINY: dict[str, Any] = {"depths": (2, 2, 1, 2), "depths_decoder": (2, 1, 2, 2)}


def _run(block: DVSSBlock, x: Tensor, pending: Tensor | None, checkpointed: bool) -> tuple[Tensor, Tensor]:
    if not checkpointed:
        return block.branch(x, pending)
    x, pending = checkpoint(block.branch, x, pending, use_reentrant=False)
    return x, pending


def _rates(drop_path_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per block, stage by stage, growing linearly from 0."""
    total = sum(depths)
    rates = iter([drop_path_rate * i / max(total - 1, 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _reflected(size: int, length: int, device: torch.device) -> Tensor:
    """Indices (length,) of a signal of `size` continued by reflection, however short it is."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(length, device=device) % period
    return torch.where(index < size, index, period - index)


class Stage(nn.Module):
    """Blocks of one resolution, before them an expansion (decoder), after them a merging (encoder)."""

    def __init__(
        self,
        blocks: Sequence[DVSSBlock],
        downsample: PatchMerging | None = None,
        upsample: PatchExpanding | None = None,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the next stage's input."""
        if self.upsample is not None:
            x = self.upsample(x)
        pending = None
        for block in self.blocks:
            assert isinstance(block, DVSSBlock)
            x, pending = _run(block, x, pending, self.grad_checkpointing and torch.is_grad_enabled())
        if pending is not None:
            x = x + pending
        return x if self.downsample is None else self.downsample(x)


class FusionMamba(nn.Module):
    """Two one-channel images in, one out: a shared encoder, a DFFM per resolution, and a decoder.

    With `faithful=False` (the default) the network is the published one without what has no effect: the DFFM of the
    finest maps, whose result nothing reads; the masks of ones in every LDC; and unused projections. It takes images of
    any size, continued by reflection and cropped again. Parameters, and multiply-adds of the layers (scans not counted)
    at 256x256 pixels:

    - published code: 225,419,541 and 45.2 G; tiny: 141,934,037 and 24.0 G
    - gate "own": 163,819,456 and 44.1 G (27 % and 2.4 % fewer); tiny: 101,567,616 and 22.8 G (28 % and 4.6 %)
    - gate "official": 162,271,168 and 43.9 G (28 % and 2.9 % fewer); tiny: 100,019,328 and 22.6 G (30 % and 5.6 %)

    Args:
        depths: DVSS blocks per encoder stage, finest first.
        depths_decoder: the same for the decoder, coarsest first.
        dims: width per stage, finest first, each twice the one before; the first a multiple of 8.
        d_state: states per channel of the DVSS blocks.
        fusion_d_state: the same for the DFFMs (the published code's argument `d_state`); None is `d_state`.
        drop_path_rate: of the last block of the encoder and the first of the decoder, falling linearly to 0.
        faithful: the published network, tensor for tensor, so that its checkpoints load with plain
            `load_state_dict`. Height and width must then be multiples of the stride. The finest DFFM is kept but not
            run; it and the unused projections get no gradient.
        gate: the second gate of the DFFMs: "own", made from the second image's features, as the first gate is from
            the first's; or "official", made from the first gate, which is a mistake of the published code that all
            its weights are trained with. None is "official" where faithful and "own" otherwise.
        fusion_block: "dffm", the published one, or "coupled": both images' maps are scanned with states that see each
            other (`CoupledFusion`, after Coupled Mamba) and added.

    Attributes:
        stride: pixels that an element of the coarsest map stands for, along an axis.

    Shape:
        x1, x2: (B, 1, H, W), floating point in [0, 1], registered; in published weights x1 is MRI or the visible image,
        x2 is CT, PET, SPECT or the infrared image. Returns (B, 1, H, W), about [0, 1] after training; not clamped.

    Raises:
        ValueError: settings that contradict each other, or, from forward, images that do not fit.
        TypeError: from forward, images that are not floating point.

    Example:
        >>> net = FusionMamba(depths=(1, 1), depths_decoder=(1, 1), dims=(8, 16))
        >>> net(torch.zeros(1, 1, 30, 17), torch.ones(1, 1, 30, 17)).shape
        torch.Size([1, 1, 30, 17])
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        depths_decoder: Sequence[int] = (2, 9, 2, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        *,
        d_state: int = 16,
        fusion_d_state: int | None = None,
        drop_path_rate: float = 0.1,
        faithful: bool = False,
        gate: Gate | None = None,
        fusion_block: FusionBlock = "dffm",
    ) -> None:
        super().__init__()
        self.faithful = faithful
        self.gate: Gate = gate or ("official" if faithful else "own")
        _check(depths, depths_decoder, dims, faithful, d_state, self.gate)
        _check_block(fusion_block, faithful, self.gate)
        self.fusion_block = fusion_block
        self.stride: int = PATCH * 2 ** (len(dims) - 1)

        def embed() -> PatchEmbed:
            return PatchEmbed(
                None, PATCH, in_chans=1, embed_dim=dims[0], norm_layer=LayerNorm, flatten=False, output_fmt="NHWC"
            )

        def blocks(dim: int, rates: Sequence[float]) -> list[DVSSBlock]:
            return [DVSSBlock(dim, d_state, rate, base_mask=faithful) for rate in rates]

        self.patch_embed1, self.patch_embed2 = embed(), embed()
        rates, last = _rates(drop_path_rate, depths), len(dims) - 1
        self.layers = nn.ModuleList(
            Stage(blocks(dim, rates[i]), PatchMerging(dim) if i < last else None) for i, dim in enumerate(dims)
        )
        rates = [stage[::-1] for stage in _rates(drop_path_rate, depths_decoder[::-1])[::-1]]
        self.layers_up = nn.ModuleList(
            Stage(blocks(dim, rates[i]), upsample=PatchExpanding(2 * dim) if i else None)
            for i, dim in enumerate(reversed(dims))
        )
        fusion_state = d_state if fusion_d_state is None else fusion_d_state
        self.Cross_block = nn.ModuleDict(
            {
                str(i): CoupledFusion(dims[i], fusion_state)
                if fusion_block == "coupled"
                else DFFM(dims[i], fusion_state, self.gate, official=faithful)
                for i in range(0 if faithful else 1, len(dims))
            }
        )
        self.final_up = PatchExpanding(dims[0], PATCH)
        self.final_conv = nn.Conv2d(dims[0] // PATCH, 1, 1)
        self.apply(_initialise)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """The published CT-MRI model: depths 2-2-1-2 and 2-1-2-2; `settings` as in the constructor."""
        return cls(**{**TINY, **settings})

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every DVSS block in the backward pass instead of keeping its activations."""
        for stage in (*self.layers, *self.layers_up):
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: A, D and step-size biases."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if module is not self and callable(getattr(module, "no_weight_decay", None))
            for name in module.no_weight_decay()
        }

    def convert_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict in this network's keys, for `load_state_dict`.

        A network with gate "own" gets second gates that were never trained, and a warning that says so.

        Raises:
            ValueError: a constant of the published network has another value, or `fusion_block` is not the published.
        """
        if self.fusion_block != "dffm":
            raise ValueError("published weights are of networks with fusion_block='dffm'; build it so")
        return dict(state_dict) if self.faithful else lean_state(state_dict, self.gate)

    def for_inference(self, dtype: torch.dtype = torch.float32) -> Self:
        """A copy in evaluation mode that only infers, with everything computed that depends on weights alone.

        LDC kernels are multiplied out, decay rates exponentiated, attentions' norms folded into the layers behind them,
        and blocks compute in `dtype`; the stream of residuals between them, the embeddings, the head and the scans'
        states stay as wide as they are, so that the fused image is not rounded to `dtype`. The copy has other
        parameters: it can neither be trained nor saved.

        Args:
            dtype: of the blocks' weights and activations: float32 (or float64, for a network of that dtype), bfloat16
                or float16.
        """
        fast = copy.deepcopy(self).eval().requires_grad_(False)
        for module in fast.modules():
            if isinstance(module, BiAttention | LearnableDescriptiveConv | SubgridScan):
                module.fold_()
        for name, parameter in fast.named_parameters():
            if name.startswith(BLOCKS) and not name.endswith(WIDE):
                parameter.data = parameter.data.to(dtype)
        return fast

    def encode(self, x1: Tensor, x2: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both images through the shared encoder.

        Args:
            x1, x2: (B, 1, H, W), multiples of `stride`.

        Returns:
            per stage, finest first, its input (2 B, h, w, C), the second image's half after the first's; and the sum of
            both images' coarsest maps (B, h, w, C).
        """
        # Autocast must not narrow the stream of residuals.
        x = torch.cat((self.patch_embed1(x1), self.patch_embed2(x2))).to(x1.dtype)
        skips = []
        for stage in self.layers:
            skips.append(x)
            x = stage(x)
        first, second = x.chunk(2)
        return skips, first + second

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fuse two images; shapes and errors as the class says."""
        height, width = self._checked(x1, x2)
        first, second = self._padded(x1), self._padded(x2)
        skips, x = self.encode(first, second)
        for i, stage in enumerate(self.layers_up):
            level = len(skips) - i
            x = stage(x + self.Cross_block[str(level)](*skips[level].chunk(2)) if i else x)
        fused = torch.add(self._head(x), first + second, alpha=2)
        return fused[..., :height, :width]

    def _head(self, x: Tensor) -> Tensor:
        """(B, h, w, C) of the finest map -> (B, 1, H, W)."""
        weight, bias = self.final_conv.weight, self.final_conv.bias
        # Autocast would round what is added to the images.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            # A convolution to one channel of a channels-last map is slower than the product that it is.
            pixels = F.linear(self.final_up(x).to(weight.dtype), weight.flatten(1), bias)
        return pixels.permute(0, 3, 1, 2)

    def _checked(self, x1: Tensor, x2: Tensor) -> tuple[int, int]:
        """Height and width of the images."""
        if x1.dim() != 4 or x1.shape[1] != 1 or x1.shape != x2.shape:
            raise ValueError(
                f"expected two images (B, 1, H, W) of one shape, got {tuple(x1.shape)} and {tuple(x2.shape)}"
            )
        if not (x1.is_floating_point() and x2.is_floating_point()):
            raise TypeError(f"images must be floating point in [0, 1], got {x1.dtype} and {x2.dtype}")
        height, width = x1.shape[2:]
        if height < 1 or width < 1:
            raise ValueError(f"images have {height}x{width} pixels")
        if self.faithful and (height % self.stride or width % self.stride):
            raise ValueError(
                f"the published network takes multiples of {self.stride} pixels, got {height}x{width}; pad the images, "
                "or build it with faithful=False, gate='official', which loads the same weights and takes any size"
            )
        return height, width

    def _padded(self, x: Tensor) -> Tensor:
        """Continued by reflection, at the right and the bottom, to multiples of the stride."""
        for axis in (2, 3):
            size = x.shape[axis]
            if size % self.stride:
                length = (size + self.stride - 1) // self.stride * self.stride
                x = x.index_select(axis, _reflected(size, length, x.device))
        return x


def _check(
    depths: Sequence[int], decoder: Sequence[int], dims: Sequence[int], faithful: bool, d_state: int, gate: str
) -> None:
    if not len(depths) == len(decoder) == len(dims) > 0:
        counts = f"{len(depths)}, {len(decoder)} and {len(dims)}"
        raise ValueError(f"depths, depths_decoder and dims must tell of as many stages, got {counts}")
    if dims[0] % 8 or any(b != 2 * a for a, b in pairwise(dims)):
        raise ValueError(f"dims must start with a multiple of 8 and double, got {tuple(dims)}")
    if gate not in ("own", "official"):
        raise ValueError(f"gate={gate!r}: choose from 'own', 'official'")
    if faithful and (gate, d_state) != ("official", 16):
        raise ValueError(
            f"the published network has gate='official' and d_state=16, got gate={gate!r} and d_state={d_state}; "
            "use fusion_d_state for what the published code calls d_state, or faithful=False"
        )


def _check_block(fusion_block: str, faithful: bool, gate: str) -> None:
    if fusion_block not in ("dffm", "coupled"):
        raise ValueError(f"fusion_block={fusion_block!r}: choose from 'dffm', 'coupled'")
    if fusion_block == "coupled" and faithful:
        raise ValueError("the published network has fusion_block='dffm'; build another with faithful=False")
    if fusion_block == "coupled" and gate == "official":
        raise ValueError("gate='official' belongs to fusion_block='dffm'; leave it out")


def _initialise(module: nn.Module) -> None:
    """Linear layers as in VMamba's code; the scans have set their own parameters."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
