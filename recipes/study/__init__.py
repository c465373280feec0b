"""Comparison of networks on one dataset: every fold, every seed, equal budget, one report."""
