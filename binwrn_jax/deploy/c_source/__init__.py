"""Packed models as C programs: the plan, the text, and its proof by compiling it here."""
