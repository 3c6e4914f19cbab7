"""The adapter: A from a seed, the layers that hold A and B, what of a model trains and travels."""
