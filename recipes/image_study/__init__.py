"""Comparison of image classifiers: every entry, every seed, equal budget, one report."""
