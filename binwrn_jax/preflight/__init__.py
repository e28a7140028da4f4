"""Compiles a training step for machines elsewhere: whether it fits, how fast it can be."""
