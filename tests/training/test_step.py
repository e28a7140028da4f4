"""The jitted steps: one compilation, donation, learning, and the same result on one device and on eight."""

import functools

import jax
import numpy as np
import pytest
from trajectories import assert_same, follow

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
)
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.sharding import check_batch
from binwrn_jax.preflight.collectives import collectives
from binwrn_jax.training.recipes import paper_recipe

BATCH = 40
MODEL = WideResNet(depth=8, width=0.25)
OPTIMIZER = sgd(sgdr(2, 35), resets=(3,))


@pytest.fixture(scope="module")
def start(digits):
    """A fresh state as NumPy arrays."""
    return jax.device_get(init_state(MODEL, OPTIMIZER, (8, 8, 1), seed=0))


class Trainer:
    """A compiled training step on so many devices, as the loop compiles it."""

    def __init__(self, digits, start, devices, model=MODEL, augmentation="flip_crop_cutout", batch=BATCH):
        mesh = make_mesh(devices)
        self.data = DeviceData(digits[0], mesh, batch, seed=3)
        everywhere = sharding.replicated(mesh)
        self.step = jax.jit(
            make_train_step(
                model,
                OPTIMIZER,
                paper_recipe(augmentation),
                seed=5,
                steps_per_epoch=self.data.steps_per_epoch,
            ),
            donate_argnums=0,
            in_shardings=(everywhere, sharding.inputs(mesh)),
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

    def follow(self):
        return follow(self.step, self.state, self.data)


@pytest.fixture(scope="module")
def one(digits, start):
    trainer = Trainer(digits, start, 1)
    return trainer, [trainer.run(1) for _ in range(6)]


@pytest.fixture(scope="module")
def alone(digits, start):
    """Twenty steps on one device, of batches of a size."""
    return functools.cache(lambda batch: Trainer(digits, start, 1, batch=batch).follow())


@pytest.mark.parametrize(
    ("devices", "batch"),
    [
        pytest.param(8, 40, marks=pytest.mark.slow),
        pytest.param(2, 50, marks=pytest.mark.slow),
        pytest.param(3, 50, marks=pytest.mark.slow),
        (8, 50),
    ],
)
def test_several_devices_equal_one(digits, start, alone, eight_devices, devices, batch):
    """Augmentation included, over a momentum reset; shards of 5 of 40 images, or 7 of 50 and one of 1."""
    trainer = Trainer(digits, start, devices, batch=batch)
    assert_same(trainer.follow(), alone(batch))
    assert trainer.step._cache_size() == 1


def test_uneven_batches_share_gradients_and_moments_only(digits, start, eight_devices):
    """As the even ones, but for the labels: XLA scatters the gradient of the loss by all of them."""
    found = {}
    for batch in (40, 50):
        trainer = Trainer(digits, start, 8, batch=batch)
        found[batch] = collectives(
            trainer.step.lower(trainer.state, trainer.data.batch(0)).compile().as_text()
        )
    even, uneven = ([(c.kind, c.bytes) for c in found[batch]] for batch in (40, 50))
    assert {kind for kind, _ in even} == {"all-reduce"}
    assert sorted(set(uneven) - set(even)) == [("all-gather", 4 * 56)]
    assert len(uneven) == len(even) + 1


def test_state_of_several_devices(digits, start, one, eight_devices):
    """The running moments and the count of errors, which no sign enters in the first step."""
    eight = Trainer(digits, start, 8)
    state = eight.run(1)
    for mine, theirs in zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(one[1][0].batch_stats), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(eight.state))


@pytest.mark.parametrize("batch", [pytest.param(40, marks=pytest.mark.slow), 50])
def test_ghost_groups_do_not_depend_on_the_devices(digits, start, eight_devices, batch):
    """Groups of 10 straddle the shards of 5 or 7, and 4 or 5 do not divide over 8 devices."""
    model = MODEL.clone(ghost_size=10)
    ours, theirs = (Trainer(digits, start, devices, model, "none", batch).follow() for devices in (8, 1))
    assert_same(ours, theirs)


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


def test_training_learns_real_digits(digits, start):
    """Two epochs of 4 to 16 1-bit channels: the loss falls, and digits of the test set are told apart."""
    trainer = Trainer(digits, start, 1, augmentation="none")
    trainer.run(2 * trainer.data.steps_per_epoch)
    first, last = np.mean(trainer.losses[:5]), np.mean(trainer.losses[-5:])
    assert first > 1.5 and last < 0.65 * first
    step = jax.jit(functools.partial(MODEL.apply, train=True, mutable=["batch_stats"]))
    logits, _ = step(trainer.state.variables, digits[1].images)
    error = (np.asarray(logits).argmax(1) != digits[1].labels).mean()
    assert error < 0.3


def test_batches_that_do_not_divide_into_groups():
    check_batch(125, 25)
    with pytest.raises(
        UserError, match="batch_size 125 does not divide into ghost groups of 50: use 100 or 150"
    ):
        check_batch(125, 50)
    with pytest.raises(
        UserError, match="batch_size 25 does not divide into ghost groups of 50: use 50, or change"
    ):
        check_batch(25, 50)
    with pytest.raises(UserError, match="at least 1"):
        check_batch(0)


@pytest.mark.parametrize(
    ("batch", "devices", "text"),
    [
        (125, 8, "125 images over 8 devices: 16, 16, ... 13"),
        (50, 3, "50 images over 3 devices: 17, 17, 16"),
        (9, 8, "9 images over 8 devices: 2, 2, ... 0 (3 without any)"),
    ],
)
def test_uneven_batches_are_described(eight_devices, batch, devices, text):
    assert str(sharding.BatchSplit(make_mesh(devices), batch)) == text


def test_too_many_devices():
    with pytest.raises(UserError, match="1000 devices wanted, but JAX sees"):
        make_mesh(1000)
