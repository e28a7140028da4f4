"""The jitted steps: one compilation, donation, learning, and the same result on one device and on eight."""

import functools

import jax
import numpy as np
import pytest
from oracles import distance

from binwrn_jax import (
    DeviceData,
    TrainState,
    UserError,
    WideResNet,
    init_state,
    make_mesh,
    make_train_step,
    sgd,
    sgdr,
    sharding,
)

BATCH = 40
MODEL = WideResNet(depth=8, width=0.25)
OPTIMIZER = sgd(sgdr(2, 35), resets=(3,))


@pytest.fixture(scope="module")
def start(digits):
    """A fresh state as NumPy arrays."""
    return jax.device_get(init_state(MODEL, OPTIMIZER, (8, 8, 1), seed=0))


class Trainer:
    """A compiled training step on so many devices, as the loop compiles it."""

    def __init__(self, digits, start, devices, model=MODEL, augmentation="flip_crop_cutout"):
        mesh = make_mesh(devices)
        self.data = DeviceData(digits[0], mesh, BATCH, seed=3)
        everywhere, divided = sharding.replicated(mesh), sharding.split(mesh)
        self.step = jax.jit(
            make_train_step(
                model, OPTIMIZER, augmentation, seed=5, steps_per_epoch=self.data.steps_per_epoch
            ),
            donate_argnums=0,
            in_shardings=(everywhere, {"images": everywhere, "labels": everywhere, "indices": divided}),
            out_shardings=everywhere,
        )
        self.state: TrainState = sharding.put(start, everywhere)
        self.position = 0
        self.losses = []

    def run(self, steps):
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.data.batch(self.position))
            self.losses.append(float(metrics["loss"]))
            self.position += 1
        return jax.device_get(self.state)


@pytest.fixture(scope="module")
def one(digits, start):
    trainer = Trainer(digits, start, 1)
    return trainer, [trainer.run(1) for _ in range(6)]


def test_eight_devices_equal_one(digits, start, one, eight_devices):
    """Augmentation included, over six steps and a momentum reset; shards of 5 of 40 images."""
    trainer, states = one
    eight = Trainer(digits, start, 8)
    for step in range(6):
        state = eight.run(1)
        moved = distance(states[step], start)
        assert moved > 1e-3
        # Sums in another order: float32 rounding, which signs that flip may enlarge a little.
        assert distance(state, states[step]) < 2e-3 * moved
        for mine, theirs in zip(
            jax.tree.leaves(state.batch_stats), jax.tree.leaves(states[step].batch_stats), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(eight.losses, trainer.losses[:6], rtol=1e-3)
    assert eight.state.epoch_errors == one[1][5].epoch_errors
    assert eight.step._cache_size() == 1
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(eight.state))


def test_ghost_groups_do_not_depend_on_the_devices(digits, start, eight_devices):
    """Groups of 10 straddle the shards of 5, and 4 groups do not divide over 8 devices: the same result."""
    model = MODEL.clone(ghost_size=10)
    results = []
    for devices in (1, 8):
        trainer = Trainer(digits, start, devices, model, "none")
        results.append((trainer.run(3), trainer.losses))
    (a, losses_a), (b, losses_b) = results
    assert distance(a, b) < 2e-3 * distance(a, start)
    np.testing.assert_allclose(losses_a, losses_b, rtol=1e-3)
    assert distance(a, start) > 1e-3


def test_one_compilation_and_the_old_state_is_given_back(one):
    trainer, _ = one
    # Without NumPy views of it, as `device_get` makes them on the CPU: what is looked at is not given back.
    state, _ = trainer.step(trainer.state, trainer.data.batch(trainer.position))
    before = jax.tree.leaves(state)
    trainer.state, metrics = trainer.step(state, trainer.data.batch(trainer.position + 1))
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(trainer.state))
    assert np.isfinite(float(metrics["loss"]))
    assert trainer.step._cache_size() == 1


def test_the_same_again_is_bit_identical(digits, start, one):
    """Two runs of one program, and going on from a copy in the middle: position and state say it all."""
    trainer, states = one
    everywhere = sharding.replicated(make_mesh(1))
    state = sharding.put(states[2], everywhere)
    for position in range(3, 6):
        state, _ = trainer.step(state, trainer.data.batch(position))
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(states[5]), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), theirs)


def test_each_step_draws_its_own_augmentation(one):
    """The same weights and batch at two steps: other crops, so another loss; at one step the same."""
    trainer, states = one
    batch = trainer.data.batch(0)

    def loss(step):
        state = states[0].replace(step=np.int32(step))
        return float(trainer.step(sharding.put(state, sharding.replicated(make_mesh(1))), batch)[1]["loss"])

    assert loss(1) == loss(1) and loss(1) != loss(2)


def test_epoch_sums(digits, start, one):
    """Sums of loss and errors since the epoch began, and over the border of an epoch."""
    trainer, states = one
    np.testing.assert_allclose([s.epoch_loss for s in states], np.cumsum(trainer.losses[:6]), rtol=1e-5)
    errors = np.diff([0] + [int(s.epoch_errors) for s in states])
    assert ((errors >= 0) & (errors <= BATCH)).all() and errors.sum() > 0
    assert [int(s.step) for s in states] == [1, 2, 3, 4, 5, 6]
    steps = trainer.data.steps_per_epoch
    late = states[5].replace(step=np.int32(steps - 1))
    state = sharding.put(late, sharding.replicated(make_mesh(1)))
    end, metrics = trainer.step(state, trainer.data.batch(steps - 1))
    loss, errors = float(metrics["loss"]), int(metrics["epoch_errors"])
    assert float(metrics["epoch_loss"]) == pytest.approx(late.epoch_loss + loss, rel=1e-6)
    assert late.epoch_errors <= errors <= late.epoch_errors + BATCH
    _, metrics = trainer.step(end, trainer.data.batch(steps))
    assert float(metrics["epoch_loss"]) == float(metrics["loss"]) and int(metrics["epoch_errors"]) <= BATCH


def test_it_learns_real_digits(digits, start):
    """Two epochs of 4 to 16 1-bit channels: the loss falls, and digits of the test set are told apart."""
    trainer = Trainer(digits, start, 1, augmentation="none")
    trainer.run(2 * trainer.data.steps_per_epoch)
    first, last = np.mean(trainer.losses[:5]), np.mean(trainer.losses[-5:])
    assert first > 1.5 and last < 0.65 * first
    step = jax.jit(functools.partial(MODEL.apply, train=True, mutable=["batch_stats"]))
    logits, _ = step(trainer.state.variables, digits[1].images)
    error = (np.asarray(logits).argmax(1) != digits[1].labels).mean()
    assert error < 0.3


def test_batches_that_do_not_divide():
    mesh = make_mesh(1)
    sharding.check_batch(mesh, 125, 25)
    with pytest.raises(UserError, match="batch_size 125 does not divide into ghost groups of 50"):
        sharding.check_batch(mesh, 125, 50)
    with pytest.raises(UserError, match="at least 1"):
        sharding.check_batch(mesh, 0)


def test_batches_that_do_not_divide_over_devices(eight_devices):
    with pytest.raises(UserError, match="125 does not divide over 8 devices: use 120 or 128"):
        sharding.check_batch(make_mesh(8), 125)
    with pytest.raises(UserError, match="5 does not divide over 8 devices: use 8, or fewer"):
        sharding.check_batch(make_mesh(8), 5)
    with pytest.raises(UserError, match="1000 devices wanted, but JAX sees"):
        make_mesh(1000)
