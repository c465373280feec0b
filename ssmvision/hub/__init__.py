"""Models as folders that travel: weights without pickles, what builds the model, and a card for people."""

from ssmvision.hub.card import Card
from ssmvision.hub.folder import expected_digest, load_pretrained, save_pretrained

__all__ = ["Card", "expected_digest", "load_pretrained", "save_pretrained"]
