"""Tracing: graphs that compute what the network computes, and refusals that name the user's line."""

import inspect
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, Norm, floats, linen, trained

from binwrn_jax import UserError
from binwrn_jax.deploy.graph_runtime import run
from binwrn_jax.errors import CannotExport
from binwrn_jax.graph.axes import Inexpressible, channels, reshaped
from binwrn_jax.graph.simplify import kept_floats, simplify
from binwrn_jax.graph.trace import split, trace

IMAGES = np.random.default_rng(3).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def broadcasting():
    """Networks of other people broadcast as they like."""
    with jax.numpy_rank_promotion("allow"):
        yield


def logits_of(graph, images=IMAGES):
    tensors = {op.output: {k: jnp.asarray(v) for k, v in op.tensors.items()} for op in graph.operations}
    with jax.enable_x64(False):
        return np.asarray(jax.jit(lambda x: run(graph, tensors, x))(images))


def expected_of(apply, variables, images=IMAGES):
    """Logits of the network itself, by one program."""
    leaves, _, function = split(apply, variables)
    return np.asarray(jax.jit(function)(leaves, images))


def with_bits(tree):
    """Each kernel replaced by signs times a magnitude of each output channel, whatever its layout."""

    def bits(path, leaf):
        if not hasattr(leaf, "ndim") or leaf.ndim < 2:
            return leaf
        # Flax has the output channels last, Equinox first.
        axes = tuple(range(1, leaf.ndim)) if "weight" in str(path[-1]) else tuple(range(leaf.ndim - 1))
        return jnp.where(leaf < 0, -1.0, 1.0) * jnp.abs(leaf).mean(axes, keepdims=True)

    return jax.tree_util.tree_map_with_path(bits, tree)


@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_of_common_networks_give_their_logits(name):
    apply, variables, shape = NETWORKS[name]()
    for tree, floats_kept in ((variables, True), (with_bits(variables), False)):
        expected = expected_of(apply, tree)
        graph = trace(apply, tree, shape)
        smaller = simplify(graph)
        assert len(smaller.operations) < len(graph.operations)
        for found in (graph, smaller) if floats_kept else (smaller,):
            assert np.abs(logits_of(found) - expected).max() < 1e-5 * np.abs(expected).max()
        assert bool(kept_floats(smaller)) == floats_kept
        assert smaller.operations[-1].output == smaller.output == "logits"
        assert smaller.multiply_adds == graph.multiply_adds


# --- what becomes of single operations ----------------------------------------------------------------------


class Around(nn.Module):
    """A function between a convolution and a dense layer."""

    function: object
    features: int = 8

    @nn.compact
    def __call__(self, images):
        x = self.function(nn.Conv(self.features, (3, 3))(floats(images)))
        return nn.Dense(10)(x.mean((1, 2))) if x.ndim == 4 else x


