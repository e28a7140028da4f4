"""Devices, processes and signals: who computes what, and how all end together."""
