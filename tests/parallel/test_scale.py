"""Training on several devices at large batches: what crosses devices, accumulation, bfloat16."""

import functools

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
# This network has 18 layers of ReLU and a max pool: jax 0.12 takes another branch in a few, 1e-4 of the norm.
CORNERS = 1e-3
# The ImageNet network, narrow, as configs/imagenet.py sets it up.
MODEL = WideResNet(depth=18, width=0.125, num_classes=10, affine=True, ghost_size=8)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, BATCH).astype(np.int32)
    images = rng.integers(0, 256, (BATCH, *SHAPE)) * np.linspace(0.3, 1, 10)[labels][:, None, None, None]
    return {"images": images.astype(np.uint8), "labels": labels}


@functools.cache
class Compiled:
    """A training step for so many devices, fed batches that are divided over them (as a data path does)."""

    def __init__(self, devices, model=MODEL, accumulate=1):
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
        self.program = (
            jax.jit(self.step, in_shardings=(self.everywhere, self.divided), out_shardings=self.everywhere)
            .lower(self.start, inputs)
            .compile()
        )

    def run(self, state, batch, steps=3):
        self._inputs = sharding.put(batch, self.divided)
        return follow(self.program, sharding.put(state, self.everywhere), self, steps)

    def batch(self, position):
        return self._inputs


@pytest.fixture(scope="module")
def start():
    return jax.device_get(init_state(MODEL, OPTIMIZER, SHAPE))


@pytest.fixture(scope="module")
def one(start, batch):
    """Three steps on one device."""
    return Compiled(1).run(start, batch)


@pytest.fixture(scope="module")
def eight():
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, JAX sees {len(jax.devices())}")
    return Compiled(8)


def bytes_to_share(start) -> int:
    """Gradients and running moments, each once; the loss and the count of errors: four bytes each."""
    return 4 * (sum(x.size for x in jax.tree.leaves((start.params, start.batch_stats))) + 2)


def test_no_activation_leaves_its_device(eight, start):
    """Eight groups on eight devices: the all-reduces carry gradients, running moments and metrics alone."""
    found = collectives(eight.program.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert sum(one.bytes for one in found) == bytes_to_share(start)


def test_global_statistics_do_cross_devices(eight, start):
    """The same count, where batch norm is over the whole batch, is higher: the test above can fail."""
    found = collectives(Compiled(8, MODEL.clone(ghost_size=0)).program.as_text())
    assert sum(one.bytes for one in found) > bytes_to_share(start)


def test_groups_over_several_devices_share_moments_only(start):
    """Four groups on eight devices: sums per channel and group travel, but no activation."""
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, JAX sees {len(jax.devices())}")
    found = collectives(Compiled(8, MODEL.clone(ghost_size=16)).program.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert max(one.bytes for one in found) < bytes_to_share(start)


def test_eight_devices_equal_one(eight, one, start, batch):
    assert_same(eight.run(start, batch), one, at_least=1, apart_by=CORNERS)


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_changes_nothing(one, start, batch, devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices, JAX sees {len(jax.devices())}")
    compiled = Compiled(devices, accumulate=2)
    assert {one.kind for one in collectives(compiled.program.as_text())} <= {"all-reduce"}
    assert_same(compiled.run(start, batch), one, at_least=1, apart_by=CORNERS)


def test_accumulation_needs_less_memory():
    whole, parts = (
        compiled.program.memory_analysis().temp_size_in_bytes
        for compiled in (Compiled(1), Compiled(1, accumulate=2))
    )
    assert parts < 0.7 * whole


def test_bfloat16_keeps_what_must_be_exact_in_float32(one, start, batch):
    """Activations bfloat16 from the first layer on; state, gradients and loss float32; it learns the same."""
    model = MODEL.clone(dtype=jnp.bfloat16)
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
    assert len(layers) == 18 + 19
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
