"""Patch embedding whose patches may overlap; `timm.layers.PatchEmbed` ties the stride to the patch size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed, to_2tuple
from torch import Tensor, nn

__all__ = ["StridedPatchEmbed"]

Size = int | tuple[int, int]
Grid = tuple[int, int]


class StridedPatchEmbed(nn.Module):
    """One strided convolution, flattened row by row.

    In bfloat16 and float16 on CUDA, patches that do not overlap are gathered and multiplied as one matrix, because
    cuDNN's convolutions of three channels take ten times as long.

    Args:
        img_size: nominal input size (height, width) in pixels.
        patch_size: kernel of the convolution in pixels.
        stride: step between patches in pixels; None is the patch size.
        in_chans: input channels.
        embed_dim: width of the tokens.
        strict_img_size: refuse inputs of another size than `img_size`.
        device, dtype: of the parameters.

    Shape:
        (B, in_chans, H, W) -> (B, h * w, embed_dim) with h = (H - patch) // stride + 1; pixels past the last whole
        patch are not seen.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        stride: Size | None = None,
        in_chans: int = 3,
        embed_dim: int = 192,
        strict_img_size: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.img_size: Grid = to_2tuple(img_size)
        self.patch_size: Grid = to_2tuple(patch_size)
        self.stride: Grid = self.patch_size if stride is None else to_2tuple(stride)
        self.in_chans = in_chans
        self.strict_img_size = strict_img_size
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.stride, **factory)
        self.grid_size: Grid = self.dynamic_feat_size(self.img_size)

    @property
    def num_patches(self) -> int:
        """Patches of an image of the nominal size."""
        return self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | Grid:
        """Pixels between neighbouring patches, the larger axis or both."""
        return max(self.stride) if as_scalar else self.stride

    def dynamic_feat_size(self, img_size: Grid) -> Grid:
        """Patch grid (h, w) of an input of `img_size` (H, W).

        Raises:
            ValueError: the input is smaller than one patch.
        """
        (height, width), (ph, pw), (sh, sw) = img_size, self.patch_size, self.stride
        if height < ph or width < pw:
            raise ValueError(f"input of {height}x{width} pixels is smaller than one {ph}x{pw} patch")
        return (height - ph) // sh + 1, (width - pw) // sw + 1

    def set_input_size(
        self, img_size: Size | None = None, patch_size: Size | None = None, stride: Size | None = None
    ) -> None:
        """Change the nominal input size, the patch size (the kernel is resampled), or the stride.

        A new patch size without a stride keeps the overlap: stride / patch size stays the same.

        Raises:
            ValueError: the kept overlap would need a fractional stride.
        """
        patch: Grid = self.patch_size if patch_size is None else to_2tuple(patch_size)
        new_stride: Grid = self._scaled_stride(patch) if stride is None else to_2tuple(stride)
        if patch != self.patch_size or new_stride != self.stride:
            self.proj = self._resampled_projection(patch, new_stride)
            self.patch_size, self.stride = patch, new_stride
        if img_size is not None:
            self.img_size = to_2tuple(img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)

    def _scaled_stride(self, patch: Grid) -> Grid:
        products = [s * p for s, p in zip(self.stride, patch, strict=True)]
        if any(product % old for product, old in zip(products, self.patch_size, strict=True)):
            raise ValueError(
                f"patch_size={patch}: stride {self.stride} of patch size {self.patch_size} cannot be scaled to it in "
                "whole pixels; pass stride= as well"
            )
        return products[0] // self.patch_size[0], products[1] // self.patch_size[1]

    @torch.no_grad()
    def _resampled_projection(self, patch: Grid, stride: Grid) -> nn.Conv2d:
        old = self.proj
        factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
        new = nn.Conv2d(old.in_channels, old.out_channels, kernel_size=patch, stride=stride, **factory)
        new.weight.copy_(resample_patch_embed(old.weight, list(patch)))
        new.weight.requires_grad_(old.weight.requires_grad)
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
            new.bias.requires_grad_(old.bias.requires_grad)
        return new.train(old.training)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError where the input's channels or, if strict, its size are not the model's."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"expected an input (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        if self.strict_img_size and tuple(x.shape[-2:]) != self.img_size:
            raise ValueError(
                f"input is {x.shape[-2]}x{x.shape[-1]} pixels, the model was built for "
                f"{self.img_size[0]}x{self.img_size[1]}: call set_input_size(), or build it with dynamic_img_size=True"
            )
        dtype = self._matrix_dtype(x)
        if dtype is not None:
            tokens: Tensor = F.linear(self._gather(x, dtype), self.proj.weight.flatten(1), self.proj.bias)
            return tokens
        features: Tensor = self.proj(x)
        return features.flatten(2).transpose(1, 2)

    def _matrix_dtype(self, x: Tensor) -> torch.dtype | None:
        """Dtype in which the patches are one matrix, None where the convolution itself runs."""
        proj = self.proj
        if not x.is_cuda or self.stride != self.patch_size or type(proj) is not nn.Conv2d:
            return None
        if proj._forward_hooks or proj._forward_pre_hooks:
            return None
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        return dtype if dtype in (torch.bfloat16, torch.float16) else None

    def _gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, C, H, W) -> (B, h * w, C * patch height * patch width), cast in the same pass."""
        (height, width), (ph, pw) = self.dynamic_feat_size((x.shape[-2], x.shape[-1])), self.patch_size
        whole = x[..., : height * ph, : width * pw].unflatten(3, (width, pw)).unflatten(2, (height, ph))
        patches = whole.permute(0, 2, 4, 1, 3, 5).to(dtype, memory_format=torch.contiguous_format)
        rows: Tensor = patches.contiguous().flatten(3).flatten(1, 2)
        return rows
