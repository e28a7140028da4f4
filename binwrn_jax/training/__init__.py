"""Training: configuration, recipe, step, loop and what a run writes."""
