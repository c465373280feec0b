"""Inference and training steps as CUDA graphs: kernels recorded once per input shape and launched together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["GraphedModule", "GraphedStep"]

WARM_UP = 3  # runs that let libraries choose their algorithms and our kernels compile


class _Key(NamedTuple):
    """What a recording holds for."""

    inputs: tuple[tuple[torch.Size, torch.dtype], ...]
    autocast: torch.dtype | None


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


@torch.no_grad()
def _replayed(recording: _Recording, inputs: tuple[Tensor, ...]) -> Tensor:
    """The result of a recording for these inputs, a tensor of its own."""
    for static, x in zip(recording.inputs, inputs, strict=True):
        static.copy_(x)
    recording.graph.replay()
    return recording.output.clone()


class GraphedModule:
    """A module whose forward runs as a CUDA graph, so that the host's launches no longer limit small inputs.

    The first call with new input shapes or dtypes, or under another autocast, runs the module a few times and records
    it; later ones copy the inputs, launch the recording and copy the result. Recordings keep the memory of the largest
    activations that any of them needs, and each its inputs and its result; the module's weights are not copied. Weights
    changed in place, as `load_state_dict` does, count at once; weights that moved elsewhere, as `module.to` does, drop
    all recordings; a parameter replaced by another one is not noticed: call `reset`.

    Args:
        module: takes tensors only and returns one tensor; must do the same for all values of one shape, without
            synchronising with the host; in evaluation mode, on one CUDA device.
        max_shapes: recordings to keep; the least recently used goes first.

    Raises:
        ValueError: the module trains, is not on a CUDA device, or has no parameters; `max_shapes` is below 1; from a
            call, inputs that are elsewhere.

    Example:
        >>> fast = GraphedModule(net.for_inference(torch.bfloat16).cuda())  # doctest: +SKIP
        >>> fused = fast(x1, x2)  # doctest: +SKIP
    """

    def __init__(self, module: nn.Module, max_shapes: int = 4) -> None:
        if max_shapes < 1:
            raise ValueError(f"max_shapes={max_shapes}: at least one recording has to be kept")
        if module.training:
            raise ValueError("the module is in training mode, whose randomness and gradients a recording would lose")
        self.module, self.max_shapes = module, max_shapes
        self._weights = (*module.parameters(), *module.buffers())
        devices = {weight.device for weight in self._weights}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            found = ", ".join(sorted(map(str, devices))) or "no weights"
            raise ValueError(f"a CUDA graph needs a module on one CUDA device, found {found}")
        self.device = devices.pop()
        self.reset()

    def reset(self) -> None:
        """Drop all recordings and their memory."""
        self._recordings: OrderedDict[_Key, _Recording] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._addresses = self._places()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The module's result for these inputs, a tensor of its own, without gradients."""
        for i, x in enumerate(inputs):
            if x.device != self.device:
                raise ValueError(f"input {i} is on {x.device} and the module on {self.device}; move it there")
        if self._places() != self._addresses:
            self.reset()
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = _Key(tuple((x.shape, x.dtype) for x in inputs), autocast)
        with torch.no_grad(), torch.cuda.device(self.device):
            if key not in self._recordings:
                if len(self._recordings) == self.max_shapes:
                    self._recordings.popitem(last=False)
                self._recordings[key] = self._record(inputs, autocast)
            self._recordings.move_to_end(key)
            return _replayed(self._recordings[key], inputs)

    def _places(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    def _record(self, inputs: tuple[Tensor, ...], autocast: torch.dtype | None) -> _Recording:
        static = tuple(x.detach().clone() for x in inputs)
        stream, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        # Casts that autocast cached before would not be recorded, and be freed while the recording still reads them.
        with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self.module(*static)
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                output = self.module(*static)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return _Recording(graph, static, output)


class GraphedStep:
    """A whole training step as a CUDA graph: forward, loss, backward and update, launched together.

    The first calls with new input shapes or dtypes run the step as it is; the next one records it, and from then on
    the recording runs. So every call is one step on its own batch. Numbers among the optimiser's settings, such as a
    learning rate that a schedule changes, are part of the recording: where one has changed, the step is recorded again,
    which takes about as long as the step without a graph; give the learning rate as a CUDA tensor and change it in
    place to avoid that. A recording keeps the memory of the step's activations, which recordings of other shapes share.

    Args:
        step: one training step on the given tensors, which returns the loss: sets gradients to None, computes the loss,
            its gradients, and updates. It must not read a tensor on the host (as `loss.item()`, gradient clipping with
            an error for infinite norms, or a gradient scaler do), and must do the same work every time.
        optimizer: what `step` updates with; built with capturable=True on CUDA parameters.
        max_shapes: recordings to keep; the least recently used goes first.

    Raises:
        ValueError: the optimiser is not capturable, its parameters are not on one CUDA device, or `max_shapes` is below
            1; from a call, inputs that are elsewhere.

    Example:
        >>> optimizer = torch.optim.Adam(net.parameters(), fused=True, capturable=True)  # doctest: +SKIP
        >>> def step(x1, x2):  # doctest: +SKIP
        ...     optimizer.zero_grad(set_to_none=True)
        ...     loss = criterion(net(x1, x2), x1, x2)
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss.detach()
        >>> fast = GraphedStep(step, optimizer)  # doctest: +SKIP
        >>> loss = fast(x1, x2)  # doctest: +SKIP
    """

    def __init__(self, step: Callable[..., Tensor], optimizer: torch.optim.Optimizer, max_shapes: int = 2) -> None:
        if max_shapes < 1:
            raise ValueError(f"max_shapes={max_shapes}: at least one recording has to be kept")
        if not all(group.get("capturable") for group in optimizer.param_groups):
            raise ValueError(f"{type(optimizer).__name__} must be built with capturable=True to run in a CUDA graph")
        devices = {p.device for group in optimizer.param_groups for p in group["params"]}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            found = ", ".join(sorted(map(str, devices))) or "no parameters"
            raise ValueError(f"a CUDA graph needs parameters on one CUDA device, found {found}")
        self.step, self.optimizer, self.max_shapes = step, optimizer, max_shapes
        self.device = devices.pop()
        self._stream = torch.cuda.Stream(self.device)
        self.reset()

    def reset(self) -> None:
        """Drop all recordings and their memory, after a checkpoint was loaded for instance."""
        self._recordings: OrderedDict[_Key, _Recording] = OrderedDict()
        self._calls: dict[_Key, int] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._settings = self._numbers()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One step on these inputs; returns its loss, a tensor of its own."""
        for i, x in enumerate(inputs):
            if x.device != self.device:
                raise ValueError(f"input {i} is on {x.device} and the weights on {self.device}; move it there")
        if self._settings != self._numbers():
            self._recordings.clear()
            self._settings = self._numbers()
        key = _Key(tuple((x.shape, x.dtype) for x in inputs), None)
        self._calls[key] = self._calls.get(key, 0) + 1
        with torch.cuda.device(self.device):
            if self._calls[key] <= WARM_UP:
                return self._eager(inputs)
            if key not in self._recordings:
                if len(self._recordings) == self.max_shapes:
                    self._recordings.popitem(last=False)
                self._recordings[key] = self._record(inputs)
            self._recordings.move_to_end(key)
            return _replayed(self._recordings[key], inputs)

    def _numbers(self) -> list[dict[str, Any]]:
        """The optimiser's settings that a recording holds as numbers."""
        return [
            {name: value for name, value in group.items() if not isinstance(value, Tensor | list)}
            for group in self.optimizer.param_groups
        ]

    def _eager(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """On the stream that will record: gradients are accumulated where they were first."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self.step(*inputs)
        current.wait_stream(self._stream)
        return loss.detach().clone()

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        static, graph = tuple(x.detach().clone() for x in inputs), torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = self.step(*static)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return _Recording(graph, static, loss.detach())
