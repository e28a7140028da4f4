"""Batch statistics, global and by ghost groups, and the two rules for the moments of inference."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import as_if_trained

from binwrn_jax import (
    BatchNorm,
    DeviceData,
    UserError,
    WideResNet,
    dataset_moments,
    make_mesh,
    make_moments_step,
    paper_recipe,
    recompute_moments,
)
from binwrn_jax.data.dataset import Arrays

EPSILON = 1e-5


def activations(seed, n=12, channels=5):
    rng = np.random.default_rng(seed)
    scale, offset = 10.0 ** rng.integers(-3, 3, channels), rng.normal(size=channels)
    return (rng.normal(size=(n, 4, 6, channels)) * scale + offset).astype(np.float32)


def normalised(x):
    x = x.astype(np.float64)
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON)


def apply(layer, x, variables=None, train=True):
    variables = variables or layer.init(jax.random.key(0), x, True)
    return layer.apply(variables, x, train, mutable=["batch_stats", "moments"])


def test_global_statistics():
    x = activations(0)
    y, updated = apply(BatchNorm(), x)
    np.testing.assert_allclose(y, normalised(x), rtol=1e-3, atol=1e-4)
    flat = x.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.01 * flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.99 + 0.01 * flat.var(0), rtol=1e-4)
    np.testing.assert_allclose(updated["moments"]["mean"], flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(updated["moments"]["std"], np.sqrt(flat.var(0) + EPSILON), rtol=1e-4)


@pytest.mark.parametrize(
    ("ghost_size", "dtype", "rtol"), [(0, "float32", 1e-4), (4, "float32", 1e-4), (0, "bfloat16", 2e-2)]
)
def test_gradient_is_that_of_the_formula(ghost_size, dtype, rtol):
    """The gradient written out against the one that JAX derives from the definition."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(2, 3, (12, 4, 6, 5)), dtype)
    g = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def definition(x):
        y = jnp.asarray(x, jnp.float32).reshape(-1, ghost_size or 12, 4, 6, 5)
        mean, var = y.mean((1, 2, 3), keepdims=True), y.var((1, 2, 3), keepdims=True)
        return (((y - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape) * g).sum()

    layer = BatchNorm(ghost_size=ghost_size)
    found = jax.jit(jax.grad(lambda x: (apply(layer, x)[0] * g).sum()))(x)
    wanted = jax.jit(jax.grad(definition))(x)
    assert found.dtype == x.dtype
    scale = np.abs(np.asarray(wanted, np.float32)).max()
    np.testing.assert_allclose(
        *(np.asarray(a, np.float32) for a in (found, wanted)), rtol=0, atol=rtol * scale
    )


def test_ghost_groups_are_batches_of_their_own():
    x = np.concatenate([activations(seed, 4) for seed in range(3)])  # groups that differ by magnitudes
    y, updated = apply(BatchNorm(ghost_size=4), x)
    groups = np.split(x, 3)
    np.testing.assert_allclose(y, np.concatenate([normalised(g) for g in groups]), rtol=1e-3, atol=1e-4)
    assert np.abs(np.asarray(y) - normalised(x)).max() > 0.1  # not what global statistics give
    alone = np.concatenate([np.asarray(apply(BatchNorm(), g)[0]) for g in groups])
    np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)

    flat = [g.reshape(-1, 5).astype(np.float64) for g in groups]
    mean, var = np.mean([g.mean(0) for g in flat], 0), np.mean([g.var(0) for g in flat], 0)
    std = np.mean([np.sqrt(g.var(0) + EPSILON) for g in flat], 0)
    for found, expected in [
        (updated["moments"]["mean"], mean),
        (updated["moments"]["std"], std),
        (updated["batch_stats"]["mean"], 0.01 * mean),
        (updated["batch_stats"]["var"], 0.99 + 0.01 * var),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_large_offsets_do_not_cost_precision():
    """Raw pixels far from zero: E[x^2] - E[x]^2 in float32 would be off by half."""
    x = (activations(1)[..., :1] * 0 + 5000 + np.random.default_rng(2).normal(size=(12, 4, 6, 1))).astype(
        "f4"
    )
    np.testing.assert_allclose(apply(BatchNorm(), x)[0], normalised(x), atol=2e-3)


def test_scale_and_offset():
    x = activations(3)
    rng = np.random.default_rng(4)
    scale, offset, mean = (rng.normal(size=5).astype(np.float32) for _ in range(3))
    var = np.exp(rng.normal(size=5)).astype(np.float32)
    variables = {
        "params": {"scale": scale, "offset": offset},
        "batch_stats": {"mean": mean, "var": var},
    }
    layer = BatchNorm(affine=True)
    y, _ = apply(layer, x, variables)
    np.testing.assert_allclose(y, normalised(x) * scale + offset, rtol=1e-3, atol=1e-3)
    y, kept = apply(layer, x, variables, train=False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + EPSILON) * scale + offset, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(kept["batch_stats"]["mean"], mean)  # inference changes nothing
    assert "moments" not in kept
    assert "params" not in BatchNorm().init(jax.random.key(0), x, True)


# --- the rules of section 3.2.1 ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected():
    """A network's layers fed three batches of random images: the pass, and what it saw."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    # Batches that differ, in whatever order they are read: 24 distinct brightnesses.
    images = (images * np.linspace(0.1, 1, 24)[:, None, None, None]).astype(np.uint8)
    data = DeviceData(Arrays(images, np.zeros(24, np.int32), ("0", "1")), make_mesh(1), 8, seed=1)
    model = WideResNet(depth=8, width=0.25, num_classes=3)
    variables = as_if_trained(model, (8, 8, 1), rng)
    step = jax.jit(make_moments_step(model, paper_recipe("none")))
    batches = [(position, data.batch(position)) for position in range(data.steps_per_epoch)]
    moments = dataset_moments(step, variables, batches)
    return model, variables, images, batches, moments


def test_dataset_rule_averages_means_and_deviations(collected):
    """MATLAB's: mean_b and mean over batches of sqrt(var_b + 1e-5), epsilon inside; checked at the input."""
    _, _, images, batches, moments = collected
    seen = [images[np.asarray(inputs["indices"])].astype(np.float64) for _, inputs in batches]
    assert len(seen) == 3
    mean = np.mean([b.mean((0, 1, 2)) for b in seen], 0)
    std = np.mean([np.sqrt(b.var((0, 1, 2)) + EPSILON) for b in seen], 0)
    np.testing.assert_allclose(moments["bn0"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(moments["bn0"]["var"] + EPSILON), std, rtol=1e-5)
    by_variance = np.sqrt(np.mean([b.var((0, 1, 2)) for b in seen], 0) + EPSILON)
    assert np.abs(by_variance - std).max() > 1e-3 * std.max()  # averaging variances would have been seen


def test_dataset_rule_at_every_layer(collected):
    """Each layer's entry is the average of what the layer itself reports batch by batch."""
    model, variables, images, batches, moments = collected
    forward = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["moments", "batch_stats"])[1]["moments"])
    reports = [forward(variables, images[np.asarray(inputs["indices"])]) for _, inputs in batches]
    assert set(moments) == {f"bn{i}" for i in range(9)} == set(variables["batch_stats"])
    for name, layer in moments.items():
        mean, std = (np.mean([np.asarray(r[name][field]) for r in reports], 0) for field in ("mean", "std"))
        np.testing.assert_allclose(layer["mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.sqrt(layer["var"] + EPSILON), std, rtol=1e-4)


def test_running_rule_over_several_batches():
    """Keras': running averages of momentum 0.99, from mean 0 and variance 1."""
    layer = BatchNorm()
    xs = [activations(seed) for seed in range(5)]
    variables = layer.init(jax.random.key(0), xs[0], True)
    mean, var = np.zeros(5), np.ones(5)
    for x in xs:
        variables = {"batch_stats": apply(layer, x, variables)[1]["batch_stats"]}
        flat = x.reshape(-1, 5).astype(np.float64)
        mean, var = 0.99 * mean + 0.01 * flat.mean(0), 0.99 * var + 0.01 * flat.var(0)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-4)


def test_moments_of_dead_channels_are_not_negative():
    """A channel that is constant has std sqrt(1e-5); rounding must not make its variance negative."""

    def step(sums, variables, inputs, position):
        return {"bn0": {"mean": sums["bn0"]["mean"] + 0, "var": sums["bn0"]["var"] + inputs["std"]}}

    variables = {"batch_stats": {"bn0": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}}
    std = jnp.sqrt(jnp.full(1, EPSILON)) * 0.99999
    moments = dataset_moments(step, variables, [(position, {"std": std}) for position in range(7)])
    assert float(moments["bn0"]["var"][0]) == 0


# --- networks of any library --------------------------------------------------------------------------------

BATCHES = [activations(seed) for seed in (10, 11, 12)]


def averaged(batches):
    """Section 3.2.1: the averages of means and of standard deviations."""
    means = [x.astype(np.float64).mean((0, 1, 2)) for x in batches]
    stds = [np.sqrt(x.astype(np.float64).var((0, 1, 2)) + EPSILON) for x in batches]
    return np.mean(means, axis=0), np.mean(stds, axis=0) ** 2 - EPSILON


def assert_moments(mean, var):
    expected_mean, expected_var = averaged(BATCHES)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-3, atol=1e-4 * np.sqrt(expected_var).max())
    np.testing.assert_allclose(var, expected_var, rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.997, 0.0])
