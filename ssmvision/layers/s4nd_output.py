"""The pointwise output of an S4ND layer: activation, dropout, linear map of the features, activation.

Source: the code of Nguyen et al. (arXiv 2210.06583).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as add_weight_norm

__all__ = ["ChannelLinear", "PointwiseOutput", "activation_named"]

ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    **dict.fromkeys(("none", "id", "identity", "linear"), nn.Identity),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "glu": lambda: nn.GLU(dim=1),
}
INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": nn.init.kaiming_uniform_,
    "normal": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_normal_,
    "zero": nn.init.zeros_,
    "one": nn.init.ones_,
}


class ChannelLinear(nn.Linear):
    """A linear map of the channels of (B, C, *grid)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features, *grid) -> (B, out_features, *grid)."""
        y: Tensor = torch.matmul(self.weight, x.flatten(2))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).unsqueeze(-1)
        return y.reshape(*y.shape[:2], *x.shape[2:])


def activation_named(name: str | None) -> nn.Module:
    """An activation on (B, C, *grid) by name.

    Raises:
        ValueError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; choose from {', '.join(map(str, ACTIVATIONS))}")
    return ACTIVATIONS[name]()


class PointwiseOutput(nn.Module):
    """Activation, dropout, linear map, activation on (B, C, *grid).

    Args:
        in_features, out_features: of the map; "glu" as `final_act` doubles the map's own output.
        activation, final_act: before and after, by name.
        initializer: of the weight: "uniform", "normal", "xavier", "zero", "one"; None for torch's.
        weight_norm: parametrize the weight by direction and length.
        dropout: probability.
        tie_dropout: drop whole feature maps.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str | None = "gelu",
        final_act: str | None = None,
        initializer: str | None = None,
        weight_norm: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.activation = activation_named(activation)
        self.dropout, self.tie_dropout = dropout, tie_dropout
        linear = ChannelLinear(in_features, out_features * (2 if final_act == "glu" else 1), **factory)
        if initializer is not None:
            if initializer not in INITIALIZERS:
                raise ValueError(f"initializer={initializer!r}: choose from {', '.join(INITIALIZERS)}")
            INITIALIZERS[initializer](linear.weight)
            nn.init.zeros_(linear.bias)
        self.add_module("0", add_weight_norm(linear) if weight_norm else linear)  # as checkpoints call it
        self.final_act = activation_named(final_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features, *grid) -> (B, out_features, *grid)."""
        x = self.activation(x)
        if self.dropout > 0:
            drop = torch.feature_dropout if self.tie_dropout else torch.dropout
            x = drop(x, self.dropout, self.training)
        out: Tensor = self.final_act(self.get_submodule("0")(x))
        return out
