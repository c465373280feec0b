"""State-space models for images and medical volumes."""

__version__ = "0.1.0"