def test_moments_of_flax_linen(momentum):
    layer = nn.BatchNorm(use_running_average=False, momentum=momentum, use_fast_variance=False)
    old = layer.init(jax.random.key(0), BATCHES[0])["batch_stats"]
    params = layer.init(jax.random.key(0), BATCHES[0])["params"]

    def update(stats, x):
        return layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])[1][
            "batch_stats"
        ]

    found = recompute_moments(update, old, BATCHES)
    assert_moments(found["mean"], found["var"])


def test_moments_of_flax_nnx():
    network = nnx.BatchNorm(5, momentum=0.95, use_fast_variance=False, rngs=nnx.Rngs(0))
    graph, params, statistics = nnx.split(network, nnx.Param, nnx.BatchStat)

    def update(statistics, x):
        copy = nnx.merge(graph, params, statistics)
        copy(x)
        return nnx.state(copy, nnx.BatchStat)

    found = recompute_moments(update, statistics, BATCHES)
    nnx.update(network, found)
    assert_moments(network.mean[...], network.var[...])


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_moments_of_equinox(mode):
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, "batch", mode=mode, channelwise_affine=False)

    def run(layer, state, x):
        channels_first = x.transpose(0, 3, 1, 2)
        call = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return call(channels_first, state)

    _, state = run(layer, state, BATCHES[0])  # as after training
    found = recompute_moments(lambda state, x: run(layer, state, x)[1], state, BATCHES)
    y, _ = run(eqx.nn.inference_mode(layer), found, BATCHES[1])
    mean, var = averaged(BATCHES)
    expected = (BATCHES[1] - mean) / np.sqrt(var + EPSILON)
    np.testing.assert_allclose(np.asarray(y).transpose(0, 2, 3, 1), expected, rtol=1e-2, atol=1e-3)


