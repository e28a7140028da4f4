"""The examples learn, and their files open."""

import importlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("linen_network", ".safetensors"),
        ("nnx_network", ".onnx"),
        ("equinox_network", ".safetensors"),
        pytest.param("mobilenet_v2", ".safetensors", marks=pytest.mark.slow),
    ],
)
def test_examples_train_export_and_open(tmp_path, own_cache, name, suffix):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with jax.numpy_rank_promotion("allow"):
        error = module.main(str(tmp_path / f"m{suffix}"), steps=60)
    assert error < 30  # by chance it would be 90


def test_mobilenet_as_a_network_for_the_command_line_binarises_the_same_kernels(monkeypatch):
    """Its latent kernels are those of any network; stem and head stay float32."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("mobilenet_v2")
    network = example.create(ConfigDict({"num_classes": 10}))
    images = jax.random.randint(jax.random.key(1), (2, 4, 4, 1), 0, 17).astype(np.uint8)
    with jax.numpy_rank_promotion("allow"):
        variables = jax.jit(network.init)(jax.random.key(0), images)
    inner = {name: tree["network"] for name, tree in variables.items()}
    assert len(np.unique(inner["params"]["Conv_0"]["kernel"])) > 2
    both = jax.jit(lambda v, i: (network.apply(v, images), example.logits_of(i, images)))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(*both(variables, inner), rtol=1e-5, atol=1e-6)


def test_each_example_is_tested_and_documented():
    document = (EXAMPLES.parent / "docs" / "own-network.md").read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"linen_network", "nnx_network", "equinox_network", "mobilenet_v2"}
    assert all(f"examples/{name}.py" in document for name in names)
