"""Files of version 2 in JAX and in other formats give the logits of NumPy's reader, and lose nothing."""

import numpy as np
import pytest
from version2_networks import FEATURES, random_file, random_model

from binwrn_jax import open_model
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.jax_runtime import LoadedModel
from binwrn_jax.deploy.onnx_file import read_onnx, write_onnx
from binwrn_jax.deploy.packed import read_packed, serialise
from binwrn_jax.deploy.stablehlo import write_stablehlo

pytest.importorskip("onnxruntime")
pytest.importorskip("flatbuffers")

WRITERS = {".onnx": write_onnx, ".stablehlo": write_stablehlo}
SINGLE = [name for name in FEATURES if name not in ("temperature", "entropy")]


def assert_close(logits, expected):
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def case(request, tmp_path):
    """A random file of one feature, or of all for None: its model, images and their logits by NumPy."""
    content, images = random_file(8, request.param)
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    return read_packed(path), images, numpy_reader.load(path)(images)


def name_of(parameter):
    return parameter if isinstance(parameter, str) else (parameter or ["all"])[0]


# Programs of JAX take a second to compile: one network has all features.
CASES = [*((".onnx", [name]) for name in SINGLE), (".onnx", None), (".stablehlo", None)]


@pytest.mark.parametrize(("suffix", "case"), CASES, indirect=["case"], ids=name_of)
def test_files_give_the_logits_of_numpy(case, tmp_path, suffix):
    packed, images, expected = case
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](packed, path)
    predictor = open_model(path)
    assert_close(predictor(images), expected)
    assert_close(predictor(images[:1]), expected[:1])
    assert predictor.description["class_names"] == packed.metadata["class_names"]
    assert predictor.description.get("temperature") == packed.metadata.get("temperature")


@pytest.mark.parametrize("case", [None, ["float_kernels"]], indirect=True, ids=name_of)
def test_an_onnx_file_holds_the_packed_model_bit_for_bit(case, tmp_path):
    packed, _, _ = case
    write_onnx(packed, tmp_path / "m.onnx")
    again = read_onnx(tmp_path / "m.onnx")
    assert serialise(again) == serialise(packed)
    assert list(again.kernels) == list(packed.kernels)


@pytest.mark.parametrize("case", [None], indirect=True, ids=name_of)
def test_jax_gives_the_logits_of_numpy(case):
    packed, images, expected = case
    assert_close(LoadedModel(packed)(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_files(tmp_path, seed):
    packed = random_model(seed)
    images = np.random.default_rng(seed).integers(0, 256, (5, *packed.golden_image.shape), np.uint8)
    expected = numpy_reader.Model(packed.metadata, packed.tensors)(images)
    assert_close(LoadedModel(packed)(images), expected)
    for suffix, write in WRITERS.items():
        write(packed, tmp_path / f"m{suffix}")
        assert_close(open_model(tmp_path / f"m{suffix}")(images), expected)
