"""Samples, reconstructions and learning curves as pictures."""
