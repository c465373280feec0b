"""The Lightning module: loss, guarded steps, moving average of the weights, validation on whole volumes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import TrainerConfig
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module, last_nonfinite_gradient
from ssmvision.recipes.segmentation.optimization import make_optimizer
from ssmvision.recipes.segmentation.ranks import first_of_ranks, gather_cases, mean_over_ranks
from ssmvision.recipes.segmentation.seeds import seed_step
from ssmvision.recipes.segmentation.spacing import SpacedNetwork
from ssmvision.recipes.segmentation.streaming import stream_labels
from ssmvision.recipes.training.module import TrainingModule

__all__ = ["SegmentationModule"]


class SegmentationModule(TrainingModule):
    """Trains a network that returns logits, or a list of logits with full resolution first.

    Args:
        network: (B, C, *spatial) to (B, K, *spatial) or a list of such.
        config: optimiser and length.
        labels: name to id, background included.
        patch_size: of the windows in validation.
        architecture: that the network was built from; its reference spacing counts.

    Attributes:
        validation: mean Dice per class of the latest validation, NaN where no case has the class.
        skipped: steps that were left out because loss or gradients were not finite.
        streak: how many of them came one after another just now.
        parts: pieces in which a batch passes through the network, where memory is short.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainerConfig,
        labels: dict[str, int],
        patch_size: tuple[int, ...],
        architecture: Mapping[str, Any],
    ) -> None:
        super().__init__(network, config.ema_decay)
        self.config, self.patch_size = config, patch_size
        self.spaced, self.spaced_result = SpacedNetwork(network, architecture), SpacedNetwork(self.result, architecture)
        self.classes = {name: i for name, i in labels.items() if i != 0}
        # MONAI's, which the trainings of other recipes do without, though they share callbacks with this one's.
        from ssmvision.recipes.segmentation.losses import training_criterion

        self.criterion = training_criterion(config.batch_dice, config.devices)
        self.skipped, self.streak, self.parts = 0, 0, 1
        self._cases: list[list[float]] = []
        self._image, self._own, self._loss = (torch.empty(0) for _ in range(3))
        self._shape: tuple[int, ...] = ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B, C, *patch) of the latest batch."""
        return tuple(self._shape)

    def forget_batch(self) -> None:
        """Lets go of the latest batch's memory."""
        self._image, self._own, self._loss = (torch.empty(0) for _ in range(3))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is no tensor of the module."""
        checkpoint["steps"] = {name: getattr(self, name) for name in ("skipped", "streak", "parts", "validation")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again."""
        for name, value in checkpoint["steps"].items():
            setattr(self, name, value)

    def loss(self, outputs: Tensor | list[Tensor], label: Tensor) -> Tensor:
        """See `losses.segmentation_loss`."""
        from ssmvision.recipes.segmentation.losses import segmentation_loss

        return segmentation_loss(self.criterion, outputs, label)

    def training_step(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Loss of a batch of patches; of more than one part, all but the last are run backward at once."""
        self._image, self._shape = batch["image"], tuple(batch["image"].shape)
        images, spacings, labels = (batch[key].chunk(self.parts) for key in ("image", "spacing_mm", "label"))
        total = torch.zeros((), device=self.device)
        for i, (image, spacing, label) in enumerate(zip(images, spacings, labels, strict=True), 1):
            share = len(image) / len(self._image)
            loss = share * self.loss(self.spaced(image, spacing), label)
            total = total + loss.detach()
            if i < len(images):
                with torch.autocast(self.device.type, enabled=False):
                    self.trainer.strategy.backward(loss, None)
        self._own, self._loss = total, mean_over_ranks(total)
        self.log("train_loss", self._loss, prog_bar=True, on_step=True, on_epoch=False)
        return {"loss": loss, "whole": self._loss}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: gradients are dropped before the step, as the parts of a batch add to them inside it."""

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step; where memory runs out and `auto_halve` is set, again in smaller parts."""

        def closure() -> Any:
            while True:
                optimizer.zero_grad(set_to_none=True)
                try:
                    return cast(Callable[[], Any], optimizer_closure)()
                except torch.OutOfMemoryError:
                    if not self.config.auto_halve or self.parts >= len(self._image):
                        raise
                self._halve()

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def _halve(self) -> None:
        self.parts = min(2 * self.parts, len(self._image))
        torch.cuda.empty_cache()
        seed_step(self.config.seed, self.global_step, self.global_rank)
        warnings.warn(
            f"step {self.global_step + 1}: out of memory; from here on a batch of {len(self._image)} patches runs in "
            f"{self.parts} parts whose gradients are added up"
            + (", and the Dice loss is taken over each part" if self.config.batch_dice else ""),
            stacklevel=2,
        )

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm; a step whose loss or gradients are not finite is skipped.

        Loss and gradients are means over all processes here, so that all of them decide alike.
        """
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
        if bool(torch.isfinite(norm + self._loss)):
            self.streak = 0
            if self.config.gradient_clip:
                nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
            return
        self._skip(norm)
        optimizer.zero_grad(set_to_none=True)  # so that the optimiser changes neither weights nor momentum

    def _skip(self, norm: Tensor) -> None:
        """Counts and names a bad step; ends the run after too many of them.

        Raises:
            UserError: `max_nonfinite_steps` came one after another.
        """
        bad_loss = not bool(torch.isfinite(self._loss))
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not bad_loss and scaler is not None and scaler.get_scale() > 1:
            return  # float16 overflowed under the loss scale alone, which now shrinks: a step of the scaler's search
        self.skipped, self.streak = self.skipped + 1, self.streak + 1
        what = f"loss is {float(self._loss)}" if bad_loss else f"gradient norm is {float(norm)}"
        where = first_of_ranks(self._nonfinite_place(bad_loss))
        place = f"epoch {self.current_epoch + 1}, step {self.global_step + 1}: {what}; first non-finite: {where}"
        if self.streak < self.config.max_nonfinite_steps:
            warnings.warn(f"step skipped at {place}", stacklevel=2)
            return
        raise UserError(
            f"training stopped at {place}, step {self.streak} of that kind in a row. Lower trainer.lr (now "
            f"{self.config.lr:g}) or use trainer.precision=32-true; last.ckpt holds the last good state"
        )

    def _nonfinite_place(self, bad_loss: bool) -> str:
        """Where it began in this process; empty where the loss is bad in another one."""
        if bad_loss:
            finite = bool(torch.isfinite(self._own))
            return "" if finite else first_nonfinite_module(self.network, self._image)
        name = last_nonfinite_gradient(self.network)
        return f"gradient of {name}" if name else "the sum of all squares"

    def on_validation_epoch_start(self) -> None:
        """Forgets the cases of the last validation."""
        self._cases = []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Dice per class of one whole volume, by sliding windows; NaN where nobody marks the class."""
        self.spaced_result.set_spacing(batch["spacing_mm"][0, : len(self.patch_size)].tolist())
        prediction = self._labels(batch["image"][0])
        label = batch["label"][0, 0]
        dice = []
        for i in self.classes.values():
            p, r = prediction == i, label == i
            size = int(p.sum()) + int(r.sum())
            dice.append(2.0 * int((p & r).sum()) / size if size else math.nan)
        self._cases.append(dice)

    def _labels(self, image: Tensor) -> Tensor:
        """Label map of a volume; where the device cannot hold it, it stays in main memory and windows go over."""
        try:
            return stream_labels(self._finest, image, self.patch_size)
        except torch.OutOfMemoryError:
            pass  # the handler would keep the tensors
        warnings.warn(
            f"validation: out of memory for {tuple(image.shape)} on {self.device}; kept on the CPU", stacklevel=2
        )
        torch.cuda.empty_cache()
        labels = stream_labels(lambda w: self._finest(w.to(self.device)).cpu(), image.cpu(), self.patch_size)
        return labels.to(self.device)

    def _finest(self, image: Tensor) -> Tensor:
        output = self.result(image)
        return cast(Tensor, output[0] if isinstance(output, list | tuple) else output).float()

    def on_validation_epoch_end(self) -> None:
        """Means per class over the cases that count, those of all processes."""
        rows = gather_cases(self._cases, len(cast(Any, self.trainer.val_dataloaders).dataset))
        scores = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
        self.validation = dict(zip(self.classes, scores, strict=True))
        self.log("val_dice", self.mean_dice, prog_bar=True, sync_dist=True)

    @property
    def mean_dice(self) -> float:
        """Of the latest validation, over the classes that some case has; NaN without any."""
        counted = [value for value in self.validation.values() if not math.isnan(value)]
        return sum(counted) / len(counted) if counted else math.nan

    def configure_optimizers(self) -> Any:
        """SGD or AdamW with the polynomial schedule."""
        return make_optimizer(self.network, self.config)
