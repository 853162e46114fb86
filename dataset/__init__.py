"""Images: MNIST or synthetic digits, their binarization, and the noise that goes with them."""
