"""Image classification: any timm model on pictures, from training to a report."""
