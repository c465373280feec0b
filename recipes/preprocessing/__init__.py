"""Cases brought to the network's grid once, by nnU-Net's rules, and kept on disk for training."""
