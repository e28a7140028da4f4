"""The tree transform and the layers: any tree, masks in optax's convention, fan-ins by hand."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import binwrn_jax
from binwrn_jax import BinaryConv, BinaryDense, UserError, binarize, by_path
from binwrn_jax.nn import nnx_layers
from binwrn_jax.nn.rules import one_bit

RNG = np.random.default_rng(0)
KERNELS = by_path(lambda path: path.endswith(("kernel", "weight")))


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "layout", "fan_in"),
    [
        ((3, 3, 8, 16), "HWIO", 72),
        ((5, 1, 2, 16), "HWIO", 10),
        ((3, 3, 1, 16), "HWIO", 9),  # depthwise
        ((20, 10), "HWIO", 20),  # dense
        ((16, 8, 3, 3), "OIHW", 72),
        ((16, 1, 3, 3), "OIHW", 9),
        ((10, 20), "OIHW", 20),
    ],
)
def test_the_scale_follows_the_layout(shape, layout, fan_in):
    w = array(*shape)
    expected = np.where(np.asarray(w) < 0, -1, 1) * np.float32(np.sqrt(2 / fan_in))
    np.testing.assert_array_equal(binarize(w, layout=layout), expected)
    gradient = jax.grad(lambda w: (3 * binarize(w, layout=layout)).sum())(w)
    np.testing.assert_array_equal(gradient, np.full(shape, 3, np.float32))


def test_trees_of_all_kinds_keep_their_structure_and_their_other_leaves():
    linen = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    _, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    equinox = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    for tree, layout in ((linen, "HWIO"), ({"a": linen}, "HWIO"), (state, "HWIO"), (equinox, "OIHW")):
        used = binarize(tree, KERNELS, layout=layout)
        assert jax.tree.structure(used) == jax.tree.structure(tree)
        kernels = 0
        for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(used), strict=True):
            if getattr(old, "ndim", 0) == 2:
                kernels += 1
                assert len(np.unique(np.asarray(new))) == 2
            else:
                assert new is old
        assert kernels == (2 if tree is equinox else 1)


def test_masks_are_trees_too_and_may_be_prefixes():
    params = {"first": {"kernel": array(2, 3)}, "last": {"kernel": array(3, 2)}}
    used = binarize(params, {"first": True, "last": False})
    assert len(np.unique(used["first"]["kernel"])) == 2
    assert used["last"]["kernel"] is params["last"]["kernel"]


def test_scales_and_rules_may_be_functions():
    w = array(3, 3, 4, 5)
    np.testing.assert_array_equal(binarize(w, scale=0.25), one_bit(w, 0.25))
    np.testing.assert_array_equal(binarize(w, scale=lambda shape: 1 / shape[-1]), one_bit(w, 0.2))
    np.testing.assert_array_equal(binarize(w, rule=lambda kernel, s: kernel * s, scale=2.0), 2 * w)
    by_channel = binarize(jnp.moveaxis(w, -1, 0), rule="bwn", layout="OIHW")
    magnitudes = np.abs(np.asarray(by_channel)).reshape(5, -1)
    np.testing.assert_allclose(
        magnitudes, np.abs(np.asarray(w)).mean((0, 1, 2))[:, None].repeat(36, 1), rtol=1e-5
    )


def test_mistakes_are_one_line():
    tree = {"kernel": array(2, 3), "bias": array(3)}
    with pytest.raises(UserError, match="needs a mask for a tree"):
        binarize(tree)
    with pytest.raises(UserError, match="chooses no leaf"):
        binarize(tree, by_path(lambda path: "weight" in path))
    with pytest.raises(UserError, match="which is no kernel: it has one axis"):
        binarize(tree, by_path(lambda path: True))
    with pytest.raises(UserError, match="layout 'HWOI' must begin or end with O"):
        binarize(tree, KERNELS, layout="HWOI")
    with pytest.raises(UserError, match="unknown weights '2bit'"):
        binarize(tree, KERNELS, rule="2bit")


# --- layers -------------------------------------------------------------------------------------------------

IMAGES = array(2, 9, 8, 6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kernel_size": (2, 5), "strides": (2, 1), "padding": "VALID", "use_bias": False},
        {"padding": ((1, 2), (0, 1)), "strides": 2},
        {"padding": 2},
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT", "strides": 3},
        {"padding": "SAME", "strides": (3, 2), "kernel_dilation": (1, 2)},
        {"feature_group_count": 3, "kernel_dilation": 2},
        {"dtype": jnp.bfloat16},
    ],
)
def test_convolutions_are_those_of_flax(fields):
    fields = {"features": 6, "kernel_size": (3, 3), **fields}
    ours = BinaryConv(**fields)
    params = ours.init(jax.random.key(1), IMAGES)["params"]
    theirs = nn.Conv(**fields)
    used = binarize(params, KERNELS)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(theirs.init, jax.random.key(1), IMAGES)["params"]
    )
    got, expected = ours.apply({"params": params}, IMAGES), theirs.apply({"params": used}, IMAGES)
    assert got.dtype == expected.dtype
    tolerance = 1e-6 if got.dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=tolerance, atol=tolerance)


def test_dense_layers_are_those_of_flax():
    ours, theirs = BinaryDense(5), nn.Dense(5)
    params = ours.init(jax.random.key(1), IMAGES)["params"]
    expected = theirs.apply({"params": binarize(params, KERNELS)}, IMAGES)
    np.testing.assert_allclose(ours.apply({"params": params}, IMAGES), expected, rtol=1e-5, atol=1e-6)
    kernel = BinaryDense(2000).init(jax.random.key(0), jnp.zeros((1, 50)))["params"]["kernel"]
    assert abs(np.asarray(kernel).std() / np.sqrt(2 / 50) - 1) < 0.02


def test_layers_of_nnx():
    conv = nnx_layers.BinaryConv(6, 4, 3, strides=2, rngs=nnx.Rngs(0))
    dense = nnx_layers.BinaryDense(6, 4, rule="bwn", rngs=nnx.Rngs(0))
    for layer, plain in (
        (conv, nnx.Conv(6, 4, (3, 3), strides=2, rngs=nnx.Rngs(1))),
        (dense, nnx.Linear(6, 4, rngs=nnx.Rngs(1))),
    ):
        latent = layer.kernel[...]
        assert len(np.unique(np.asarray(latent))) == latent.size
        plain.kernel[...] = binarize(latent, rule="bwn" if layer is dense else "1bit")
        np.testing.assert_allclose(layer(IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-6)
        gradient = nnx.grad(lambda layer: layer(IMAGES).sum())(layer)
        assert np.abs(np.asarray(jax.tree.leaves(gradient)[-1])).max() > 0


def test_impossible_layers_are_refused():
    for fields, words in (
        ({"kernel_size": (3, 3, 3)}, "kernel_size is"),
        ({"padding": "CAUSAL"}, "padding 'CAUSAL' is none for images"),
        ({"padding": "SOME"}, "padding 'SOME'"),
        ({"feature_group_count": 4}, "feature_group_count 4 must divide the 6 input"),
        ({"strides": 0}, "strides"),
        ({"rule": "3bit"}, "unknown weights '3bit'"),
    ):
        with pytest.raises(UserError, match=words):
            BinaryConv(**{"features": 6, "kernel_size": 3, **fields}).init(jax.random.key(0), IMAGES)


def test_the_public_names():
    assert binwrn_jax.binarize is binarize and binwrn_jax.by_path is by_path
