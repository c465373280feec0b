"""Operators: tensors in, tensors out. One folder per op, one file per backend; nothing of ours is imported from above."""
