"""The instance norm on a CUDA device: against float64, far from zero, and bitwise repeatable."""

from __future__ import annotations

import pytest
import torch

from ssmvision.kernels.instance_norm import instance_norm

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 32, 40, 56, 48), (1, 3, 7, 5), (2, 320, 5, 7, 6), (3, 1, 1_000_003)], ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, dy = (torch.randn(shape, device="cuda") * 2 + 30).to(dtype), torch.randn(shape, device="cuda").to(dtype)
    weight, bias = torch.randn(2, shape[1], device="cuda").unbind(0)
    results = []
    for wide, backend in ((torch.float64, "reference"), (dtype, "triton"), (dtype, "triton")):
        leaves = [x.to(wide).requires_grad_()]
        leaves += [t.to(torch.promote_types(wide, torch.float32)).requires_grad_() for t in (weight, bias)]
        y = instance_norm(*leaves, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(wide))])
    exact, found, again = results
    for f, e in zip(found, exact, strict=True):
        assert (f.double() - e).norm() / e.norm() < (2e-5 if dtype == torch.float32 else 5e-3)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
