"""Devices, processes and signals: what each computes, and how all end together."""
