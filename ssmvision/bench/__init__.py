"""Benchmarks a user can repeat: every figure beside a peer, from the same run."""
