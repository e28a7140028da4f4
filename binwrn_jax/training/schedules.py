"""Learning rates by step: SGDR (section 3.3) and the step schedule of Fig. 6."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from binwrn_jax.errors import UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

SCALINGS = ("none", "linear", "sqrt")
SCHEDULES = ("sgdr", "step", "cosine")


def cycle_ends(epochs: int, first: int = 2) -> tuple[int, ...]:
    """Epochs at which the SGDR cycles end: cycles of 2, 4, 8, ... epochs, the last cut at ``epochs``.

    The paper's totals of 6, 14, 30, 62, 126 and 254 are ends of whole cycles.

    >>> cycle_ends(254)
    (2, 6, 14, 30, 62, 126, 254)
    """
    if epochs < 1 or first < 1:
        raise UserError(f"epochs ({epochs}) and the first cycle ({first}) must be at least 1")
    ends: list[int] = []
    length = first
    while not ends or ends[-1] < epochs:
        ends.append(min((ends[-1] if ends else 0) + length, epochs))
        length *= 2
    return tuple(ends)


def sgdr(
    epochs: int,
    steps_per_epoch: int,
    peak: float = 0.1,
    floor: float = 1e-4,
    first_cycle: int = 2,
) -> Schedule:
    """Cosine learning rate with warm restarts (Loshchilov & Hutter 2017), updated at each step.

    In a cycle of T steps, step t = 0..T-1 has the rate
    ``floor + (peak - floor) (1 + cos(pi t / T)) / 2``: it starts at exactly ``peak`` and its last
    step is one short of ``floor``, as in the SGDR paper. Steps past the end have ``floor``.

    Args:
      epochs: total; cycles as `cycle_ends`.
      steps_per_epoch: optimiser steps in one epoch.
      peak: rate after each restart (0.1).
      floor: rate at the end of each cycle (1e-4 in the paper, 1e-5 in both released versions).
      first_cycle: epochs of the first cycle.

    Returns:
      A function of the step (int scalar) to the rate (float32 scalar).

    >>> rate = sgdr(epochs=6, steps_per_epoch=100)
    >>> [round(float(rate(step)), 4) for step in (0, 100, 199, 200, 400)]
    [0.1, 0.05, 0.0001, 0.1, 0.05]
    """
    starts = (0, *cycle_ends(epochs, first_cycle))
    # A last cycle cut short by `epochs` is a shorter cosine: each run ends at a low rate.
    return optax.sgdr_schedule(
        [
            {
                "init_value": peak,
                "peak_value": peak,
                "warmup_steps": 0,
                "decay_steps": (end - start) * steps_per_epoch,
                "end_value": floor,
            }
            for start, end in itertools.pairwise(starts)
        ]
    )


def step_decay(
    steps_per_epoch: int,
    rates: Sequence[float] = (0.1, 0.01, 0.001),
    drops: Sequence[int] = (85, 170),
) -> Schedule:
    """Piecewise constant rate: ``rates[i]`` up to epoch ``drops[i]`` (Fig. 6's comparison).

    Args:
      steps_per_epoch: optimiser steps in one epoch.
      rates: one more than ``drops``.
      drops: epochs, ascending; the first step of that epoch has the new rate.

    >>> rate = step_decay(steps_per_epoch=10)
    >>> [round(float(rate(step)), 3) for step in (0, 849, 850, 1700)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if len(rates) != len(drops) + 1:
        raise UserError(f"{len(drops)} drops need {len(drops) + 1} rates, not {len(rates)}")
    boundaries = [drop * steps_per_epoch for drop in drops]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], boundaries)


def batch_factor(batch_size: int, reference_batch: int, scaling: str) -> float:
    """By how much a larger batch multiplies the learning rate.

    Args:
      batch_size: B, images of one update over all devices and micro-batches.
      reference_batch: R, for which the rate was chosen (125 in the paper).
      scaling: ``'linear'`` is B / R (Goyal et al. 2017), ``'sqrt'`` its square root, ``'none'`` is 1.

    >>> batch_factor(1000, 125, 'linear'), batch_factor(2000, 125, 'sqrt'), batch_factor(1000, 125, 'none')
    (8.0, 4.0, 1.0)
    """
    if scaling not in SCALINGS:
        raise UserError(f"unknown schedule.scaling {scaling!r}: choose one of {', '.join(SCALINGS)}")
    exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[scaling]
    return (batch_size / reference_batch) ** exponent


def scaled(schedule: Schedule, factor: float = 1.0, warmup_steps: int = 0) -> Schedule:
    """A schedule for another batch size: ``rate(t) = factor min(1, (t + 1) / warmup_steps) schedule(t)``.

    The warm-up only multiplies: cycles keep their ends, also where it is longer than the first cycle,
    and restarts after it begin at the full peak. Floors are scaled like peaks.

    Args:
      schedule: of the reference batch, by step.
      factor: see `batch_factor`.
      warmup_steps: steps until the rate is whole; 0 for no warm-up.

    >>> rate = scaled(step_decay(steps_per_epoch=10), factor=4.0, warmup_steps=8)
    >>> [round(float(rate(step)), 3) for step in (0, 3, 7, 8, 850)]
    [0.05, 0.2, 0.4, 0.4, 0.04]
    """
    if factor == 1.0 and not warmup_steps:
        return schedule

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        ramp = jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / max(warmup_steps, 1))
        return factor * ramp * schedule(step)

    return rate
