"""Volume and slice segmentation: train, predict and evaluate (importing this package imports nothing heavy)."""
