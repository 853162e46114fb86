"""Named data sets and your own images: loading, binarization, and the noise that goes with them."""
