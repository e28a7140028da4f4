"""The least time that a step can take, from the published peaks of the devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from binwrn_jax.parallel.hardware import Peak
from binwrn_jax.preflight.collectives import Collective


class Roofline(NamedTuple):
    """Least seconds per step for each of the three resources; the step takes at least the largest."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds per step at best."""
        return max(self)

    @property
    def bound(self) -> str:
        """The resource that sets it."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(
    flops: float, moved: float, sent: Iterable[Collective], devices: int, top: Peak, dtype: str
) -> Roofline:
    """Bounds from one device's peaks.

    Args:
      flops: operations per step on one device.
      moved: bytes per step to and from its memory; 0 where not known.
      sent: communications per step.
      devices: how many take part.
      top: the peaks.
      dtype: of the activations, which sets the peak of the matrix units.
    """
    return Roofline(
        flops / top.flops(dtype),
        moved / top.bandwidth,
        collective_seconds(sent, devices, top.links) if top.links else 0.0,
    )


def collective_seconds(found: Iterable[Collective], devices: int, links: float) -> float:
    """Least time of communications, each device sending ``links`` bytes per second over all its links.

    A ring all-reduce of B bytes over n devices sends 2 B (n - 1) / n from each; an all-gather (B bytes of
    result) and an all-to-all half of that; a reduce-scatter (B bytes of result) B (n - 1).
    """
    if devices < 2:
        return 0.0
    ring = (devices - 1) / devices
    factors = {"all-reduce": 2 * ring, "all-gather": ring, "all-to-all": ring, "reduce-scatter": devices - 1}
    return sum(factors.get(c.kind, 1.0) * c.times * c.bytes for c in found) / links


def by_kind(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Counts and bytes of communications per step, one entry per kind."""
    totals: dict[str, list[int]] = {}
    for collective in found:
        entry = totals.setdefault(collective.kind, [0, 0])
        entry[0] += collective.times
        entry[1] += collective.times * collective.bytes
    return [{"kind": kind, "count": count, "bytes": total} for kind, (count, total) in sorted(totals.items())]


def activations_travel(found: Iterable[Collective]) -> bool:
    """Whether more than gradients and moments goes between devices: these are summed, images are moved."""
    found = list(found)
    moved = sum(c.times * c.bytes for c in found if c.kind != "all-reduce")
    return 2 * moved > sum(c.times * c.bytes for c in found)
