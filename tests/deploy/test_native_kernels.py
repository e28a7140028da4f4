"""The kernels of the native runtime: the logits of the definition of the format, for any network."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from native_runtime import assert_close, images_of, kernels, reference, save
from packed_networks import Network, any_network

from binwrn_jax.cli.main import main
from binwrn_jax.data.open import load
from binwrn_jax.deploy import native
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


@pytest.mark.parametrize(
    ("window", "stride", "shape"),
    [((7, 7), (2, 2), (32, 30, 3)), ((64, 64), (64, 64), (70, 70, 1)), ((1, 9), (3, 7), (5, 40, 21))],
)
def test_large_windows_and_strides(window, stride, shape, tmp_path):
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
