"""What devices send each other in a training step, against the gradients."""

import jax
import numpy as np
import pytest

from binwrn_jax import init_state, make_mesh
from binwrn_jax.data.catalog import lookup
from binwrn_jax.parallel.sharding import BatchSplit
from binwrn_jax.preflight.collectives import collectives
from binwrn_jax.training.config import base_config
from binwrn_jax.training.resolve import resolve
from binwrn_jax.training.step import jit_train_step


def compiled_step(devices):
    """The text of the run's training step on so many devices, from shapes alone; and its state."""
    config = base_config()
    config.model.depth, config.model.width, config.batch_size = 8, 0.25, 40
    config.data.name = "digits"
    run, mesh = resolve(config, lookup("digits"), 80), make_mesh(devices)
    state = jax.eval_shape(lambda: init_state(run.network, run.optimizer, (8, 8, 1)))
    inputs = {
        "images": jax.ShapeDtypeStruct((100, 8, 8, 1), np.uint8),
        "labels": jax.ShapeDtypeStruct((100,), np.int32),
        "indices": jax.ShapeDtypeStruct((40,), np.int32),
        "split": BatchSplit(mesh, 40),
    }
    return jit_train_step(run, mesh).lower(state, inputs).compile().as_text(), state


def test_one_device_sends_nothing():
    assert collectives(compiled_step(1)[0]) == []


@pytest.mark.parametrize(
    "devices", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8]
)
def test_devices_send_the_gradients_and_the_statistics_and_nothing_else(devices, eight_devices):
    """Bytes all-reduced: one gradient, two scalars (loss, errors), and sums of a few floats per channel."""
    text, state = compiled_step(devices)
    sent = collectives(text)
    assert {c.kind for c in sent} == {"all-reduce"}
    # The gradients, the input batch norm's scale and offset among them, travel together in one.
    gradients = max(sent, key=lambda c: c.bytes)
    assert sum(c.bytes > 1000 for c in sent) == 1
    scalars = 2 * 4
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = [c for c in sent if "/bn" in c.source and c is not gradients]
    assert sum(c.bytes for c in sent) - sum(c.bytes for c in statistics) == parameters + scalars
    # Forward the mean and the variance, backward three sums: float32 per channel of each layer.
    channels = sum(layer["mean"].size for layer in state.batch_stats.values())
    assert 0 < sum(c.bytes for c in statistics) <= 5 * 4 * channels


def test_collectives_in_the_forms_that_accelerators_have():
    text = """
      %all-reduce-start.1 = (f32[3,3,64,64]{3,2,1,0:T(8,128)}, bf16[10]{0}) all-reduce-start(%a, %b)
      %all-reduce-done.1 = (f32[3,3,64,64]{3,2,1,0}, bf16[10]{0}) all-reduce-done(%all-reduce-start.1)
      %ag = (f32[5]{0}, f32[40]{0}) all-gather-start(%x), dimensions={0}, metadata={op_name="jit(f)/gather"}
      ROOT %cp = (u8[7]{0}, u8[7]{0}, u32[], u32[]) collective-permute-start(%y), channel_id=3
      %rs = f32[] reduce-scatter(%z), to_apply=%add
      %fusion = f32[8]{0} fusion(%all-reduce-done.1), calls=%all-reduce.clone
    """
    found = [(c.kind, c.bytes) for c in collectives(text)]
    assert found == [
        ("all-reduce", 4 * 9 * 64 * 64 + 20),
        ("all-gather", 160),
        ("collective-permute", 7),
        ("reduce-scatter", 4),
    ]
    assert collectives(text)[1].source == "jit(f)/gather"
    assert collectives(text)[0].shapes == ("f32[3,3,64,64]", "bf16[10]")


def test_collectives_in_loops_count_for_each_round():
    """A loop of 6 rounds, of which each sends once by itself and twice in a loop within it."""
    text = """HloModule step

%inner (p: (s32[], f32[5])) -> (s32[], f32[5]) {
  %ar.1 = f32[5]{0} all-reduce(%x), channel_id=1, to_apply=%add
}

%outer_spmd.clone (p.1: (s32[], f32[5])) -> (s32[], f32[5]) {
  %f = f32[3]{0} fusion(%y), kind=kLoop, calls=%sends
  %while.1 = (s32[], f32[5]{0}) while(%t), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"2"}}
}

%sends (p.2: f32[3]) -> f32[3] {
  ROOT %ar.2 = f32[3]{0} all-reduce(%p.2), channel_id=2, to_apply=%add
}

ENTRY %main (a: f32[5]) -> f32[5] {
  %while.2 = (s32[], f32[5]{0}) while(%t.1), condition=%less, body=%outer_spmd.clone, metadata={op_name="jit(step)/while"}, backend_config={"known_trip_count":{"n":"6"},"dynamic_variables":[]}
  %while.3 = (s32[], f32[5]{0}) while(%t.2), condition=%until, body=%unknown
  %call = f32[3]{0} call(%z), to_apply=%sends
  ROOT %ar.3 = f32[7]{0} all-reduce(%w), channel_id=3, to_apply=%add
}
"""  # noqa: E501
    assert [(c.bytes, c.times) for c in collectives(text)] == [(20, 12), (12, 6 + 1), (28, 1)]
    untold = text.replace('"known_trip_count":{"n":"2"}', "")
    assert [c.times for c in collectives(untold, rounds=5)] == [6 * 5, 6 + 1, 1]
