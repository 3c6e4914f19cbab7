"""Being server and clients at once: an in-process grid, Flower's engine, and what came out."""
