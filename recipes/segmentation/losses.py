"""Deep-supervised Dice + cross-entropy, the Dice over the batch of all processes where it is taken over a batch."""

from __future__ import annotations

from typing import cast

import torch
from monai.losses.dice import DiceCELoss, DiceLoss
from monai.losses.ds_loss import DeepSupervisionLoss
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["GatheredDice", "deep_supervision_weights", "segmentation_loss", "training_criterion"]

SMOOTH = 1e-5


def deep_supervision_weights(levels: int) -> list[float]:
    """1 / 2^i for resolution i, 0 for the lowest, normalised to sum 1 (nnU-Net's rule); one level: [1]."""
    raw = [0.5**i for i in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


class GatheredDice(DiceLoss):
    """MONAI's softmax `DiceLoss(batch=True, include_background=False)` over the patches of all processes.

    Three sums per class are added up over the processes, which costs next to nothing. Every process gets the same loss;
    as gradients are averaged over the processes afterwards, the step is that of one process with the whole batch.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Mean loss of the classes; `input` is (B, K, *spatial) logits, `target` (B, 1, *spatial)."""
        probabilities = torch.softmax(input, 1)[:, 1:]
        wanted = one_hot(target, num_classes=input.shape[1])[:, 1:]
        axes = [0, *range(2, input.ndim)]
        sums = torch.stack([(probabilities * wanted).sum(axes), probabilities.sum(axes), wanted.sum(axes)])
        both, predicted, marked = all_reduce(sums)
        return cast(Tensor, (1 - (2 * both + SMOOTH) / (predicted + marked + SMOOTH)).mean())


class MeanCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy averaged by itself: CUDA adds up torch's own mean in an order that changes from run to run."""

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Mean over all voxels; `input` is (B, K, *spatial) logits, `target` (B, *spatial) class ids."""
        return super().forward(input, target).mean()


def training_criterion(batch_dice: bool, processes: int = 1) -> DiceCELoss:
    """Dice without background + cross-entropy of (B, K, *spatial) logits and a (B, 1, *spatial) label.

    Args:
        batch_dice: Dice over the whole batch instead of patch by patch; over the batches of all processes.
        processes: that train together.
    """
    criterion = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=batch_dice,
        smooth_nr=SMOOTH,
        smooth_dr=SMOOTH,
    )
    criterion.cross_entropy = MeanCrossEntropy()
    if batch_dice and processes > 1:
        criterion.dice = GatheredDice()
    return criterion


def segmentation_loss(criterion: DiceCELoss, outputs: Tensor | list[Tensor], label: Tensor) -> Tensor:
    """Weighted sum of the loss over resolutions in float32; `label` is (B, 1, *spatial) int64."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    deep = DeepSupervisionLoss(criterion, weights=deep_supervision_weights(len(outputs)))
    return cast(Tensor, deep(outputs, label.float()))
