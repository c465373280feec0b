"""Parity with the official implementations: one module per golden-folder format."""
