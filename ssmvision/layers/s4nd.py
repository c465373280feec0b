"""The S4ND layer: a global convolution whose kernel is an outer product of 1D state-space kernels.

Source: Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces" (arXiv
2210.06583), section 3, and the authors' code for options and parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.s4nd.args import PRECISIONS, Precision
from ssmvision.kernels.s4nd.two_sided import AxisKernels, two_sided
from ssmvision.layers.mamba_layer import autocast_off
from ssmvision.layers.s4nd_dense import DenseKernel
from ssmvision.layers.s4nd_diagonal import S4DKernel
from ssmvision.layers.s4nd_dplr import S4Kernel
from ssmvision.layers.s4nd_ema import EMAKernel
from ssmvision.layers.s4nd_implicit import HyenaKernel, TNNKernel
from ssmvision.layers.s4nd_kernel import AxisKernel, generate
from ssmvision.layers.s4nd_optim import param_groups
from ssmvision.layers.s4nd_output import PointwiseOutput

__all__ = ["KERNELS", "S4ND", "autocast_dtype", "axis_rates", "set_rate", "shared_kernels"]

Rates = float | Sequence[float]
KERNELS: dict[str, Callable[..., AxisKernel]] = {
    **dict.fromkeys(("s4", "nplr", "dplr"), S4Kernel),
    **dict.fromkeys(("s4d", "diag"), S4DKernel),
    "dss": lambda *args, **kwargs: S4DKernel(*args, disc="dss", **kwargs),
    "ema": EMAKernel,
    "tnn": TNNKernel,
    "hyena": HyenaKernel,
    "dense": DenseKernel,
}
# Arguments of the authors' class without any effect there.
NO_EFFECT = ("ln", "hyper_act", "verbose", "return_state", "contract_version", "state")


class S4ND(nn.Module):
    """Global depthwise convolution with 1D state-space kernels along each axis, and an optional pointwise output.

    Under bfloat16 autocast the convolution takes and gives bfloat16, as PyTorch's do, unless `precision` says
    otherwise; float16 autocast leaves it in float32.

    Args:
        d_model: features H of the input.
        d_state: states of each 1D system.
        l_max: longest kernel to each side at rate 1, one for all axes or one an axis; None for the axis' length.
        dim: axes; None to count those of `l_max`.
        out_channels: makes the convolution dense, from H to this many features, without skip; needs `linear`.
        channels: outputs per feature; with `linear` the result has channels x H features, channel outermost.
        bidirectional: kernels to both sides, else causal along every axis.
        activation, dropout, tie_dropout, final_act, initializer, weight_norm: of the pointwise output, see
            `PointwiseOutput`.
        transposed: (B, H, *grid) input and output, else (B, *grid, H).
        trank: rank R of the N-D kernel: the mean of R outer products.
        linear: the convolution alone.
        skip: add D times the input; not for a dense convolution.
        kernel: "s4" ("dplr", "nplr"), "s4d" ("diag"), "dss", "ema", "tnn", "hyena" or "dense"; or what makes another
            `AxisKernel`, called with the same arguments.
        symmetric_center: split every tap between the two lags that bound its step, so that both directions share lag 0
            and the layer is equivariant to flips (with the two directions exchanged) at every rate; else, as
            published, the causal half starts at lag 0 and the anticausal half at -1.
        rate: default of forward's `rate`; `set_rate` changes it.
        precision, backend: see `long_conv_nd`.
        kernel_args: of the kernel's class: init, n_ssm, dt_min, dt_max, lr, bandlimit, antialias, ...; device, dtype.

    Shape:
        (B, H, *grid) -> (B, F, *grid) with F = channels x H for `linear`, channels x out_channels for a dense one, else
        H; features last if not `transposed`.

    Raises:
        ValueError: settings that contradict each other; from forward, an input that does not fit.

    Example:
        >>> S4ND(8, l_max=(16, 16), kernel="s4d")(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        l_max: int | Sequence[int | None] | None = None,
        dim: int | None = 2,
        out_channels: int | None = None,
        channels: int = 1,
        bidirectional: bool = True,
        *,
        activation: str | None = "gelu",
        final_act: str | None = None,
        initializer: str | None = None,
        weight_norm: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = True,
        trank: int = 1,
        linear: bool = True,
        skip: bool = True,
        kernel: str | Callable[..., AxisKernel] = "dplr",
        symmetric_center: bool = False,
        rate: Rates = 1.0,
        precision: Precision = "auto",
        backend: str = "auto",
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        self.l_max = _per_axis(l_max, dim)
        if out_channels is not None and not linear:
            raise ValueError("out_channels makes a dense convolution, which has no pointwise output: pass linear=True")
        if symmetric_center and not bidirectional:
            raise ValueError("symmetric_center needs bidirectional=True: a causal kernel has one side only")
        _check_names(kernel, precision)
        self.d_model, self.channels, self.out_channels, self.trank = d_model, channels, out_channels, trank
        self.bidirectional, self.symmetric_center, self.transposed = bidirectional, symmetric_center, transposed
        self.precision: Precision = precision
        self.backend, self.rate = backend, self._rates(rate)
        factory: dict[str, Any] = {name: kernel_args[name] for name in ("device", "dtype") if name in kernel_args}
        # A dense convolution does not use it; checkpoints have it.
        D = nn.Parameter(torch.randn(channels, d_model, **factory), requires_grad=out_channels is None)
        self.D: nn.Parameter | None = D if skip else None
        systems = channels * (out_channels or 1) * trank * (2 if bidirectional else 1)
        build = KERNELS[kernel] if isinstance(kernel, str) else kernel
        if getattr(build, "signed_lags", False):
            if symmetric_center:
                raise ValueError(
                    f"symmetric_center splits integrated taps; those of {kernel!r} lie at their lags already"
                )
            kernel_args["two_sided"] = bidirectional
        self.kernel = nn.ModuleList(build(d_model, d_state, systems, length, **kernel_args) for length in self.l_max)
        acts: dict[str, Any] = {"activation": activation, "final_act": final_act, "initializer": initializer}
        rest: dict[str, Any] = {"weight_norm": weight_norm, "dropout": dropout, "tie_dropout": tie_dropout, **factory}
        output = None if linear else PointwiseOutput(channels * d_model, d_model, **acts, **rest)
        self.output_linear: PointwiseOutput | None = output
        self._cache: tuple[Any, AxisKernels] | None = None

    @classmethod
    def from_official_kwargs(
        cls, d_model: int, *, mode: str = "dplr", kernel: str | None = None, **kwargs: Any
    ) -> S4ND:
        """The layer that the authors' `S4ND(d_model, **kwargs)` builds; arguments without effect there are dropped."""
        left = {name: value for name, value in kwargs.items() if name not in NO_EFFECT}
        return cls(d_model, kernel=kernel or mode, **left)

    @property
    def d_output(self) -> int:
        """Features of the result."""
        return self.d_model if self.output_linear is not None else self.channels * (self.out_channels or self.d_model)

    def extra_repr(self) -> str:
        """The layer's settings, for `print`."""
        return f"{self.d_model}, l_max={self.l_max}, channels={self.channels}, out_channels={self.out_channels}"

    def forward(self, u: Tensor, rate: Rates | None = None, kernels: AxisKernels | None = None) -> Tensor:
        """Convolve a map.

        Args:
            u: (B, H, *grid), or (B, *grid, H) if not `transposed`; grids of any size, kernels reach `l_max` / rate.
            rate: sampling step as a multiple of the trained one, for all axes or one an axis: for images of voxel
                spacing s, s / reference spacing (2 at half the resolution). None for the layer's own.
            kernels: made before by `kernels` or, together with those of other layers, by `shared_kernels`.

        Returns:
            see the class.
        """
        axes = len(self.l_max)
        place = 1 if self.transposed else u.dim() - 1
        if u.dim() != axes + 2 or u.shape[place] != self.d_model:
            order = "(B, H, *grid)" if self.transposed else "(B, *grid, H)"
            raise ValueError(f"S4ND needs {order} with H={self.d_model} and {axes} axes, got {tuple(u.shape)}")
        x = u if self.transposed else u.movedim(-1, 1)
        dtype = autocast_dtype(x.device)
        if dtype is not None and self.precision == "auto" and x.dtype == torch.float32:
            x = x.to(dtype)
        taps, centers = self.kernels(x.shape[2:], rate) if kernels is None else kernels
        skip = None if self.out_channels else self.D
        options: dict[str, Any] = {"precision": self._precision(x), "backend": self.backend}
        y = long_conv_nd(x, taps, skip, centers=centers, dense=self.out_channels is not None, **options)
        if self.out_channels:
            y = y.unflatten(1, (self.out_channels, self.channels)).transpose(1, 2)
        y = y.flatten(1, 2)
        if self.output_linear is not None:
            y = self.output_linear(y)
        return y if self.transposed else y.movedim(1, -1)

    def set_l_max(self, l_max: int | Sequence[int | None] | None) -> None:
        """Change how far the kernels reach; their parameters serve any length."""
        self.l_max = _per_axis(l_max, len(self.l_max))
        for kernel, length in zip(self._systems(), self.l_max, strict=True):
            kernel.set_l_max(length)

    def _systems(self) -> list[AxisKernel]:
        return [kernel for kernel in self.kernel._modules.values() if isinstance(kernel, AxisKernel)]

    def _rates(self, rate: Rates) -> tuple[float, ...]:
        return axis_rates(rate, len(self.l_max))

    def resample(self, rate: Rates) -> None:
        """Change the default of forward's `rate`."""
        self.rate = self._rates(rate)

    def _precision(self, x: Tensor) -> Precision:
        device = x.device.type
        if self.precision != "auto" or device == "meta" or not torch.is_autocast_enabled(device):
            return self.precision
        return "bf16" if torch.get_autocast_dtype(device) == torch.bfloat16 else "fp32"

    # Kernels

    def kernels(self, grid: Sequence[int], rate: Rates | None = None) -> AxisKernels:
        """The kernels for maps of a size, kept while nothing can train (evaluation without gradients).

        Args:
            grid: sizes of the axes.
            rate: see `forward`.
        """
        rates = self.rate if rate is None else self._rates(rate)
        lengths = self._lengths(grid, rates)
        if not self._keeps():
            return shared_kernels([self], grid, [rates])[0]
        key = (lengths, rates, self._stamp())
        if self._cache is None or self._cache[0] != key:
            made = shared_kernels([self], grid, [rates])[0]
            # Fitting an S4 kernel to a new length changes its parameters, hence a second look.
            self._cache = ((lengths, rates, self._stamp()), made)
        return self._cache[1]

    def _keeps(self) -> bool:
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _lengths(self, grid: Sequence[int], rates: Sequence[float]) -> tuple[int, ...]:
        axes = zip(grid, self.l_max, rates, strict=True)
        return tuple(
            size if longest is None else max(1, min(size, round(longest / rate))) for size, longest, rate in axes
        )

    def _stamp(self) -> tuple[Any, ...]:
        """Changes whenever a parameter does."""
        # Asked at every call, and a walk over modules takes longer than a small convolution.
        held = [
            (*kernel._parameters.values(), *kernel._buffers.values(), *(kernel.parameters() if kernel._modules else ()))
            for kernel in self._systems()
        ]
        tensors = [t for members in held for t in members if t is not None]
        if any(t.is_inference() for t in tensors):
            return (object(),)  # their changes cannot be seen: never equal
        return tuple((t.data_ptr(), t._version, t.dtype) for t in tensors)

    def _form(self) -> tuple[bool, bool]:
        return self.bidirectional, self.symmetric_center

    def _axis_kernels(self, sides: Sequence[Tensor], lengths: Sequence[int]) -> AxisKernels:
        """The generated kernels (R C, H, T) with their ranks apart, and the places of lag 0."""
        taps = [side.unflatten(0, (self.trank, -1)) for side in sides]
        if self.trank > 1:
            taps[0] = taps[0] / self.trank
        shift = 1 if self.symmetric_center else 0
        centers = tuple(length - shift if self.bidirectional else 0 for length in lengths)
        return AxisKernels(tuple(taps), centers)

    def train(self, mode: bool = True) -> S4ND:
        """As of every module; kernels that were kept are forgotten."""
        self._cache = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    # Optimizers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: A, B, P and the step sizes, not C and D."""
        return {f"kernel.{i}.{name}" for i, kernel in enumerate(self._systems()) for name in kernel.no_weight_decay()}

    def param_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups of this layer; see `ssmvision.layers.s4nd_optim.param_groups` for whole networks."""
        return param_groups(self, lr, weight_decay)

    # State dicts

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*args, **kwargs)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where autocast asks float32 convolutions for it, else None."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype(device.type) == torch.bfloat16 else None


def _check_names(kernel: str | Callable[..., AxisKernel], precision: str) -> None:
    if isinstance(kernel, str) and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; choose from {', '.join(KERNELS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}")


def _per_axis(l_max: int | Sequence[int | None] | None, dim: int | None) -> tuple[int | None, ...]:
    if l_max is None or isinstance(l_max, int):
        if dim is None:
            raise ValueError("dim=None needs a sequence for l_max, one length an axis")
        lengths: tuple[int | None, ...] = (l_max,) * dim
    else:
        lengths = tuple(l_max)
    if len(lengths) not in (1, 2, 3) or (dim is not None and len(lengths) != dim):
        raise ValueError(f"l_max={l_max} and dim={dim}: 1, 2 or 3 axes are possible, with one length each")
    return lengths


def shared_kernels(
    layers: Sequence[S4ND], grid: Sequence[int], rates: Sequence[Sequence[float]] | None = None
) -> list[AxisKernels]:
    """Kernels of several layers for maps of one size, all axes of all layers in one batch where they are of one form.

    Args:
        layers: such as those of a network's stage.
        grid: sizes of the axes.
        rates: of each layer; None for the layers' own, whose kernels are kept in evaluation.
    """
    if rates is None:
        if all(layer._keeps() for layer in layers):
            return [layer.kernels(grid) for layer in layers]
        rates = [layer.rate for layer in layers]
    lengths = [layer._lengths(grid, rate) for layer, rate in zip(layers, rates, strict=True)]
    sides: list[list[Tensor]] = [[] for _ in layers]
    for bidirectional, symmetric in dict.fromkeys(layer._form() for layer in layers):
        members = [i for i, layer in enumerate(layers) if layer._form() == (bidirectional, symmetric)]
        systems = [(i, kernel) for i in members for kernel in layers[i]._systems()]
        finish = partial(two_sided, symmetric=symmetric) if bidirectional else _one_sided
        with autocast_off(systems[0][1].device):
            made = generate(
                [kernel for _, kernel in systems],
                [length for i in members for length in lengths[i]],
                [rate for i in members for rate in rates[i]],
                finish,
            )
        for (i, _), taps in zip(systems, made, strict=True):
            sides[i].append(taps)
    return [layer._axis_kernels(taps, size) for layer, taps, size in zip(layers, sides, lengths, strict=True)]


def _one_sided(taps: Tensor) -> Tensor:
    return taps


def axis_rates(rate: Rates, axes: int) -> tuple[float, ...]:
    """One sampling rate an axis.

    Raises:
        ValueError: rates that are not positive and finite, or of another number of axes.
    """
    rates = (float(rate),) * axes if isinstance(rate, int | float) else tuple(float(r) for r in rate)
    if len(rates) != axes or not all(0 < r < math.inf for r in rates):
        raise ValueError(f"rate must be positive, one for all or each of {axes} axes, got {rate}")
    return rates


def set_rate(model: nn.Module, rate: Rates) -> None:
    """Set the sampling rate of a network's S4ND layers and their like, for images of another spacing than in training.

    Args:
        model: any module.
        rate: spacing / spacing in training, for all axes or one an axis. Stages of a network share it: their
            downsampling is the same at every rate.
    """
    for module in model.modules():
        resample = getattr(module, "resample", None)
        if callable(resample):
            resample(rate)
