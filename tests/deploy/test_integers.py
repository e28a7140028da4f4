"""Integer networks: what each operation gives, to the last bit; what quantize makes; what readers refuse."""

import copy
import dataclasses
import itertools
import re

import numpy as np
import pytest
from coded_corpus import coded_model
from integer_networks import FEATURES, random_integer_file, random_integer_model
from packed_corpus import assemble
from packed_networks import residual
from version2_corpus import parts_of
from version2_networks import random_model

from binwrn_jax.cli.main import main
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.calibrate import RULES
from binwrn_jax.deploy.jax_runtime import load_packed, open_packed
from binwrn_jax.deploy.native import load as load_native
from binwrn_jax.deploy.numpy_reader import Integers, PackedFileError, compute_integers
from binwrn_jax.deploy.packed import read_packed, serialise, write_packed
from binwrn_jax.deploy.quantize import losses, quantize
from binwrn_jax.errors import UserError

RNG = np.random.default_rng(3)


def divide(t, n):
    return (2 * t + n) // (2 * n)


def run(operation, inputs, target, tensors=None, source=None):
    arrays = [np.asarray(x, np.int32) for x in inputs]
    return compute_integers(operation, arrays, tensors or {}, source or Integers("u8"), target)


def integers(*shape, low=-300, high=300):
    return RNG.integers(low, high, shape)


def test_requantize_scales_and_shifts_with_halves_up():
    q = integers(1, 2, 2, 3, low=-(2**31), high=2**31 - 1)
    m, b = np.array([2**31 - 1, -(2**30), 3], np.int32), np.array([5, -(2**31), 2**31 - 1], np.int32)
    for r, target in itertools.product(
        (0, 1, 17, 31), (Integers("u8", 9), Integers("i8", -3), Integers("i16"))
    ):
        operation = {"op": "requantize", "tensor": "t", "shift": r, "low": -7}
        found = run(operation, [q], target, {"t.multiplier": m, "t.bias": b})
        for index, value in np.ndenumerate(q):
            t = int(value) * int(m[index[3]]) + int(b[index[3]])
            exact = (t + 2 ** (r - 1)) // 2**r if r else t
            assert found[index] == min(max(exact, -7), target.limits[1])


