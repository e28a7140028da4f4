"""Training step by step, and what two machines must agree on: all that no rounding decides.

Sums of float32 in another order differ by 1e-7. A weight so near zero that this changes its sign a step
earlier on one machine has the other bit there, and from then on the two train apart. So gradients are
compared after one step from the same state, and losses as long as all signs agree; the signs that differ
are counted.

As a program: `python tests/trajectories.py OUT.npz STEPS [--smooth] --config=...` trains by the loop's own
step and saves what `Trajectory` has; options for several processes as of train.py. ``--smooth`` puts softplus
in the place of ReLU, so that no rounding moves a number across its corner.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from binwrn_jax.parallel import sharding

STEPS = 20


@dataclasses.dataclass
class Trajectory:
    """``gradients``: momentum after the first step; ``losses``; ``signs`` of all kernels before each."""

    gradients: np.ndarray
    losses: np.ndarray
    signs: np.ndarray


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree in one row, whatever processes hold copies."""
    return np.concatenate([np.ravel(np.asarray(x.addressable_data(0))) for x in jax.tree.leaves(tree)])


def follow(step: Any, state: Any, data: Any, steps: int = STEPS) -> Trajectory:
    """Trains; ``data`` is `DeviceData` or what has its ``batch(position)``."""
    losses, signs, gradients = [], [], None
    for position in range(steps):
        signs.append(np.packbits(flat(state.params) >= 0))
        state, metrics = step(state, data.batch(position))
        losses.append(float(metrics["loss"]))
        if gradients is None:
            (gradients,) = (flat(part.trace) for part in state.opt_state if hasattr(part, "trace"))
    return Trajectory(gradients, np.array(losses), np.stack(signs))


def assert_same(ours: Trajectory, theirs: Trajectory, at_least: int = 2) -> None:
    """Equal gradients after one step, and losses until the first sign that a rounding flips."""
    gap = np.linalg.norm(ours.gradients - theirs.gradients) / np.linalg.norm(theirs.gradients)
    flips = np.bitwise_count(ours.signs ^ theirs.signs).sum(1)
    steps = len(flips) if not flips.any() else int(np.argmax(flips > 0))
    apart = np.abs(ours.losses / theirs.losses - 1)
    print(f"gradients {gap:.1e} apart; {steps} steps of equal signs; signs that differ: {flips.tolist()}")
    print(f"losses apart by up to {apart[:steps].max():.1e} until then, {apart.max():.1e} in all")
    assert gap < 1e-5
    assert steps >= at_least  # the first step is before any rounding
    assert apart[:steps].max() < 1e-5


def main(argv: list[str]) -> None:
    from binwrn_jax.cli.flags import parse_flags, take_processes
    from binwrn_jax.data.open import open_batches, open_dataset
    from binwrn_jax.parallel.processes import initialize
    from binwrn_jax.training.config import image_options
    from binwrn_jax.training.resolve import resolve
    from binwrn_jax.training.state import init_state
    from binwrn_jax.training.step import jit_train_step

    out, steps = Path(argv[1]), int(argv[2])
    if "--smooth" in argv:
        argv.remove("--smooth")
        nn.relu = jax.nn.softplus
    processes, rest = take_processes([argv[0], *argv[3:]])
    config = parse_flags(rest, "digits").config
    initialize(processes)
    mesh = sharding.make_mesh(config.devices)
    dataset = open_dataset(config.data.name, config.data.dir or None, image_options(config))
    spec = dataset.info
    split = config.data.train_split or spec.train_split
    data = open_batches(dataset, split, mesh, config.batch_size, seed=config.seed)
    run = resolve(config, spec, data.size)
    state = init_state(run.network, run.optimizer, spec.image_shape, config.seed)
    step = jit_train_step(run, mesh)
    found = follow(step, sharding.put(state, sharding.replicated(mesh)), data, steps)
    if jax.process_index() == 0:
        np.savez(out, **dataclasses.asdict(found))
    multihost_utils.sync_global_devices("saved")


if __name__ == "__main__":
    main(sys.argv)
