"""The examples learn, and their files open."""

import importlib.util
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("linen_network", ".safetensors"),
        ("nnx_network", ".onnx"),
        ("equinox_network", ".safetensors"),
        ("mobilenet_v2", ".safetensors"),
    ],
)
def test_examples_train_export_and_open(tmp_path, monkeypatch, name, suffix):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with jax.numpy_rank_promotion("allow"):
        error = module.main(str(tmp_path / f"m{suffix}"), steps=60)
    assert error < 30  # by chance it would be 90


def test_each_example_is_tested_and_documented():
    document = (EXAMPLES.parent / "docs" / "own-network.md").read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"linen_network", "nnx_network", "equinox_network", "mobilenet_v2"}
    assert all(f"examples/{name}.py" in document for name in names)
