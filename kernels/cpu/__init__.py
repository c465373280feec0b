"""What the CPU kernels share: vectors for Numba, flat views of tensors, threads."""
