"""A network as a list of operations: tracing, simplification, cost."""
