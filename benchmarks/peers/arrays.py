"""The numbers of a convolution, the same in each process that measures it, and a mark of its results."""

from __future__ import annotations

from typing import Any

import numpy as np


def arrays(setting: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images ``[N, H, W, C_in]``, a kernel ``[3, 3, C_in, C_out]`` and a cotangent of the result, float32.

    Small whole numbers: bfloat16 holds them as they are.
    """
    rng = np.random.default_rng(0)
    out = -(-setting["size"] // setting["stride"])
    shapes = (
        (setting["batch"], setting["size"], setting["size"], setting["c_in"]),
        (3, 3, setting["c_in"], setting["c_out"]),
        (setting["batch"], out, out, setting["c_out"]),
    )
    x, kernel, g = (rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes)
    return x, kernel, g


def mark(result: np.ndarray) -> list[float]:
    """The norm of an array, in the layouts of `arrays`, and its product with a random vector of norm 1."""
    flat = result.astype(np.float64).ravel()
    direction = np.random.default_rng(1).standard_normal(flat.size)
    return [float(np.linalg.norm(flat)), float(flat @ direction / np.linalg.norm(direction))]
