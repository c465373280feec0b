"""Fusion of registered images (importing this package imports nothing heavy)."""
