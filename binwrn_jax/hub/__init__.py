"""Models by name, and the files that the paper's author released."""
