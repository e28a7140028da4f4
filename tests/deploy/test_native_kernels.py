"""The kernels of the native runtime: the logits of the definition of the format, for any network."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from native_runtime import assert_close, images_of, kernels, reference, save
from packed_networks import Network, any_network
from version2_networks import FEATURES, Version2, random_file

from binwrn_jax.cli.main import main
from binwrn_jax.data.open import load
from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.c_source.program import open_c, write_c
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.deploy.packed import read_packed

pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("threads", [1, 3])
def test_agrees_with_the_definition(packed, path, kernel, threads):
    images = images_of(packed, 5)
    model = native.load(path, threads=threads, kernel=kernel)
    assert model.description["native"]["kernel"] == kernel
    assert_close(model.predict(images), reference(packed, images))
    assert_close(model.predict(packed.golden_image[None]), packed.golden_logits[None])


def test_golden_file_of_the_format(tmp_path):
    path = Path(__file__).parents[1] / "golden" / "packed_v1.safetensors"
    golden = read_packed(path)
    image, wanted = golden.golden_image[None], golden.golden_logits[None]
    for kernel in kernels():
        assert_close(native.load(path, kernel=kernel).predict(image), wanted)
    write_c(golden, tmp_path / "golden.c")
    assert_close(open_c(tmp_path / "golden.c")(image), wanted)


@pytest.mark.parametrize("seed", range(40))
def test_any_network_of_the_format(seed, tmp_path):
    packed = any_network(np.random.default_rng(seed))
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    wanted = reference(packed, images)
    for kernel in kernels():
        assert_close(native.load(path, threads=1 + seed % 3, kernel=kernel).predict(images), wanted)


@pytest.mark.parametrize("features", [[name] for name in FEATURES if name != "temperature"] + [None])
@pytest.mark.parametrize("seed", range(3))
def test_any_network_of_version_2(features, seed, tmp_path):
    content, images = random_file(seed, features)
    path = tmp_path / "m"
    path.write_bytes(content)
    wanted = numpy_reader.load(path)(images)
    for kernel in kernels():
        logits = native.load(path, threads=1 + seed, kernel=kernel).predict(images)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("groups", [6, 24, 48])  # 8 channels in a group, 2, and 1: depthwise
@pytest.mark.parametrize("floats", [False, True])
def test_grouped_convolutions_that_are_wider_than_a_vector(groups, floats, tmp_path):
    n = Version2(np.random.default_rng(0), [], (9, 13, 3))
    x = n.scaled(n.conv(n.affine("image", None), 48), min=0.0)
    for stride, dilation in (([1, 1], [1, 1]), ([2, 1], [1, 3])):
        covers = [2 * gap + 1 for gap in dilation]
        fields = {"window": [3, 3], "stride": stride, "pads": [[1, 1], [dilation[1]] * 2], "groups": groups}
        fields |= {"dilation": dilation} if max(dilation) > 1 else {}
        name, depth = f"conv{len(n.bits) + len(n.kernels)}", 48 // groups
        if floats:
            n.kernels[name] = np.float32(n.rng.normal(size=(48, 3, 3, depth)))
            fields["weights"] = "float32"
        else:
            weights = n.rng.integers(0, 2, (48, 9 * depth), np.uint8)
            n.bits[name] = np.packbits(weights, axis=1, bitorder="little")
        height, width, _ = n.shapes[x]
        size = [
            (height + 2 - covers[0]) // stride[0] + 1,
            (width + 2 * dilation[1] - covers[1]) // stride[1] + 1,
        ]
        x = n.scaled(n._add("conv", [x], (*size, 48), tensor=name, channels=[48, 48], **fields), min=0.0)
    packed = n.finish(x)
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    for kernel in kernels():
        logits = native.load(path, threads=2, kernel=kernel).predict(images)
        wanted = reference(packed, images)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (8, 8), (7, 9)])
@pytest.mark.parametrize("channels", [(7, 5), (40, 16), (301, 70)])
def test_pointwise_convolutions_of_any_number_of_pixels(sides, channels, tmp_path):
    """One, fewer and more than a kernel takes at a time; one and several chunks of channels."""
    n = Network(np.random.default_rng(0), (*sides, 3))
    x = n.pad(n.affine("image", None), channels[0])
    x = n.affine(n.conv(n.affine(x), channels[1], (1, 1), pads=((0, 0), (0, 0))))
    packed = n.finish(x)
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    for kernel in kernels():
        for threads in (1, 3):
            model = native.load(path, threads=threads, kernel=kernel)
            assert_close(model.predict(images), reference(packed, images))


@pytest.mark.parametrize("function", ["leaky_relu", *numpy_reader.ELEMENTWISE])
def test_functions_have_the_accuracy_that_the_document_demands(function, tmp_path):
    """Numbers from -20 to 20 and of any size, each the mean of one pixel, which is a logit."""
    large = 2.0 ** np.arange(5, 100, 3)
    x = np.float32(np.concatenate([np.linspace(-20, 20, 4001), large, -large, [0.0, 1e-30, -1e-30]]))
    n = Network(np.random.default_rng(0), (1, 1, 1), classes=len(x))
    values = n.pad("image", len(x))
    n.affines["affine0"] = np.zeros(len(x), np.float32), x
    values = n._add("affine", [values], n.shapes[values], tensor="affine0", min=None)
    alpha = {"alpha": -0.25} if function == "leaky_relu" else {}
    values = n._add("elementwise", [values], n.shapes[values], function=function, **alpha)
    n._add("global_average", [values], 0)
    path = save(n.model(), tmp_path / "m")
    wanted = numpy_reader.load(path)(np.zeros((1, 1, 1, 1), np.uint8))[0]
    for kernel in kernels():
        logits = native.load(path, kernel=kernel).predict(np.zeros((1, 1, 1, 1), np.uint8))[0]
        assert (np.abs(logits - wanted) <= np.maximum(1.1e-6 * np.abs(wanted), 1.1e-7)).all()


@pytest.mark.parametrize(
    ("window", "stride", "shape"),
    [
        *[((7, 7), (2, 2), (32, 30, 3)), ((64, 64), (64, 64), (70, 70, 1)), ((1, 9), (3, 7), (5, 40, 21))],
        # Rows that are multiples of seven, and strides that step over pixels.
        *[((3, 3), (1, 1), (5, 7, 3)), ((3, 3), (1, 1), (6, 28, 33)), ((1, 1), (2, 2), (9, 27, 20))],
        *[((3, 2), (2, 3), (9, 20, 5)), ((1, 2), (3, 4), (7, 13, 40))],
    ],
)
def test_windows_and_strides(window, stride, shape, tmp_path):
    n = Network(np.random.default_rng(0), shape)
    pads = [[side // 2, side // 2] for side in window]
    packed = n.finish(n.affine(n.conv(n.affine("image", None), 33, window, stride, pads)))
    path, images = save(packed, tmp_path / "m"), images_of(packed, 2)
    for kernel in kernels():
        model = native.load(path, threads=2, kernel=kernel)
        assert_close(model.predict(images), reference(packed, images))


def test_any_number_of_images_and_none(packed, path):
    model = native.load(path, threads=2)
    images = images_of(packed, 9)
    whole = model.predict(images)
    assert model.predict(images[:0]).shape == (0, 5)
    for i in range(9):
        np.testing.assert_array_equal(model.predict(images[i : i + 1]), whole[i : i + 1])
    np.testing.assert_array_equal(model.predict(images[::2]), whole[::2])  # not contiguous


def test_thread_counts_give_the_same_bits(packed, path):
    images = images_of(packed, 3)
    one = native.load(path, threads=1).predict(images)
    for threads in (2, 5, 16):
        np.testing.assert_array_equal(native.load(path, threads=threads).predict(images), one)


@pytest.mark.slow
def test_released_network(tmp_path, capsys):
    """The 20-10 network for CIFAR-10: the predictions of JAX on 200 images, in little memory."""
    folder, data = os.environ.get("BINWRN_OFFICIAL_DIR"), os.environ.get("TFDS_DATA_DIR")
    if not folder or not data:
        pytest.skip("needs BINWRN_OFFICIAL_DIR and TFDS_DATA_DIR")
    model, packed = tmp_path / "model", tmp_path / "model.packed"
    assert main(["import", f"{folder}/keras_cifar10_allparams.mat", "--output", str(model)]) == 0
    assert main(["export", str(model), "--format", "packed", "--output", str(packed)]) == 0
    images = load("cifar10", "test[:200]").images
    wanted, logits = open_model(model)(images), open_model(packed, runtime="native")(images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert (logits.argmax(1) == wanted.argmax(1)).all()
    capsys.readouterr()
    options = ["--dataset", "cifar10", "--limit", "200", "--runtime", "native", "--json"]
    assert main(["evaluate", str(packed), *options]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 200
    description = native.load(packed, threads=2).description["native"]
    assert description["multiply_adds"] == 4_015_636_480
    assert description["total_bytes"] < 6e6
