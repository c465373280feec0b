"""Calls our operators without PyTorch's dispatcher where nobody listens to it.

A Python operator costs the host up to 0.2 ms a call in the dispatcher and its autograd wrapper, several times what a
small kernel runs. In plain eager mode its implementation, and its autograd rule as an `autograd.Function`, do the same.
Compilers, tracers, `torch.func`, dispatch modes (fake tensors, flop counters) and tensor subclasses get the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EagerOperator", "eager"]

Function = Callable[..., Any]
PLAIN = (Tensor, nn.Parameter)


def _listened_to() -> bool:
    """Whether something works on operators rather than on results."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class EagerOperator:
    """An operator that goes around the dispatcher where that makes no difference.

    Args:
        operator: of `torch.library`.
        implementation: what it computes.
        rule: its autograd rule as a Function that takes `_flat` arguments; None leaves calls that need gradients to
            the operator.
    """

    def __init__(self, operator: Function, implementation: Function, rule: type[torch.autograd.Function] | None):
        self.operator, self.implementation, self.rule = operator, implementation, rule

    def __call__(self, *args: Any) -> Any:
        """Results of the operator."""
        if _listened_to():
            return self.operator(*args)
        sizes, flat = _flat(args)
        trained = False
        for t in flat:
            if isinstance(t, Tensor):
                if type(t) not in PLAIN or t.is_meta:
                    return self.operator(*args)
                trained = trained or t.requires_grad
        if not (trained and torch.is_grad_enabled()):
            return self.implementation(*args)
        return self.operator(*args) if self.rule is None else self.rule.apply(sizes, *flat)


def _flat(args: Sequence[Any]) -> tuple[tuple[int, ...], list[Any]]:
    """Arguments with lists of tensors opened, since autograd does not look into them; -1 for what was no list."""
    sizes: list[int] = []
    flat: list[Any] = []
    for arg in args:
        if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor):
            sizes.append(len(arg))
            flat += arg
        else:
            sizes.append(-1)
            flat.append(arg)
    return tuple(sizes), flat


def _nested(sizes: Sequence[int], flat: Sequence[Any]) -> tuple[Any, ...]:
    """The inverse of `_flat`."""
    args, at = [], 0
    for size in sizes:
        args.append(flat[at] if size < 0 else list(flat[at : at + size]))
        at += max(size, 1)
    return tuple(args)


class _Context:
    """A Function's context as the rules of `torch.library` see it: needs_input_grad has the arguments' lists."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.needs_input_grad = _nested(context.sizes, context.needs_input_grad[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def eager(
    operators: tuple[Function, Function],
    forward: Function,
    gradients: Function,
    *,
    backward: Function,
    setup_context: Function,
) -> tuple[EagerOperator, EagerOperator]:
    """Both operators of `operators.define_operator`, called around the dispatcher.

    Args:
        operators: what it returned.
        forward, gradients, backward, setup_context: what it was given.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, sizes: tuple[int, ...], *flat: Any) -> Any:
            args = _nested(sizes, flat)
            ctx.sizes = sizes
            output = forward(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *_flat_grads(ctx.sizes, backward(_Context(ctx), *grads))

    # Gradients of gradients are the operator's to refuse.
    return EagerOperator(operators[0], forward, Rule), EagerOperator(operators[1], gradients, None)


def _flat_grads(sizes: Sequence[int], grads: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for size, grad in zip(sizes, grads, strict=True):
        if size < 0:
            flat.append(grad)
        else:
            flat += [None] * size if grad is None else grad
    return flat
