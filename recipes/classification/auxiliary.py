"""What a network itself adds to the loss of a training step, such as a mixture of experts' balancing."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["WithAuxiliaryLoss"]


class WithAuxiliaryLoss(nn.Module):
    """A network whose training step gives its own loss as well, so that a recording of it has both.

    Args:
        network: (B, C, H, W) to logits; its method `auxiliary_loss`, if it has one, tells the loss of the last call.

    Shape:
        (B, C, H, W) -> a tuple of logits (B, classes) and, where the network has one, its loss ().
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        logits: Tensor = self.network(image)
        tell = getattr(self.network, "auxiliary_loss", None)
        loss = tell() if callable(tell) else None
        return (logits,) if loss is None else (logits, loss)
