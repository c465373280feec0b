"""MONAI bundles of trained segmentation networks: `ssmvision export`, and what a bundle's configuration calls."""