@pytest.mark.parametrize("weights", ["bits", "int8"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_are_exact_sums(weights, groups):
    x, window, outputs = integers(2, 5, 4, 4, low=-128, high=255), (2, 3), 8
    depth = 4 // groups
    kernel = RNG.integers(-127, 128, (outputs, *window, depth))
    operation = {
        "op": "conv",
        "tensor": "t",
        "window": list(window),
        "stride": [2, 1],
        "pads": [[1, 0], [0, 2]],
    }
    operation |= {"channels": [4, outputs], "groups": groups, "dilation": [2, 1]}
    if weights == "bits":
        kernel = np.where(kernel >= 0, 1, -1)
        tensor = np.packbits(kernel.reshape(outputs, -1) > 0, axis=1, bitorder="little")
    else:
        tensor = kernel.astype(np.int8)
        operation["weights"] = "int8"
    found = run(operation, [x], Integers("i32"), {"t": tensor})
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    for (n, y, z, o), value in np.ndenumerate(found):
        first = o // (outputs // groups) * depth
        area = padded[n, 2 * y : 2 * y + 3 : 2, z : z + 3, first : first + depth]
        assert value == int((area * kernel[o]).sum())


def test_a_convolution_is_exact_where_float32_is_not():
    channels = 520  # 9 * 520 * 255 * 127 exceeds 2^24
    x = np.full((1, 3, 3, channels), 255)
    kernel = np.full((1, 3, 3, channels), 127, np.int8)
    kernel[0, 1, 1, 7] = 126
    operation = {"op": "conv", "tensor": "t", "window": [3, 3], "stride": [1, 1], "pads": [[0, 0], [0, 0]]}
    operation |= {"channels": [channels, 1], "weights": "int8"}
    found = run(operation, [x], Integers("i32"), {"t": kernel})
    assert found.item() == 9 * channels * 255 * 127 - 255


def test_sums_and_products():
    x, y = integers(1, 2, 2, 3, low=-32768, high=32767), integers(1, 2, 2, 3, low=-(2**31), high=2**31 - 1)
    found = run({"op": "add", "multipliers": [-(2**30), 3], "shift": 29}, [x, y], Integers("i16"))
    for index, value in np.ndenumerate(found):
        t = -(2**30) * int(x[index]) + 3 * int(y[index])
        assert value == min(max((t + 2**28) // 2**29, -32768), 32767)
    assert run({"op": "add"}, [x, x], Integers("i16")).max() <= 32767
    squeezed = integers(1, 1, 1, 3, low=0, high=255)
    found = run({"op": "product", "multiplier": 2**31 - 1, "shift": 31}, [x, squeezed], Integers("i8"))
    for index, value in np.ndenumerate(found):
        t = int(x[index]) * int(squeezed[0, 0, 0, index[3]]) * (2**31 - 1)
        assert value == min(max((t + 2**30) // 2**31, -128), 127)


def test_tables_hold_stored_integers():
    tensors = {"t": np.arange(-128, 128).astype(np.int8)[::-1].copy()}
    stored = np.array([0, 7, 255]).reshape(1, 1, 1, 3)
    found = run({"op": "table", "tensor": "t"}, [stored - 9], Integers("i8", 4), tensors, Integers("u8", 9))
    assert found.ravel().tolist() == [int(tensors["t"][a]) - 4 for a in (0, 7, 255)]
    signed = np.array([-128, 0, 127]).reshape(1, 1, 1, 3)
    found = run({"op": "table", "tensor": "t"}, [signed + 5], Integers("i8"), tensors, Integers("i8", -5))
    assert found.ravel().tolist() == [int(tensors["t"][a + 128]) for a in (-128, 0, 127)]


def test_pools_divide_by_the_pixels_inside_and_round_halves_up():
    x = integers(1, 4, 5, 2)
    pads = {"window": [3, 3], "stride": [2, 2], "pads": [[1, 1], [1, 0]]}
    found = run({"op": "average_pool", **pads}, [x], Integers("i16"))
    largest = run({"op": "max_pool", **pads}, [x], Integers("i16"))
    for (_, y, z, c), value in np.ndenumerate(found):
        area = x[0, max(0, 2 * y - 1) : 2 * y + 2, max(0, 2 * z - 1) : 2 * z + 2, c]
        assert value == divide(int(area.sum()), area.size)
        assert largest[0, y, z, c] == area.max()
    mean = run({"op": "global_pool", "kind": "average"}, [x], Integers("i16"))
    assert mean.ravel().tolist() == [divide(int(x[..., c].sum()), 20) for c in range(2)]
    assert run({"op": "global_average"}, [x], Integers("i32")).tolist() == x.sum((1, 2)).tolist()


def test_bilinear_resizing_rounds_once():
    x = integers(1, 3, 2, 1)
    down, across = 3, 2
    operation = {"op": "resize", "factor": [down, across], "method": "bilinear"}
    found = run(operation, [x], Integers("i16"))

    def ends(result, factor, size):
        n = 2 * result + 1 - factor
        i = n // (2 * factor)
        w = n - 2 * factor * i
        return [(min(max(i, 0), size - 1), 2 * factor - w), (min(max(i + 1, 0), size - 1), w)]

    for (_, y, z, _), value in np.ndenumerate(found):
        pairs = itertools.product(ends(y, down, 3), ends(z, across, 2))
        t = sum(int(x[0, a, b, 0]) * u * v for (a, u), (b, v) in pairs)
        assert value == divide(t, 4 * down * across)


@pytest.mark.parametrize("feature", [(), *((name,) for name in FEATURES), None])
def test_files_hold_the_network_and_its_logits_to_the_last_bit(feature, tmp_path):
    content, images = random_integer_file(11, feature)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    model = numpy_reader.load(path)
    golden = model.raw_logits(model.tensors["golden.image"][None])[0]
    assert golden.dtype == np.int32
    np.testing.assert_array_equal(golden, model.tensors["golden.logits"])
    scale = model.metadata["operations"][-1]["scale"]
    np.testing.assert_array_equal(model(images), (model.raw_logits(images) * scale).astype(np.float32))
    packed = read_packed(path)
    assert serialise(packed) == content
    np.testing.assert_array_equal(open_packed(path).raw_logits(images), model.raw_logits(images))
    np.testing.assert_array_equal(load_native(path, threads=2)(images), model(images))


@pytest.mark.parametrize("rule", RULES)
def test_eight_bits_lose_little(rule):
    packed = residual(np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (40, *packed.golden_image.shape), np.uint8)
    integer = quantize(packed, images[:32], rule)
    real = numpy_reader.Model(packed.metadata, packed.tensors)(images[32:])
    whole = numpy_reader.Model(integer.metadata, integer.tensors)(images[32:])
    assert np.abs(whole - real).max() <= 0.05 * np.abs(real).max()
    found = losses(packed, integer, images[32:])
    assert {loss.type for loss in found} == {"u8", "i16"}
    assert all(0 < loss.error < 0.1 for loss in found)


def test_kernels_that_stay_float32_become_8_bits_with_a_scale_for_each_channel():
    packed = random_model(4, ["float_kernels"])
    integer = quantize(packed, packed.golden_image[None])
    assert packed.kernels
    for name, kernel in packed.kernels.items():
        scale = np.abs(kernel).max((1, 2, 3), keepdims=True) / 127
        np.testing.assert_allclose(integer.kernels[name] * scale, kernel, atol=float(scale.max()) / 2 * 1.01)


def test_quantize_says_what_is_wrong():
    packed = residual(np.random.default_rng(0))
    integer = quantize(packed, packed.golden_image[None])
    with pytest.raises(UserError, match="8-bit activations already"):
        quantize(integer, packed.golden_image[None])
    with pytest.raises(UserError, match="unknown rule 'best'"):
        quantize(packed, packed.golden_image[None], "best")
    with pytest.raises(UserError, match="no images"):
        quantize(packed, packed.golden_image[None][:0])


INTEGER = random_integer_model(11)


def first(op):
    return next(i for i, operation in enumerate(INTEGER.operations) if operation["op"] == op)


def changed(kind, **fields):
    metadata = copy.deepcopy(INTEGER.metadata)
    operation = metadata["operations"][first(kind)]
    operation.update(fields)
    for field in [name for name, value in operation.items() if value is None]:
        del operation[field]
    return metadata


REFUSED = {
    "no shift": changed("requantize", shift=None),
    "shift of 32": changed("requantize", shift=32),
    "unknown type": changed("requantize", type="i32"),
    "zero point that is the default": changed("requantize", zero=0),
    "zero point of 16 bits": changed("requantize", type="i16", zero=1),
    "scale of 0": changed("requantize", scale=0),
    "scale that is true": changed("requantize", scale=True),
    "low that is no number": changed("requantize", low="0"),
    "low above high": changed("requantize", low=5, high=4),
    "a convolution without a scale": changed("conv", scale=None),
    "a type of a convolution": changed("conv", type="i16"),
    "float32 weights": changed("conv", weights="float32"),
    "no multiplier": changed("product", multiplier=None),
    "a multiplier of 0": changed("product", multiplier=0),
    "a border out of range": changed("pad", value=70000),
    "a border that is no integer": changed("pad", value=0.5),
    "an affine": changed("requantize", op="affine"),
    "the feature is not named": {**INTEGER.metadata, "requires": ["clip"]},
}


def written(path, metadata):
    parts = parts_of(INTEGER)
    parts.metadata.clear()
    parts.metadata.update(metadata)
    path.write_bytes(assemble(parts, parts.lay()))
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_all_readers_refuse_files_that_break_a_rule(case, tmp_path):
    good = written(tmp_path / "good", INTEGER.metadata)
    numpy_reader.load(good), load_native(good)
    path = written(tmp_path / "a", REFUSED[case])
    with pytest.raises(PackedFileError):
        numpy_reader.load(path)
    with pytest.raises(UserError):
        load_native(path)


def test_a_weight_of_minus_128_is_refused():
    kernels = {name: kernel.copy() for name, kernel in INTEGER.kernels.items()}
    next(iter(kernels.values())).flat[0] = -128
    packed = dataclasses.replace(INTEGER, kernels=kernels)
    metadata = {**packed.metadata, "sha256": numpy_reader.checksum(packed.metadata, packed.tensors)}
    with pytest.raises(PackedFileError, match="is -128"):
        numpy_reader.check_tensors(metadata, packed.tensors)


def test_sums_that_could_exceed_int32_are_refused():
    operation = {"op": "conv", "in": ["image"], "out": "a", "window": [64, 64], "stride": [1, 1]}
    operation |= {
        "pads": [[63, 0], [63, 0]],
        "channels": [17, 1],
        "tensor": "a",
        "weights": "int8",
        "scale": 1,
    }
    metadata = {**INTEGER.metadata, "operations": [operation], "requires": ["int8"]}
    metadata["input"] = {**metadata["input"], "shape": [8, 8, 17]}
    with pytest.raises(PackedFileError, match="exceed int32"):
        numpy_reader.value_shapes(metadata, {})


def test_images_of_integer_networks_are_whole_numbers():
    model = numpy_reader.Model(INTEGER.metadata, INTEGER.tensors)
    images = INTEGER.golden_image[None].astype(np.float32)
    np.testing.assert_array_equal(model(images), model(images.astype(np.uint8)))
    with pytest.raises(ValueError, match="whole numbers"):
        model(images + 0.5)


def test_jax_gives_the_same_floats_and_names_what_it_does_not_do(tmp_path):
    content, images = random_integer_file(2)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    model = open_packed(path)
    np.testing.assert_array_equal(model(images), numpy_reader.load(path)(images))
    with pytest.raises(UserError, match="not uint8"):
        model(images + 0.5)
    with pytest.raises(UserError, match="8-bit activations"):
        load_packed(path)


def test_export_calibrates_on_training_images_and_proves_the_integers(tmp_path, capsys):
    packed = residual(np.random.default_rng(0), (8, 8, 1))
    packed = dataclasses.replace(packed, metadata={**packed.metadata, "dataset": "digits"})
    source, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_packed(packed, source)
    arguments = ["--format", "packed", "--output", str(output), "--activations", "int8"]
    assert main(["export", str(source), *arguments, "--coding", "entropy"]) == 0
    printed = capsys.readouterr().out
    assert "JAX: 100 predictions identical to NumPy's, logits within 0.0e+00" in printed
    assert "calibrated on 256 images of digits train" in printed
    assert re.search(r"  v0 +u8 +0\.0", printed)
    assert numpy_reader.is_integer(read_packed(output).metadata)
    for format, more, message in (
        ("onnx", [], "cannot be written to files of the format onnx"),
        ("packed", ["--calibrate", "mnist"], "mnist"),
        ("packed", ["--calibration-images", "0"], "must be at least 1"),
    ):
        arguments = ["--format", format, "--output", str(tmp_path / "c.x"), "--activations", "int8", *more]
        assert main(["export", str(source), *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "c.x").exists()


def test_coded_kernels_of_an_integer_network(tmp_path):
    packed = coded_model()
    images = np.random.default_rng(1).integers(0, 256, (8, *packed.golden_image.shape), np.uint8)
    integer = quantize(packed, images)
    path = tmp_path / "a.safetensors"
    write_packed(integer, path, "entropy")
    found = read_packed(path)
    assert found.coded and numpy_reader.is_integer(found.metadata)
    assert found.metadata["sha256"] == integer.metadata["sha256"]
    wanted = numpy_reader.Model(integer.metadata, integer.tensors)(images)
    for reader in (numpy_reader.load, open_packed, load_native):
        np.testing.assert_array_equal(reader(path)(images), wanted)
