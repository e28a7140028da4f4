"""Training on several devices at large batches: what crosses devices, accumulation, bfloat16."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trajectories import assert_same, follow

from binwrn_jax import UserError, WideResNet, init_state, make_mesh, make_train_step, sgd, sgdr
from binwrn_jax.parallel import sharding
from binwrn_jax.preflight.collectives import collectives
from binwrn_jax.training.recipes import paper_recipe

BATCH = 64
SHAPE = (32, 32, 3)
OPTIMIZER = sgd(sgdr(2, 100))
# The ImageNet network, narrow, as configs/imagenet.py sets it up.
MODEL = WideResNet(depth=18, width=0.125, num_classes=10, affine=True, ghost_size=8)
# For what must be equal: few layers, as each makes roundings larger, and 64 pixels in its last maps.
SHALLOW = WideResNet(depth=8, width=0.25, num_classes=10, affine=True, ghost_size=8)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, BATCH).astype(np.int32)
    images = rng.integers(0, 256, (BATCH, *SHAPE)) * np.linspace(0.3, 1, 10)[labels][:, None, None, None]
    return {"images": images.astype(np.uint8), "labels": labels}


@contextlib.contextmanager
def without_corners():
    """Softplus for ReLU: else a rounding moves a few numbers across the corner, 1e-4 of the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "relu", jax.nn.softplus)
        yield


@functools.cache
class Compiled:
    """A training step for so many devices, fed batches that are divided over them (as a data path does)."""

    def __init__(self, devices, model=SHALLOW, accumulate=1):
        mesh = make_mesh(devices)
        self.everywhere, self.divided = sharding.replicated(mesh), sharding.split(mesh)
        self.start = jax.eval_shape(lambda: init_state(model, OPTIMIZER, SHAPE))
        inputs = {
            "images": jax.ShapeDtypeStruct((BATCH, *SHAPE), np.uint8),
            "labels": jax.ShapeDtypeStruct((BATCH,), np.int32),
        }
        self.step = make_train_step(
            model, OPTIMIZER, paper_recipe("flip_crop"), seed=1, accumulate=accumulate
        )
        with without_corners():
            lowered = jax.jit(
                self.step, in_shardings=(self.everywhere, self.divided), out_shardings=self.everywhere
            ).lower(self.start, inputs)
        self.program = lowered.compile()

    def run(self, state, batch, steps=3):
        self._inputs = sharding.put(batch, self.divided)
        return follow(self.program, sharding.put(state, self.everywhere), self, steps)

    def batch(self, position):
        return self._inputs


@pytest.fixture(scope="module")
def start():
    return jax.device_get(init_state(SHALLOW, OPTIMIZER, SHAPE))


@pytest.fixture(scope="module")
def one(start, batch):
    """Three steps on one device."""
    return Compiled(1).run(start, batch)


def bytes_to_share() -> int:
    """Gradients and running moments, each once; the loss and the count of errors: four bytes each."""
    start = jax.eval_shape(lambda: init_state(MODEL, OPTIMIZER, SHAPE))
    return 4 * (sum(x.size for x in jax.tree.leaves((start.params, start.batch_stats))) + 2)


def test_no_activation_leaves_its_device(eight_devices):
    """Eight groups on eight devices: the all-reduces carry gradients, running moments and metrics alone."""
    found = collectives(Compiled(8, MODEL).program.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert sum(one.bytes for one in found) == bytes_to_share()


def test_global_statistics_do_cross_devices(eight_devices):
    """The same count, where batch norm is over the whole batch, is higher: the test above can fail."""
    found = collectives(Compiled(8, MODEL.clone(ghost_size=0)).program.as_text())
    assert sum(one.bytes for one in found) > bytes_to_share()


def test_groups_over_several_devices_share_moments_only(eight_devices):
    """Four groups on eight devices: sums per channel and group travel, but no activation."""
    found = collectives(Compiled(8, MODEL.clone(ghost_size=16)).program.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert max(one.bytes for one in found) < bytes_to_share()


def test_eight_devices_equal_one(eight_devices, one, start, batch):
    assert_same(Compiled(8).run(start, batch), one, at_least=1)


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_changes_nothing(one, start, batch, devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices, JAX sees {len(jax.devices())}")
    compiled = Compiled(devices, accumulate=2)
    assert {one.kind for one in collectives(compiled.program.as_text())} <= {"all-reduce"}
    assert_same(compiled.run(start, batch), one, at_least=1)


def test_accumulation_needs_less_memory():
    whole, parts = (
        compiled.program.memory_analysis().temp_size_in_bytes
        for compiled in (Compiled(1), Compiled(1, accumulate=2))
    )
    assert parts < 0.7 * whole


def test_bfloat16_keeps_what_must_be_exact_in_float32(one, start, batch):
    """Activations bfloat16 from the first layer on; state, gradients and loss float32; it learns the same."""
    model = SHALLOW.clone(dtype=jnp.bfloat16)
    compiled = Compiled(1, model)
    losses = compiled.run(start, batch).losses
    kinds = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(compiled.step, start, batch)[0])}
    assert kinds == {np.dtype(np.float32), np.dtype(np.int32)}
    assert all(np.isfinite(losses))
    np.testing.assert_allclose(losses[0], one.losses[0], rtol=0.01)  # before any weight has moved
    np.testing.assert_allclose(losses, one.losses, rtol=0.15)
    assert (losses != one.losses).all()
    images = batch["images"][:8]
    seen = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], capture_intermediates=True),
        start.variables,
        images,
    )
    logits, collected = seen
    assert logits.dtype == np.float32
    layers = collected["intermediates"]
    layers.pop("__call__")
    assert len(layers) == 8 + 9
    assert {layer["__call__"][0].dtype for layer in layers.values()} == {np.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(collected["batch_stats"])} == {np.dtype(np.float32)}


def test_micro_batches_that_do_not_divide():
    sharding.check_batch(1024, 128, 8)
    with pytest.raises(UserError, match=r"accumulate 4 without ghost groups .* set model.ghost_size"):
        sharding.check_batch(1024, 0, 4)
    with pytest.raises(
        UserError,
        match="1024 does not divide into 3 micro-batches of whole ghost groups of 128: use 768 or 1152",
    ):
        sharding.check_batch(1024, 128, 3)
