"""SS2D: the selective scan of a feature map along four routes, with the projections and the convolution around it.

Source: Liu et al., "VMamba: Visual State Space Model" (arXiv 2401.10166), section 4.2 and figure 3. Parameter names and
shapes are those of the official code (MzeroMiko/VMamba), whose `forward_type` strings `from_official_kwargs` reads.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.depthwise_conv import depthwise_conv2d
from ssmvision.kernels.depthwise_conv.interface import MAX_SIDE
from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.routed_scan import RoutedScan, SsmInit
from ssmvision.layers.ss2d_official import from_official_kwargs

__all__ = ["SS2D", "Gate", "Scan", "SsmInit"]

Scan = Literal["cross", "one_way", "two_way", "cascade"]
Gate = Literal["silu", "linear", "none"]

# Four routes always, so that the ablations of the scan have as many parameters as the cross scan.
ROUTES: dict[str, tuple[str, ...]] = {
    "cross": ("row", "column", "row_reverse", "column_reverse"),
    "one_way": ("row", "row", "row", "row"),
    "two_way": ("row", "row", "row_reverse", "row_reverse"),
}
NUM_ROUTES = 4


class SS2D(RoutedScan):
    """Projection, depthwise convolution, SiLU, selective scan along four routes, norm, gate, projection.

    Args:
        dim: channels of the map.
        d_state: states per channel (N).
        expand: inner width / `dim`.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        d_conv: odd side of the depthwise convolution; below 2 for none.
        conv_bias, bias: of the convolution; of the projections into and out of the layer.
        scan: "cross" (rows and columns, both ways), "one_way" (rows, four times), "two_way" (rows, twice each way),
            "cascade" (every row on its own, both ways, then every column of the result; as in the official code, the
            backward scans' outputs are added in the order in which they were computed, that is mirrored).
        gate: what the normed scan is multiplied by: "silu" of a second projection of the input, that projection itself
            ("linear"), or nothing ("none").
        out_act: GELU after the norm.
        dropout: after the last projection.
        init: of step sizes, A and D: "mamba" (log-uniform step sizes, A = -1 ... -N), "normal" (A_logs from the
            standard normal, step-size parameters from a tenth of it), or "uniform" (A = -1, step-size parameters from
            [0, 0.1)). D = 1 in all of them.
        channels_first: take and return (B, dim, H, W); computed channels-last all the same.
        backend: of the scan: "auto", or a backend's name, or "-name" to forbid it.
        device, dtype: of the parameters.

    Shape:
        (B, H, W, dim) -> (B, H, W, dim), any H and W; with `channels_first` (B, dim, H, W) -> (B, dim, H, W).

    Raises:
        ValueError: `scan`, `gate` or `init` has no such value, or `d_conv` is even; from forward, the map does not
            have four axes or `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = True,
        bias: bool = False,
        scan: Scan = "cross",
        gate: Gate = "silu",
        out_act: bool = False,
        dropout: float = 0.0,
        init: SsmInit = "mamba",
        channels_first: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_choices(scan=(scan, Scan), gate=(gate, Gate), init=(init, SsmInit))
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv={d_conv}: an even convolution would shift the map; take an odd one")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.d_state, self.d_inner = dim, d_state, int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else int(dt_rank)
        self.scan_mode, self.gate = scan, gate
        self.channels_first, self.backend = channels_first, backend
        inner = self.d_inner
        self.in_proj = nn.Linear(dim, inner if gate == "none" else 2 * inner, bias=bias, **factory)
        self.conv2d = None
        if d_conv > 1:
            self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias, **factory)
        self.add_scan_parameters(NUM_ROUTES, **factory)
        self.out_norm = LayerNorm(inner, **factory)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(inner, dim, bias=bias, **factory)
        self.dropout = nn.Dropout(dropout)
        self.reset_ssm_parameters(init)

    @classmethod
    def from_official_kwargs(cls, **kwargs: Any) -> SS2D:
        """The layer that the official `SS2D(**kwargs)` is.

        Raises:
            ValueError: an option is unknown, or asks for something that this layer does not have.
        """
        return cls(**from_official_kwargs(kwargs))

    def extra_repr(self) -> str:
        """The layer's settings, for `print`."""
        return (
            f"dim={self.dim}, d_state={self.d_state}, dt_rank={self.dt_rank}, scan={self.scan_mode}, gate={self.gate}"
        )

    def _cascade(self, u: Tensor) -> Tensor:
        """Rows of u (B, H, W, E), then columns; each normed first, without weights."""
        for first in (0, 2):
            lines = F.layer_norm(u, (self.d_inner,))
            forward, backward = self.scan_routes(lines.flatten(0, 1), ("forward", "backward"), "none", first).unbind(1)
            # Official weights were trained with the backward outputs left in their own order.
            u = (forward + backward.flip(1)).unflatten(0, lines.shape[:2]).transpose(1, 2)
        return u

    def scan(self, u: Tensor) -> Tensor:
        """The scan alone: (B, H, W, E) -> (B, H, W, E), the sum over the routes."""
        if self.scan_mode == "cascade":
            return self._cascade(u)
        return self.scan_routes(u, ROUTES[self.scan_mode], "sum")

    def _convolve(self, x: Tensor) -> Tensor:
        if self.conv2d is None:
            return F.silu(x)
        if self.conv2d.kernel_size[0] <= MAX_SIDE:
            return depthwise_conv2d(x, self.conv2d.weight.squeeze(1), self.conv2d.bias)
        mixed: Tensor = self.conv2d(x.permute(0, 3, 1, 2))
        return F.silu(mixed).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scan the map; see the class for shapes."""
        if x.dim() != 4 or x.shape[1 if self.channels_first else -1] != self.dim:
            layout = f"(B, {self.dim}, H, W)" if self.channels_first else f"(B, H, W, {self.dim})"
            raise ValueError(f"SS2D takes a map {layout}, got {tuple(x.shape)}")
        u = self.in_proj(x.permute(0, 2, 3, 1) if self.channels_first else x)
        z = None
        if self.gate != "none":
            u, z = u.chunk(2, dim=-1)
        u = self._convolve(u)
        y: Tensor = self.out_act(self.out_norm(self.scan(u)).to(u.dtype))
        if z is not None:
            y = y * (F.silu(z) if self.gate == "silu" else z)
        out: Tensor = self.dropout(self.out_proj(y))
        return out.permute(0, 3, 1, 2) if self.channels_first else out


def _check_choices(**options: tuple[str, Any]) -> None:
    for name, (value, choices) in options.items():
        if value not in get_args(choices):
            raise ValueError(f"{name}={value!r}: choose from {', '.join(get_args(choices))}")
