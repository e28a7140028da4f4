"""Wide residual networks with one bit per weight, in JAX and Flax."""
