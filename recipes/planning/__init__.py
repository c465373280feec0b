"""Plans a segmentation from its data: nnU-Net v2's self-configuration, as a readable file that can be edited."""
