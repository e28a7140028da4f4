"""Networks of the families that people use, in Linen, NNX and Equinox, as files of all formats."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS
from sklearn.datasets import load_digits

from binwrn_jax import binarize, by_path, export, open_model
from binwrn_jax.deploy.export import TOLERANCE, compare
from binwrn_jax.deploy.packed import read_packed
from binwrn_jax.graph.simplify import kept_floats, simplify
from binwrn_jax.graph.trace import trace

FORMATS = ("packed", "onnx", "stablehlo", "c")


@pytest.fixture(autouse=True)
def broadcasting():
    """Networks of other people broadcast as they like."""
    with jax.numpy_rank_promotion("allow"):
        yield


def one_bit(name, keep=()):
    """A network of the families with its kernels binarised inside ``apply``, but for some paths."""
    apply, variables, shape = NETWORKS[name]()
    layout = "OIHW" if name == "Equinox" else "HWIO"
    mask = by_path(
        lambda path: (
            path.rpartition("/")[2] in ("kernel", "weight", "value")
            and ("kernel" in path or "weight" in path)
            and not any(word in path for word in ("norm", *keep))
        )
    )

    def used(tree):
        if isinstance(tree, dict) and "params" in tree:
            return {**tree, "params": binarize(tree["params"], mask, layout=layout)}
        if isinstance(tree, tuple):
            return binarize(tree[0], mask, layout=layout), *tree[1:]
        return binarize(tree, mask, layout=layout)

    return lambda tree, images: apply(used(tree), images), variables, shape


def digits():
    """The 8 x 8 digits in the size that the networks take, and their classes."""
    found = load_digits()
    images = np.uint8(found.images * 255 / 16).repeat(2, 1).repeat(2, 2)
    return images[..., None].repeat(3, 3), found.target


def trained_for_a_while(apply, variables, steps=400):
    """The variables after some steps on digits; the loss must fall."""
    images, labels = digits()
    numbers, rest = eqx.partition(variables, eqx.is_inexact_array)
    optimizer = optax.adam(1e-2)

    def loss(numbers, images, labels):
        logits = apply(eqx.combine(numbers, rest), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(numbers, state, images, labels):
        value, gradients = jax.value_and_grad(loss)(numbers, images, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(numbers, updates), state, value

    state, losses = optimizer.init(numbers), []
    for start in range(steps):
        some = (np.arange(32) + 32 * start) % len(images)
        numbers, state, value = step(numbers, state, images[some], labels[some])
        losses.append(float(value))
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5]), losses[::20]
    return eqx.combine(numbers, rest)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_kernel_that_the_mask_leaves_out_is_the_only_one_of_float32(name):
    keep = {"Equinox": "gate", "NNX": "head"}.get(name, "Dense_0")
    apply, variables, shape = one_bit(name, (keep,))
    kept = kept_floats(simplify(trace(apply, variables, shape)))
    (found,) = kept.values()
    assert keep in found["source"][0]


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_all_formats_give_logits_and_predictions_on_1000_images(tmp_path, name, training):
    pytest.importorskip("onnxruntime")
    apply, variables, shape = one_bit(name, ("Dense_0",) if name == "MobileNet 2" else ())
    images = digits()[0][-1000:]
    if training:
        variables = trained_for_a_while(apply, variables)
    for format in FORMATS:
        found = export(apply, variables, tmp_path / f"m.{format}", shape, images=images, format=format)
        assert "compared on 1000 images" in found.lines and "1000 predictions identical" in found.lines[-1]
    path = tmp_path / "m.packed"
    expected = np.asarray(jax.jit(apply)(variables, jnp.asarray(images)) if name != "Equinox" else 0)
    if name == "Equinox":  # its tree has leaves that are no arrays
        arrays, rest = eqx.partition(variables, eqx.is_array)
        expected = np.asarray(jax.jit(lambda a, x: apply(eqx.combine(a, rest), x))(arrays, images))
    error, different = compare(expected, open_model(path, runtime="native")(images))
    assert error <= TOLERANCE and not different
    assert read_packed(path).bits
