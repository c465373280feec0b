"""The width of a network that has a given number of parameters."""

from __future__ import annotations

from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import ModelConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.classification.networks import build, count_all
from ssmvision.recipes.image_study.config import Entry, ImageStudyConfig

__all__ = ["matched_model", "plain_model"]

WIDEST = 2048


def plain_model(config: ImageStudyConfig, entry: Entry) -> ModelConfig:
    """The entry's network as its arguments have it."""
    return ModelConfig(entry.model, {**config.arguments, **entry.arguments})


def matched_model(config: ImageStudyConfig, entry: Entry, classes: tuple[str, ...], scale: Scale) -> ModelConfig:
    """The entry's network at the width with the number of parameters nearest to `config.match_parameters`.

    Args:
        config: of the study.
        entry: one of it.
        classes, scale: of the data.

    Raises:
        UserError: the model refuses its arguments, or no width comes near.
    """
    plain = plain_model(config, entry)
    wanted = config.match_parameters
    if wanted is None:
        build(plain, classes, scale)
        return plain
    counts: dict[int, int] = {}

    def count(steps: int) -> int:
        if steps not in counts:
            network, _ = build(_widened(plain, steps * entry.width_step), classes, scale)
            counts[steps] = count_all(network)
        return counts[steps]

    low, high = 1, 2
    while count(high) < wanted:
        low, high = high, 2 * high
        if high * entry.width_step > WIDEST:
            raise UserError(f"match_parameters: {entry.name} has {count(low):,} at most; give fewer")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    nearest = min((low, high), key=lambda steps: abs(count(steps) - wanted))
    return _widened(plain, nearest * entry.width_step)


def _widened(model: ModelConfig, width: int) -> ModelConfig:
    """With this width, or with this width in the first stage and the others in proportion."""
    dims = model.arguments.get("dims")
    wider: dict[str, Any] = {"embed_dim": width} if dims is None else {"dims": [width * d // dims[0] for d in dims]}
    return ModelConfig(model.name, {**model.arguments, **wider})
