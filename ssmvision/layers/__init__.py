"""Building blocks: nn.Modules on top of `ssmvision.kernels`."""
