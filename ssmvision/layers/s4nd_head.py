"""ConvNeXt's classifier in any number of axes: pool, norm, dropout, linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import trunc_normal_
from torch import Tensor, nn

__all__ = ["PooledHead"]

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.flatten(2).mean(2),
    "max": lambda x: x.flatten(2).amax(2),
    "avgmax": lambda x: (x.flatten(2).mean(2) + x.flatten(2).amax(2)) / 2,
    "": lambda x: x.movedim(1, -1),
}


class PooledHead(nn.Module):
    """Classifier on a map.

    Args:
        channels: C.
        num_classes: 0 for none.
        global_pool: "avg", "max", "avgmax", or "" for no pooling.
        drop_rate: dropout before the linear layer.
        factory: device and dtype.

    Shape:
        (B, C, *grid) -> (B, num_classes); without classes (B, C); without pooling (B, *grid, num_classes). Without
        both, the map itself.

    Raises:
        ValueError: no such pooling.
    """

    def __init__(self, channels: int, num_classes: int, global_pool: str, drop_rate: float, **factory: Any) -> None:
        super().__init__()
        self.channels = channels
        self.global_pool = _checked(global_pool)
        self.norm = nn.LayerNorm(channels, eps=1e-6, **factory)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = self._linear(num_classes, **factory)

    def _linear(self, num_classes: int, **factory: Any) -> nn.Module:
        if num_classes <= 0:
            return nn.Identity()
        linear = nn.Linear(self.channels, num_classes, **factory)
        trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return linear

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh linear layer, and another pooling if given."""
        if global_pool is not None:
            self.global_pool = _checked(global_pool)
        self.fc = self._linear(num_classes, device=self.norm.weight.device, dtype=self.norm.weight.dtype)
        self.fc.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """See the class; for `pre_logits` what the linear layer would get."""
        if not self.global_pool and isinstance(self.fc, nn.Identity):
            return x
        features: Tensor = self.drop(self.norm(POOLS[self.global_pool](x)))
        if pre_logits:
            return features
        logits: Tensor = self.fc(features)
        return logits


def _checked(pool: str) -> str:
    if pool not in POOLS:
        raise ValueError(f"global_pool={pool!r}: choose from {', '.join(map(repr, POOLS))}")
    return pool
