"""S4ND on images of another resolution than those of training (importing this package imports nothing heavy)."""
