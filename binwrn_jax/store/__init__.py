"""Model folders and checkpoints, each with a proof of its files."""