def kinds_around(function, **fields):
    """Kinds of the simplified graph between the first convolution and the pool, its logits checked."""
    apply, variables, shape = linen(Around(function, **fields))
    graph = simplify(trace(apply, variables, shape))
    expected = expected_of(apply, variables)
    assert np.abs(logits_of(graph) - expected).max() < 1e-5 * np.abs(expected).max()
    return [op.attributes.get("function", op.kind) for op in graph.operations][2:-4]


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: x / (1 + jnp.exp(-x)), ["affine", "silu"]),
        (lambda x: x * nn.relu6(x + 3) / 6, ["affine", "hard_swish"]),
        (lambda x: jnp.maximum(0.2 * x, x), ["affine", "leaky_relu"]),
        (lambda x: jnp.where(x > 0, x, 0), ["affine"]),
        (lambda x: jnp.minimum(jnp.maximum(2 * x, -1), 3) * 0.5, ["affine"]),
        (jnp.abs, ["affine", "leaky_relu"]),
        (jnp.square, ["affine", "multiply"]),
        (lambda x: x[:, ::2], ["affine", "max_pool"]),
        (lambda x: jnp.maximum(x, jnp.arange(8.0) / 8), ["affine", "affine"]),
        (lambda x: x.swapaxes(1, 3).reshape(len(x), -1).reshape(-1, 8, 16, 16).swapaxes(1, 3), ["affine"]),
        (lambda x: jnp.pad(x, ((0, 0), (2, 1), (0, 0), (0, 3))), ["affine", "pad_channels", "pad"]),
        (lambda x: x - x.mean((1, 2), keepdims=True),
         ["affine", "global_average", "affine", "resize", "add"]),
        (lambda x: jax.lax.clamp(-1.0, x, 1.0), ["affine"]),
        (lambda x: nn.avg_pool(x, (3, 3), (1, 1), "SAME"), ["affine", "pad", "average_pool"]),
        (jax.jit(lambda x: jax.checkpoint(nn.relu)(x)), ["affine"]),
        (lambda x: jax.image.resize(x, (len(x), 32, 48, 8), "bilinear"), ["affine", "resize"]),
        (lambda x: jax.image.resize(x.swapaxes(1, 3), (len(x), 8, 16, 32), "bilinear").swapaxes(1, 3),
         ["affine", "resize"]),
        (lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 3, 2), ["affine", "resize"]),
    ],
)  # fmt: skip
def test_functions_written_out_are_recognised(function, kinds):
    assert kinds_around(function) == kinds


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0))),
        lambda x: nn.max_pool(x, (2, 3), (1, 1), "SAME"),
        lambda x: nn.avg_pool(x, (3, 3), (2, 1), "SAME"),
        lambda x: jax.image.resize(x, (len(x), x.shape[1], 4, 8), "bilinear"),
        lambda x: jax.image.resize(x, (len(x), 2 * x.shape[1], 4, 8), "nearest"),
        lambda x: jnp.repeat(x, 3, 2),
    ],
)
@pytest.mark.parametrize("size", [(16, 1), (1, 1)])
def test_maps_of_one_row_or_column_keep_their_axes(function, size):
    def moved(x):
        small = x[:, :: 16 // size[0], ::16]
        return nn.Conv(5, (2, 3))(function(small) * 2)

    kinds_around(moved)


def test_an_image_of_one_channel_and_an_odd_size():
    network = nn.Sequential(
        [floats, nn.Conv(4, (3, 3), (2, 2)), nn.relu, lambda x: nn.Dense(3)(x.mean((1, 2)))]
    )
    apply, variables, shape = linen(network, (7, 5, 1))
    images = IMAGES[:, :7, :5, :1]
    expected = expected_of(apply, variables, images)
    np.testing.assert_allclose(
        logits_of(simplify(trace(apply, variables, shape)), images), expected, rtol=1e-4
    )


def test_kernels_are_bits_by_their_numbers_and_a_zero_magnitude_is_one():
    apply, variables, shape = linen(nn.Sequential([floats, nn.Conv(4, (3, 3)), lambda x: x.mean((1, 2))]))
    kernel = np.where(np.random.default_rng(0).random((3, 3, 3, 4)) < 0.5, -1.0, 1.0).astype(np.float32)
    kernel *= np.float32([0.5, 0, 3, 1e-20])
    (conv,) = variables["params"].values()
    for change, bits in ((0, True), (0.25, False)):
        conv["kernel"] = kernel + change * (np.arange(108).reshape(kernel.shape) == 7)
        graph = simplify(trace(apply, variables, shape))
        (found,) = [op for op in graph.operations if op.kind == "conv"]
        assert ("signs" in found.tensors) == bits
        assert found.source == ("params/layers_1/kernel",)
        expected = expected_of(apply, variables)
        np.testing.assert_allclose(logits_of(graph), expected, rtol=1e-5, atol=1e-6)
    assert kept_floats(graph) == {
        "conv0": {"source": ("params/layers_1/kernel",), "weights": 108, "magnitudes": 5}
    }
    conv["kernel"] = np.full_like(kernel, np.nan)
    with pytest.raises(UserError, match="NaN weights: the training diverged"):
        simplify(trace(apply, variables, shape))


def test_multiply_adds_by_channel_are_computed_in_float64():
    apply, variables, shape = linen(
        nn.Sequential([floats, nn.Conv(4, (1, 1)), Norm(), lambda x: x.mean((1, 2))])
    )
    (stats,) = variables["batch_stats"].values()
    learned = variables["params"]["layers_2"]["BatchNorm_0"]
    kernel = np.ones((1, 1, 3, 4), np.float32)
    variables["params"]["layers_1"]["kernel"] = kernel
    (affine,) = [op for op in simplify(trace(apply, variables, shape)).operations if op.kind == "affine"][1:]
    var = np.asarray(stats["BatchNorm_0"]["var"] if "BatchNorm_0" in stats else stats["var"], np.float64)
    expected = np.asarray(learned["scale"], np.float64) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(affine.tensors["scale"], expected, rtol=1e-12)


def test_reshapes_cut_no_axis_and_constants_differ_by_channel_only():
    sizes = {"N": 2, "H": 4, "W": 1, "C": 6}
    axes = (("N",), ("H",), (), ("C",))
    assert reshaped(axes, sizes, (2, 1, 24)) == (("N",), (), ("H", "C"))
    assert reshaped(axes, sizes, (8, 6)) == (("N", "H"), ("C",))
    with pytest.raises(Inexpressible, match="cuts an axis"):
        reshaped(axes, sizes, (2, 4, 3, 2))
    flat = (("N",), ("C", "H"))
    constant = np.repeat(np.arange(6), 4).reshape(1, 24)
    np.testing.assert_array_equal(channels(constant, flat, sizes), np.arange(6))
    with pytest.raises(Inexpressible, match="differs between pixels"):
        channels(np.arange(24).reshape(1, 24), flat, sizes)


# --- refusals -----------------------------------------------------------------------------------------------


@jax.jit
def sorted_twice(x):
    y = x * 2
    return jnp.sort(y, axis=-1)  # sorted


REFUSED = {
    "layer norm": (lambda x: nn.LayerNorm()(x), "LayerNorm normalises by the statistics of each image"),
    "group norm": (lambda x: nn.GroupNorm(4)(x), "GroupNorm normalises by the statistics of each image"),
    "instance norm": (lambda x: nn.InstanceNorm()(x), "InstanceNorm normalises by the statistics of"),
    "statistics of the batch": (
        lambda x: (x - x.mean((0, 1, 2), keepdims=True)) / x.std((0, 1, 2), keepdims=True),
        "batch norm must use its running moments",
    ),
    "dropout": (
        lambda x: nn.Dropout(0.5, deterministic=False)(x, rng=jax.random.key(0)),
        "such as a dropout mask",
    ),
    "attention": (lambda x: jnp.einsum("nhwc,nhwd->ncd", x, x).reshape(len(x), -1), "as in attention"),
    "transposed convolution": (lambda x: nn.ConvTranspose(8, (3, 3), (2, 2))(x), "a transposed convolution"),
    "softmax": (lambda x: nn.softmax(x.mean((1, 2))), "give the logits, not their softmax"),
    "unknown function": (lambda x: nn.softplus(x), "of softplus in <lambda>"),
    "unknown function of two": (lambda x: x * jnp.tanh(nn.softplus(x)), "of softplus in <lambda>"),
    "interpolation": (
        lambda x: jax.image.resize(x, (len(x), 24, 24, 8), "bilinear"),
        "a matrix product along pixels",
    ),
    "a pool of padding": (
        lambda x: nn.max_pool(x, (2, 2), padding=((2, 2), (0, 0))),
        "a pool with windows that lie in the padding",
    ),
    "channel shuffle": (
        lambda x: x.reshape(*x.shape[:3], 2, 4).swapaxes(3, 4).reshape(x.shape),
        "which cuts an axis into parts",
    ),
    "numbers that differ by pixel": (lambda x: x + jnp.arange(16.0).reshape(1, 16, 1, 1), "between pixels"),
    "a loop": (lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 1.5, x), "scan in"),
    "integers": (lambda x: (x.astype(jnp.int8) // 2).astype(float), "conversion of activations to int8"),
    "maps as result": (lambda x: x[..., None], "no [N, classes] array of logits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_operations_are_named_with_file_and_line(name):
    function, words = REFUSED[name]
    network = Around(function)
    variables = network.init(jax.random.key(0), IMAGES)
    with pytest.raises(CannotExport) as refusal:
        trace(network.apply, variables, (16, 16, 3))
    message = str(refusal.value)
    assert words in message and "\n" not in message
    if name != "maps as result":
        # The primitive, the user's function and line, and the module: Linen names it.
        assert re.match(
            r"\w+( of \w+)? in \S+ \(test_trace\.py:\d+\), module \S*Around\S* cannot be", message
        )
        first = inspect.getsourcelines(function)[1]
        line = int(re.search(r"\(test_trace\.py:(\d+)\)", message)[1])
        assert first <= line <= first + len(inspect.getsourcelines(function)[0])


def test_the_line_inside_of_a_nested_jitted_function_is_named():
    for _ in range(2):  # the second time JAX has traced it already
        network = Around(sorted_twice)
        variables = network.init(jax.random.key(0), IMAGES)
        with pytest.raises(CannotExport) as refusal:
            trace(network.apply, variables, (16, 16, 3))
    source, start = inspect.getsourcelines(sorted_twice.__wrapped__)
    line = start + next(i for i, text in enumerate(source) if "# sorted" in text)
    assert f"sort of sort in sorted_twice (test_trace.py:{line})" in str(refusal.value)


def test_norms_of_equinox_are_named_too():
    norm = eqx.nn.GroupNorm(1, 8)
    head = eqx.nn.Conv2d(3, 8, 3, key=jax.random.key(0))

    def apply(variables, images):
        head, norm = variables
        return jax.vmap(lambda x: norm(head(x.transpose(2, 0, 1))).mean((1, 2)))(floats(images))

    with pytest.raises(CannotExport, match="GroupNorm normalises by the statistics of each image"):
        trace(apply, (head, norm), (16, 16, 3))


def test_logits_that_do_not_depend_on_the_images_are_refused():
    with pytest.raises(CannotExport, match="do not depend on the images"):
        trace(lambda variables, images: variables["w"], {"w": np.ones((2, 3), np.float32)}, (8, 8, 1))
    with pytest.raises(CannotExport, match="gives 2 arrays"):
        trace(lambda _, x: (floats(x).mean((1, 2)), x), {}, (8, 8, 1))


def test_trained_changes_moments_of_all_libraries():
    """The networks above are tested with moments that matter."""
    for name in ("ResNet", "NNX", "Equinox"):
        _, variables, _ = NETWORKS[name]()
        leaves = [leaf for leaf in jax.tree.leaves(variables) if hasattr(leaf, "ndim") and leaf.ndim == 1]
        assert any(np.ptp(np.asarray(leaf)) > 0.1 for leaf in leaves), name
    assert trained({"bias": np.zeros(3, np.float32)})["bias"].any()
