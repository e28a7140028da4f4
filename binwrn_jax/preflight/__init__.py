"""Compile a training step for machines elsewhere: does it fit, how fast can it be."""
