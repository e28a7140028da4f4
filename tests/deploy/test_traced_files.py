"""Files of the paper's networks: traced, they have the bytes that a description by hand gave them."""

import hashlib
import json

import jax
import numpy as np
import pytest

from binwrn_jax import base_config
from binwrn_jax.deploy.graph_file import content_of
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import trace
from binwrn_jax.nn.registry import create_network

# SHA-256 of operations, multiply-adds and bits, as commit 17371f9 computed them: it described each network by
# hand, operation by operation, and folded batch norm by formulas of its own.
EXPECTED = {
    "paper": (
        {},
        "d28f2f38c14b4329439bf682684949ec172e5fe6eeb92b0fe33aae1a893ca253",
    ),
    "keras": (
        {"padding": "same", "input_relu": False},
        "c9ebbf48073385c1f1c2c44c7a751de1a5f76f06c8a14c56fe3f899923765567",
    ),
    "plain": (
        {"plain": True},
        "0d0acb4f7b0714fb7389ee8fa050d8a266cb9fcac5adf3459f7de3058aad641d",
    ),
    "affine": (
        {"affine": True},
        "667e98b2fa54c2a224a4a41e4fbda6c23be477bc499eb3dd2383143224d0b138",
    ),
    "no bn": (
        {"norm": "none", "temperature": 40.0, "input_relu": False},
        "56eae36bbb4e780be37f0bf67e72739ad1cc2fa4a36d2518ad044888604cc26c",
    ),
    "no bn plain": (
        {"norm": "none", "temperature": 40.0, "plain": True},
        "aa400832baf52a56a5e0ae894aea1a1a978de55dbd092d6f56f60d042670db94",
    ),
    "binaryconnect": (
        {"weights": "binaryconnect"},
        "0bcb0cf0a61ba46f0390f25a247deaed94491ffd849b095d60acff43d6cef938",
    ),
    "18": (
        {"depth": 18, "width": 0.25, "affine": True},
        "e3c98fe21dafd0ee55924bfc99fece7e3eada9902214c680625cd2935e894171",
    ),
    "34 same": (
        {"depth": 34, "width": 0.125, "padding": "same"},
        "ebd8dbbe1ba6be97cfc42a5f27b891b6aececc97d26d9916d38e8f515ccbae5d",
    ),
    "temperature": (
        {"temperature": 3.0},
        "2a25b5874d6a31893d7023fe46a6c241b0947b95511628522af2e2a10f846d8d",
    ),
    "fractional": (
        {"width": 0.45, "affine": True, "plain": True, "padding": "same"},
        "ef75ad576635378077641fb4acbee11b3815ba094ff53d7e3988111b31e8bed4",
    ),
}


def variables_of(network, shape):
    """Variables by NumPy's generator alone, as training might leave them."""
    rng = np.random.default_rng(5)

    def value(path, leaf):
        layer, key = path[-2].key, path[-1].key
        if key == "mean":
            return np.float32(rng.normal(size=leaf.shape) * 0.3 + 120 * (layer == "bn0"))
        if key == "var":
            return np.float32(rng.uniform(0.2, 2, leaf.shape) * (3000 if layer == "bn0" else 1))
        if key == "scale":
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([1, 1, -1, 0], leaf.shape))
        if key == "offset":
            return np.float32(rng.normal(size=leaf.shape))
        return np.float32(rng.normal(size=leaf.shape) * 0.1)

    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *shape), np.uint8))
    return {"batch_stats": {}, **jax.tree_util.tree_map_with_path(value, shapes)}


def traced(fields):
    fields = {**base_config().model.to_dict(), "depth": 8, "width": 0.5, **fields}
    shape = (64, 64, 3) if fields["depth"] in (18, 34) else (32, 32, 3)
    network = create_network(fields, 10)
    return content_of(simplify(trace(network.apply, variables_of(network, shape), shape)))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_content_of_files_is_the_same_to_the_byte(name):
    fields, expected = EXPECTED[name]
    operations, bits, affines, kernels = traced(fields)
    digest = hashlib.sha256(json.dumps(operations, separators=(",", ":")).encode())
    for tensor, (scale, offset) in affines.items():
        digest.update(tensor.encode() + scale.tobytes() + offset.tobytes())
    for tensor, rows in bits.items():
        digest.update(tensor.encode() + rows.tobytes())
    assert digest.hexdigest() == expected and not kernels


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        # A magnitude for each channel joins the batch norm after it; it used to be a multiply-add of its own.
        ({"weights": "bwn"}, 29),
        ({"weights": "bwn", "plain": True}, 18),
        # One for the layer goes before the convolution, as the constant of the paper does.
        ({"weights": "bwn_layer"}, 25),
        # A division of the logits by 1 is no operation.
        ({"weights": "bwn_layer", "norm": "none"}, 24),
    ],
)
def test_magnitudes_that_are_learned_are_few_operations(fields, count):
    operations, _, affines, _ = traced(fields)
    assert len(operations) == count
    assert all(np.isfinite(part).all() for affine in affines.values() for part in affine)
