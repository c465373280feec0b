"""How our operators are registered with `torch.library`: schema, fake and autograd rules, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["define_operator"]

Function = Callable[..., Any]


def define_operator(
    name: str,
    forward: Function,
    forward_fake: Function,
    gradients: Function,
    gradients_fake: Function,
    *,
    backward: Function,
    setup_context: Function,
    mapped: str = "the batch axis",
) -> tuple[Any, Any]:
    """Register `ssmvision::name` and, as an operator of its own, `ssmvision::name_backward`.

    Args:
        name: of the forward.
        forward, gradients: what the two operators compute, annotated as `torch.library.infer_schema` asks.
        forward_fake, gradients_fake: shapes and dtypes of the same.
        backward, setup_context: the autograd rule of the forward, see `torch.library.register_autograd`.
        mapped: where to put an axis that `torch.vmap` would map; it is refused, as is a second derivative.

    Returns:
        the two operators.
    """

    def no_second_order(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"ssmvision::{name} has no second derivative; drop create_graph=True around it")

    def no_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise NotImplementedError(f"ssmvision::{name} has no vmap rule; fold the mapped axis into {mapped}")

    rules = {
        name: (forward, forward_fake, backward, setup_context),
        f"{name}_backward": (gradients, gradients_fake, no_second_order, None),
    }
    for operator, (implementation, fake, autograd, context) in rules.items():
        qualified = f"ssmvision::{operator}"
        # `torch.library.custom_op` would do the same and check at every call that no output aliases an input, which
        # takes longer than a small scan.
        torch.library.define(qualified, torch.library.infer_schema(implementation, mutates_args=()))
        torch.library.impl(qualified, "CompositeExplicitAutograd")(implementation)
        torch.library.register_fake(qualified)(fake)
        torch.library.register_autograd(qualified, autograd, setup_context=context)
        torch.library.register_vmap(qualified, no_vmap)
    ours = torch.ops.ssmvision
    return getattr(ours, name).default, getattr(ours, f"{name}_backward").default
