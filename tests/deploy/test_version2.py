"""Version 2 of the packed format: NumPy's reader, its definition, against other implementations."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import version2_corpus
from packed_readers import READERS, refused
from version2_models import MODELS, examples_text, golden_model, golden_path
from version2_networks import FEATURES, random_file, random_model

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import read_packed, serialise

pytestmark = pytest.mark.usefixtures("library")
DOCUMENT = Path(__file__).parents[2] / "docs" / "packed-format-2.md"
SINGLE = [name for name in FEATURES if name != "temperature"]


def written(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("features", [*([name] for name in SINGLE), None], ids=lambda f: f[0] if f else "all")
@pytest.mark.parametrize("seed", range(2))
def test_a_written_file_requires_what_it_uses_and_gives_its_golden_logits(tmp_path, features, seed):
    content, images = random_file(seed, features)
    path = written(tmp_path, content)
    with path.open("rb") as file:
        metadata = numpy_reader.read_header(file).metadata
    assert metadata["version"] == 2 and metadata["requires"] == sorted(features or FEATURES)
    model = numpy_reader.load(path)
    np.testing.assert_array_equal(
        model(model.tensors["golden.image"][None])[0], model.tensors["golden.logits"]
    )
    logits = model(images)
    assert np.isfinite(logits).all() and logits.shape == (3, metadata["num_classes"])
    assert len(np.unique(logits[:, 0])) > 1
    # What is read is what was written, but for the coding.
    again = read_packed(path)
    assert serialise(again, "entropy" if features is None or "entropy" in features else None) == content


def test_a_file_that_needs_no_feature_is_of_version_1():
    packed = random_model(0, [])
    assert packed.metadata["version"] == 1 and "requires" not in packed.metadata


# --- operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth, outputs", [(1, 1), (1, 3), (4, 2)])
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("unpacked", [1 << 22, 5])  # weights at a time: all groups, and parts of one
def test_convolutions_with_groups_and_gaps_are_those_of_jax(monkeypatch, depth, outputs, floats, unpacked):
    monkeypatch.setattr(numpy_reader, "UNPACKED", unpacked)
    rng, groups = np.random.default_rng(0), 3
    operation = {
        "window": [3, 2], "stride": [1, 2], "pads": [[4, 1], [0, 2]], "dilation": [2, 3],
        "groups": groups, "channels": [groups * depth, groups * outputs],
    }  # fmt: skip
    kernel = np.float32(rng.normal(size=(groups * outputs, 3, 2, depth)))
    stored = kernel
    if not floats:
        stored = np.packbits(kernel.reshape(len(kernel), -1) >= 0, axis=1, bitorder="little")
        kernel = np.where(kernel >= 0, np.float32(1), np.float32(-1))
    x = np.float32(rng.normal(size=(2, 6, 7, groups * depth)))
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel.transpose(1, 2, 3, 0),
        (1, 2),
        operation["pads"],
        rhs_dilation=(2, 3),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(numpy_reader._convolve(x, operation, stored), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [(1, 2), (2, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_resizing_is_that_of_jax(factor, method):
    x = np.float32(np.random.default_rng(0).normal(size=(2, 4, 3, 5)))
    shape = (2, 4 * factor[0], 3 * factor[1], 5)
    found = numpy_reader._resize(x, {"factor": factor, "method": method})
    np.testing.assert_allclose(found, jax.image.resize(x, shape, method), rtol=0, atol=1e-6)


EXACT = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0,
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "tanh": math.tanh,
    "hard_sigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def test_functions_have_the_accuracy_that_the_document_demands():
    large = 2.0 ** np.arange(4, 127, 7)
    x = np.float32(np.concatenate([np.linspace(-20, 20, 4001), large, -large, [0.0, 1e-30, -1e-30]]))
    assert set(EXACT) == set(numpy_reader.ELEMENTWISE)
    for name, exact in EXACT.items():
        found = numpy_reader._elementwise(x, {"function": name}).astype(np.float64)
        error = np.abs(found - [exact(float(value)) for value in x])
        assert (error <= np.maximum(1e-6 * np.abs([exact(float(v)) for v in x]), 1e-7)).all(), name
    leaky = numpy_reader._elementwise(np.float32([-2, 0, 3]), {"function": "leaky_relu", "alpha": -0.5})
    assert leaky.tolist() == [1, 0, 3]


def test_the_bound_of_values_holds_for_all_features(monkeypatch):
    """No value of a random network exceeds the bound that the reader computes of it."""
    compute, seen = numpy_reader.compute, []

    def spied(operation, inputs, tensors):
        result = compute(operation, inputs, tensors)
        seen.append(float(np.abs(result).max()))
        return result

    for seed in range(10):
        packed = random_model(seed)
        largest = numpy_reader.largest_value(packed.metadata, packed.tensors, packed.value_shapes)
        image = np.where(np.random.default_rng(seed).random(packed.golden_image.shape) < 0.5, 0, 255)
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(numpy_reader, "compute", spied)
            numpy_reader.Model(packed.metadata, packed.tensors)(np.uint8(image)[None])
        assert 0 < max(seen) <= largest, seed


# --- files for all readers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", MODELS)
def test_golden_files_are_written_and_read_by_all(feature):
    path = golden_path(feature)
    content, model = path.read_bytes(), golden_model(feature)
    packed = read_packed(path)
    assert packed.metadata["requires"] == [feature]
    largest = np.abs(packed.golden_logits).max()
    np.testing.assert_allclose(model.golden_logits, packed.golden_logits, rtol=0, atol=1e-6 * largest)
    assert serialise(dataclasses.replace(model, golden_logits=packed.golden_logits)) == content
    for reader, read in READERS.items():
        logits = np.asarray(read(path)(packed.golden_image[None]))[0]
        np.testing.assert_allclose(logits, packed.golden_logits, rtol=0, atol=1e-5 * largest, err_msg=reader)


def test_the_examples_of_the_document_are_what_the_reader_computes():
    assert examples_text() in DOCUMENT.read_text()


@pytest.mark.parametrize("name", version2_corpus.ACCEPTED)
def test_every_reader_accepts(tmp_path, name):
    path = written(tmp_path, version2_corpus.ACCEPTED[name]())
    packed = read_packed(path)  # JAX reads by it
    image = packed.golden_image[None]
    logits = {reader: READERS[reader](path)(image) for reader in ("NumPy", "C")}
    largest = max(float(np.abs(logits["NumPy"]).max()), 1e-30)
    assert np.isfinite(largest)
    np.testing.assert_allclose(logits["C"], logits["NumPy"], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("name", version2_corpus.REFUSED)
def test_every_reader_refuses(tmp_path, name):
    path = written(tmp_path, version2_corpus.REFUSED[name]())
    verdicts = {reader: refused(read, path) for reader, read in READERS.items()}
    assert all(verdicts.values()), verdicts


@pytest.mark.parametrize("name", version2_corpus.REFUSED_WHEN_RUN)
def test_every_reader_refuses_images_with_values_beyond_a_bound_that_is_not_known(tmp_path, name):
    path = written(tmp_path, version2_corpus.REFUSED_WHEN_RUN[name]())
    image = read_packed(path).golden_image[None]
    for reader in ("NumPy", "C"):
        assert "exceeds 1.845e+19" in (refused(READERS[reader](path), image) or ""), reader
