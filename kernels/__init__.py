"""Operators: tensors in, tensors out. A folder per op, a file per backend; nothing of ours above is imported."""