def test_moments_that_are_no_running_average_are_refused():
    def update(old, x):
        return {"scale": old["scale"]}

    with pytest.raises(UserError, match="scale is no running average of batches"):
        recompute_moments(update, {"scale": jnp.ones(5)}, BATCHES)
    with pytest.raises(UserError, match="at least one batch"):
        recompute_moments(update, {"scale": jnp.ones(5)}, [])


def test_a_run_computes_moments_of_networks_with_other_layers():
    """The moments step of the training loop, on a network with Flax's own batch norm."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_fast_variance=False)(
                images.astype(jnp.float32)
            )
            return nn.Dense(3)(x.mean((1, 2)))

    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 5), np.uint8)
    data = DeviceData(Arrays(images, np.zeros(24, np.int32), ("a", "b", "c")), make_mesh(1), 8)
    network = Network()
    variables = network.init(jax.random.key(0), images[:1])
    step = jax.jit(make_moments_step(network, paper_recipe("none")))
    positions = range(3)
    found = dataset_moments(step, variables, [(i, data.batch(i)) for i in positions])
    batches = [images[data.batch(i)["indices"]] for i in positions]
    mean, var = averaged(batches)
    np.testing.assert_allclose(found["BatchNorm_0"]["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(found["BatchNorm_0"]["var"], var, rtol=1e-4)
