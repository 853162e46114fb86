"""core.DRAW as one operator on the CPU: draw.c, and the Python that compiles, loads and calls it."""
