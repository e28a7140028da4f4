"""The optimiser against a NumPy loop, over trajectories that cross the restarts of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import binwrn_jax
from binwrn_jax import WideResNet, init_state, sgd, sgdr
from binwrn_jax.training.optimizer import conv_kernels, freeze

STEPS = 5  # per epoch; of 6 epochs, with one restart, before step 10


def parameters(rng):
    return {
        "conv0": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)},
        "bn0": {"scale": np.ones(2, np.float32), "offset": np.zeros(2, np.float32)},
        "conv1": {"kernel": rng.normal(size=(1, 1, 4, 3)).astype(np.float32)},
    }


def run_ours(optimizer, params, grads):
    @jax.jit
    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state, trajectory = optimizer.init(params), []
    for g in grads:
        params, state = step(params, state, g)
        trajectory.append(jax.tree.map(np.asarray, params))
    return trajectory


def run_numpy(params, grads, rates, decay, resets, clip=False):
    """SGD as section 3.3 has it, in float64."""
    w = {
        (layer, name): v.astype(np.float64) for layer, fields in params.items() for name, v in fields.items()
    }
    m = {key: np.zeros_like(v) for key, v in w.items()}
    trajectory = []
    for t, g in enumerate(grads):
        for key in w:
            if t in resets:
                m[key] = np.zeros_like(m[key])
            is_kernel = key[1] == "kernel"
            gradient = g[key[0]][key[1]] + (decay * w[key] if is_kernel else 0)
            m[key] = 0.9 * m[key] + gradient
            w[key] = w[key] - rates[t] * m[key]
            if clip and is_kernel:
                w[key] = np.clip(w[key], -1, 1)
        trajectory.append({key: v.copy() for key, v in w.items()})
    return trajectory


def rates():
    """Two cycles of 2 and 4 epochs, peak 0.1, floor 1e-4."""
    t = np.concatenate([np.arange(n) / n for n in (2 * STEPS, 4 * STEPS)])
    return 1e-4 + 0.5 * (0.1 - 1e-4) * (1 + np.cos(np.pi * t))


def gradients(rng, params, count):
    return [jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), params) for _ in range(count)]


@pytest.mark.parametrize("resets", [(), (2 * STEPS,)], ids=["kept", "reset"])
@pytest.mark.parametrize("decay", [5e-4, 0.3])
def test_whole_trajectory(resets, decay):
    rng = np.random.default_rng(0)
    params = parameters(rng)
    grads = gradients(rng, params, 6 * STEPS)
    optimizer = sgd(sgdr(6, STEPS), momentum=0.9, weight_decay=decay, resets=resets)
    ours = run_ours(optimizer, params, grads)
    expected = run_numpy(params, grads, rates(), decay, resets)
    for mine, theirs in zip(ours, expected, strict=True):
        for (layer, name), value in theirs.items():
            np.testing.assert_allclose(mine[layer][name], value, rtol=1e-4, atol=1e-5)

    other = run_numpy(params, grads, rates(), decay, () if resets else (2 * STEPS,))
    apart = np.abs(other[2 * STEPS]["bn0", "scale"] - ours[2 * STEPS]["bn0"]["scale"]).max()
    assert apart > 1e-3  # the comparison above does tell the two rules apart


def test_scale_and_offset_do_not_decay():
    params = parameters(np.random.default_rng(1))
    nothing = jax.tree.map(np.zeros_like, params)
    params["bn0"]["offset"] += 3
    after = run_ours(sgd(lambda step: 0.1, weight_decay=0.5), params, [nothing] * 3)[-1]
    np.testing.assert_array_equal(after["bn0"]["scale"], params["bn0"]["scale"])
    np.testing.assert_array_equal(after["bn0"]["offset"], params["bn0"]["offset"])
    for layer in ("conv0", "conv1"):
        assert (np.abs(after[layer]["kernel"]) < np.abs(params[layer]["kernel"])).all()


def test_binary_connect_clips_latent_kernels_only():
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda v: np.clip(v, -1, 1), parameters(rng))
    grads = gradients(rng, params, 6 * STEPS)
    for g in grads:
        g["bn0"]["scale"] -= 5  # drives the scale far above 1
    ours = run_ours(sgd(sgdr(6, STEPS), weight_decay=5e-4, clip=True), params, grads)
    expected = run_numpy(params, grads, rates(), 5e-4, (), clip=True)
    for (layer, name), value in expected[-1].items():
        np.testing.assert_allclose(ours[-1][layer][name], value, rtol=1e-4, atol=1e-5)
    kernels = np.concatenate([step["conv0"]["kernel"].ravel() for step in ours])
    assert np.abs(kernels).max() <= 1 + 1e-6 and (np.abs(kernels) > 0.999).mean() > 0.01
    assert ours[-1]["bn0"]["scale"].min() > 2


def names(params):
    return {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("affine", [False, True])
def test_learned_parameters_and_decaying_kernels(affine):
    """Without scale and offset a BN layer has no entry at all; kernels and nothing else decay."""
    model = WideResNet(depth=8, width=0.25, affine=affine)
    variables = jax.eval_shape(
        lambda: init_state(model, sgd(sgdr(2, 1)), image_shape=(8, 8, 1), seed=0).variables
    )
    convs = {f"conv{i}/kernel" for i in range(8)}
    norms = range(9) if affine else range(1)
    learned = {f"bn{i}/{field}" for i in norms for field in ("scale", "offset")}
    assert names(variables["params"]) == convs | learned
    mask = conv_kernels(variables["params"])
    marked = {"/".join(k.key for k in path) for path, on in jax.tree_util.tree_leaves_with_path(mask) if on}
    assert marked == convs


def test_decay_clipping_and_freezing_take_the_masks_of_binarize():
    """A network of another library: its kernels are called ``weight``, and one of them stays float."""
    params = {"a": {"weight": jnp.full((2, 2), 0.9)}, "b": {"weight": jnp.full((2, 2), 0.9)}}
    mask = binwrn_jax.by_path(lambda path: path == "a/weight")
    grads = jax.tree.map(lambda p: -jnp.ones_like(p), params)

    def after(optimizer):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return {
            name: float(layer["weight"][0, 0]) for name, layer in optax.apply_updates(params, updates).items()
        }

    for form in (mask, {"a": True, "b": False}):
        moved = after(sgd(lambda _: 0.05, weight_decay=0.5, mask=form))
        assert moved["a"] == pytest.approx(0.9 + 0.05 * (1 - 0.45)) and moved["b"] == pytest.approx(0.95)
        clipped = after(sgd(lambda _: 0.5, weight_decay=0.0, clip=True, mask=form))
        assert clipped["a"] == pytest.approx(1.0) and clipped["b"] == pytest.approx(1.4)
        frozen = after(freeze(sgd(lambda _: 0.1, weight_decay=0.0), form))
        assert frozen["a"] == pytest.approx(0.9) and frozen["b"] == pytest.approx(1.0)
