"""What values a packed network has on images: the ranges that 8 bits are chosen for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from binwrn_jax.deploy import numpy_reader

RULES = ("mse", "percentile")
SAMPLES = 1 << 13  # numbers of each value and batch that its limits are chosen from
PERCENTILE = 99.99
STEPS = 100  # limits that the rule 'mse' compares
CHUNK = 8  # images at a time

Arrays = Mapping[str, np.ndarray]
Operation = dict[str, Any]


class Range(NamedTuple):
    """What calibration found of one value: its smallest and largest number, and some of its numbers."""

    low: float
    high: float
    sample: np.ndarray


def calibrate(operations: Sequence[Operation], tensors: Arrays, images: np.ndarray) -> dict[str, Range]:
    """Ranges of all values of a float32 network.

    Args:
      operations: of the network.
      tensors: its arrays by name.
      images: uint8 ``[N, H, W, C]``, some hundred training images.
    """
    found: dict[str, Range] = {}
    for first in range(0, len(images), CHUNK):
        for name, x in values_of(operations, tensors, images[first : first + CHUNK]):
            flat = x.reshape(-1)
            sample = flat[:: max(1, flat.size // SAMPLES)]
            low, high = float(flat.min()), float(flat.max())
            if name in found:
                old = found[name]
                low, high, sample = min(low, old.low), max(high, old.high), np.append(old.sample, sample)
            found[name] = Range(low, high, sample)
    return found


def values_of(
    operations: Sequence[Operation], tensors: Arrays, images: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Each value of a float32 network, by name, as it is made."""
    last = {name: index for index, operation in enumerate(operations) for name in operation["in"]}
    values = {"image": images.astype(np.float32)}
    for index, operation in enumerate(operations):
        result = numpy_reader.compute(operation, [values[name] for name in operation["in"]], tensors)
        values[operation["out"]] = result
        yield operation["out"], result
        for name in operation["in"]:
            if last[name] == index:
                values.pop(name, None)


def choose_limits(found: Range, rule: str) -> tuple[float, float]:
    """The smallest and the largest number that 8 bits shall hold; 0 lies between them.

    Args:
      found: of the value.
      rule: ``'percentile'`` keeps all but one number in 10,000 on each side; ``'mse'`` gives the smallest
        mean square of what rounding and clipping change.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    x = found.sample.astype(np.float64)
    if rule == "percentile":
        inner = np.percentile(x, [100 - PERCENTILE, PERCENTILE])
        return min(float(inner[0]), 0.0), max(float(inner[1]), 0.0)
    best = (np.inf, low, high)
    for part in np.linspace(1 / STEPS, 1, STEPS):
        bounds = low * part, high * part
        step = (bounds[1] - bounds[0]) / 255 or 1.0
        error = np.square(np.clip(np.round(x / step) * step, *bounds) - x).mean()
        best = min(best, (float(error), *bounds))
    return best[1:]
