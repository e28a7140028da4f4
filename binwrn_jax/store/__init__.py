"""Files on disk: atomic writes, checkpoints, model folders."""
