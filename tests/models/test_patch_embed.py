"""The patch embedding as a convolution and as a matrix product."""

import pytest
import torch
import torch.nn.functional as F

import ssmvision.models  # noqa: F401  (first, as in any program: timm loads it)
from ssmvision.layers.patch_embed import StridedPatchEmbed


@pytest.mark.parametrize("size", [(32, 48), (37, 50)], ids=str)
def test_gathered_patches_times_the_kernel_are_the_convolution(size):
    """Also where pixels are left over at the right and the bottom."""
    torch.manual_seed(0)
    embed = StridedPatchEmbed(size, patch_size=(16, 8), embed_dim=12, dtype=torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    product = F.linear(embed._gather(x, x.dtype), embed.proj.weight.flatten(1), embed.proj.bias)
    torch.testing.assert_close(product, embed(x))
    got, wanted = (torch.autograd.grad(y.square().sum(), [x, *embed.parameters()]) for y in (product, embed(x)))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_on_a_gpu(dtype):
    """Near float64 under autocast; overlapping patches, float32 and a hooked projection take the convolution."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64, device="cuda")
    embed = StridedPatchEmbed(64, patch_size=16, embed_dim=24, device="cuda")
    with torch.autocast("cuda", dtype):
        out = embed(x)
        assert embed._matrix_dtype(x) == dtype
        assert StridedPatchEmbed(64, patch_size=16, stride=8, device="cuda")._matrix_dtype(x) is None
        handle = embed.proj.register_forward_hook(lambda *a: None)
        assert embed._matrix_dtype(x) is None
        handle.remove()
    assert embed._matrix_dtype(x) is None
    assert out.dtype == dtype
    wanted = F.conv2d(x.double(), embed.proj.weight.double(), embed.proj.bias.double(), stride=16)
    wanted = wanted.flatten(2).transpose(1, 2)
    assert (out.double() - wanted).norm() < 5e-3 * wanted.norm()
