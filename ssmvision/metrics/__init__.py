"""Measures of results. `ssmvision.metrics.fusion` holds those of image fusion."""
