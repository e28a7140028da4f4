"""Packed model files, one bit per weight, and everything that reads or writes them."""
