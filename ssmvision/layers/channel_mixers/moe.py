"""A mixture of experts: every position is sent to the few of many perceptrons that a router chooses.

Sources: Fedus et al., "Switch Transformers" (arXiv 2101.03961), section 2; Lepikhin et al., "GShard" (arXiv
2006.16668), section 2.2, for more than one expert a position.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ssmvision.layers.mamba_layer import autocast_off

__all__ = ["MixtureOfExperts", "auxiliary_loss"]


class MixtureOfExperts(nn.Module):
    """y = sum over the top k experts e of g_e(x) W2_e gelu(W1_e x), with p = softmax(R x) and g the chosen p.

    For k > 1 the chosen p are divided by their sum, as in GShard and not in Jamba. The router computes in at least
    float32. No position is dropped, and none is affected by the others.

    In training `balance_loss` holds weight x E x sum_e f_e P_e (Switch, eq. 4 to 6) of the last call, until
    `auxiliary_loss` takes it: f_e is the share of the choices that fell on expert e, P_e the mean of p_e. It is
    `weight` where all experts are used alike.

    Args:
        dim: channels.
        experts: their number E.
        top_k: experts of a position.
        ratio: width of an expert's hidden layer / `dim`.
        balance: weight of the loss.

    Shape:
        (B, *grid, dim) -> the same.

    Raises:
        ValueError: `top_k` is not between 1 and `experts`.
    """

    balance_loss: Tensor | None

    def __init__(
        self, dim: int, *, experts: int = 8, top_k: int = 2, ratio: float = 4.0, balance: float = 0.01
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k={top_k} must lie between 1 and the {experts} experts")
        self.experts, self.top_k, self.balance = experts, top_k, balance
        hidden = int(dim * ratio)
        self.router = nn.Linear(dim, experts, bias=False)
        self.weight1 = nn.Parameter(trunc_normal_(torch.empty(experts, dim, hidden), std=0.02))
        self.bias1 = nn.Parameter(torch.zeros(experts, 1, hidden))
        self.weight2 = nn.Parameter(trunc_normal_(torch.empty(experts, hidden, dim), std=0.02))
        self.bias2 = nn.Parameter(torch.zeros(experts, 1, dim))
        self.balance_loss = None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if x.numel() == 0:
            return x
        tokens = x.flatten(0, -2)
        with autocast_off(x.device):  # rounded, the router would choose other experts
            wide = torch.promote_types(x.dtype, torch.float32)
            shares = F.linear(tokens.to(wide), self.router.weight.to(wide)).softmax(-1)
        gates, chosen = shares.topk(self.top_k, -1)
        if self.top_k > 1:
            gates = gates / gates.sum(-1, keepdim=True)
        if self.training and torch.is_grad_enabled():
            self.balance_loss = self._balance_loss(shares, chosen)
        y = self._by_experts(tokens, chosen)
        return (y * gates.to(y.dtype).unsqueeze(-1)).sum(1).view(x.shape)

    def _balance_loss(self, shares: Tensor, chosen: Tensor) -> Tensor:
        used = F.one_hot(chosen, self.experts).sum(1).to(shares.dtype).mean(0) / self.top_k
        return self.balance * self.experts * (used * shares.mean(0)).sum()

    def _by_experts(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """What the chosen experts (T, k) say of the tokens (T, C): (T, k, C).

        The tokens of an expert are filled up to whole blocks of rows, whose number has a bound: products of fixed
        size, without a look at the counts from the host.
        """
        rows, experts, block = _rows(chosen, self.experts)
        # Rows that no choice has take one token or another, and nobody reads them. They differ, as their gradients,
        # zeros, are added to those of their tokens, and additions to one place wait for each other.
        count = torch.full((1,), tokens.shape[0], device=rows.device)
        places = torch.arange(len(experts) * block, device=rows.device) % count
        senders = torch.arange(rows.numel(), device=rows.device) // self.top_k
        places = places.scatter(0, rows.flatten(), senders)
        sorted_tokens = tokens.index_select(0, places).view(len(experts), block, tokens.shape[-1])
        weight1, bias1, weight2, bias2 = (
            parameter.index_select(0, experts) for parameter in (self.weight1, self.bias1, self.weight2, self.bias2)
        )
        hidden = F.gelu(torch.baddbmm(bias1, sorted_tokens, weight1))
        said = torch.baddbmm(bias2, hidden, weight2)
        found: Tensor = said.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, tokens.shape[-1])
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "balance_loss": None}  # a tensor with a history cannot be copied


def _rows(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, int]:
    """Rows (T, k) of the choices in blocks that belong to one expert each, these experts, and the rows of a block.

    With blocks of half the mean number of choices an expert or more, three blocks an expert are always enough.
    """
    flat = chosen.flatten()
    block = flat.numel() // (2 * experts) + 2  # 1 would do, but torch.export must see that it is not 1 itself
    marks = flat == torch.arange(experts, device=flat.device).unsqueeze(1)
    counts = marks.sum(1)
    ends = ((counts + block - 1) // block).cumsum(0)
    starts = F.pad(ends, (1, 0))[:-1] * block
    # Where a choice would stand if all were sorted by expert: one long sum, since on a GPU one down the choices, an
    # expert a column, is left to a thread a column.
    place = marks.flatten().cumsum(0).view(experts, -1).gather(0, flat.unsqueeze(0)).squeeze(0) - 1
    shift = starts - (counts.cumsum(0) - counts)
    of_block = (ends <= torch.arange(3 * experts, device=flat.device).unsqueeze(1)).sum(1)
    return (place + shift[flat]).view(chosen.shape), of_block.clamp(max=experts - 1), block


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """Takes the balancing losses of a model's last training step and gives their sum; None if there are none.

    Taken, since a loss that is kept keeps its graph: the parameters' gradients would go on arriving on the stream of
    that old step, which invalidates the recording of a CUDA graph on another one.
    """
    told = []
    for module in model.modules():
        if isinstance(module, MixtureOfExperts) and module.balance_loss is not None:
            told.append(module.balance_loss)
            module.balance_loss = None
    return torch.stack(told).sum() if told else None
