"""Means over seeds, and differences of two experiments that are paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from paper.runs import Measurement


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, of one value the value.

    >>> spread([1.0, 2.0, 3.0]), spread([0.5])
    ('2.00 +- 1.00', '0.50')
    """
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.2f}"


class Difference(NamedTuple):
    """A `Comparison`, measured: test error of ``worse`` minus that of ``better``, by seed.

    Attributes:
      mean: in percentage points.
      sd: standard deviation over the seeds; None for one seed.
      low: of the 95 % interval of the mean, Student's t over the seeds; None for one seed.
      high: its other end.
      n: seeds that both have.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int

    def verdict(self, equal: bool = False) -> str:
        """What the seeds say of a claim; fewer than three are not asked.

        Args:
          equal: the claim is that there is no difference, see `Comparison`: seeds can refute it, and show how
            small a difference is, but not that there is none.
        """
        if self.low is None or self.high is None or self.n < 3:
            return "too few seeds"
        if self.low <= 0 <= self.high:
            half = (self.high - self.low) / 2
            return f"no difference seen, +- {half:.2f}" if equal else "not resolved"
        return "agrees" if self.low > 0 and not equal else "disagrees"


def difference(worse: Sequence[Measurement], better: Sequence[Measurement]) -> Difference | None:
    """The paired difference of two experiments over the seeds and the dtype that both have, or None.

    >>> from pathlib import Path
    >>> from paper.runs import Run
    >>> def of(errors):
    ...     runs = [Run(Path(), {"seed": seed}, {}, [], {}) for seed in range(len(errors))]
    ...     return [Measurement("float32", runs, errors, [], [], [])]
    >>> result = difference(of([10.0, 12.0, 11.0]), of([9.0, 10.0, 10.0]))
    >>> round(result.mean, 2), round(result.low, 2), round(result.high, 2), result.verdict()
    (1.33, -0.1, 2.77, 'not resolved')
    """
    from scipy.stats import t

    pairs = {m.dtype: m.by_seed() for m in better}
    for left in worse:
        right = pairs.get(left.dtype, {})
        values = [error - right[seed] for seed, error in left.by_seed().items() if seed in right]
        if not values:
            continue
        mean, n = statistics.fmean(values), len(values)
        if n == 1:
            return Difference(mean, None, None, None, 1)
        sd = statistics.stdev(values)
        half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        return Difference(mean, sd, mean - half, mean + half, n)
    return None
