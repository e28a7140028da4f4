"""Networks of other people as files: every format gives their logits, and what it cannot hold is refused."""

import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, PreActivationResNet, ResNet, floats, linen

from binwrn_jax import UserError, binarize, by_path, export, open_model
from binwrn_jax.cli.main import main
from binwrn_jax.deploy.packed import read_packed

IMAGES = np.random.default_rng(3).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
KERNELS = by_path(lambda path: path.endswith(("kernel", "weight")))


@pytest.fixture(autouse=True)
def broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


def one_bit(network):
    """A network of Linen with all its kernels binarised inside ``apply``, as in its training."""
    apply, variables, shape = linen(network)
    return (
        lambda v, x: apply({**v, "params": binarize(v["params"], KERNELS)}, x),
        variables,
        shape,
    )


class EquinoxNet(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(8, 12, 3, stride=2, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.head = eqx.nn.Linear(12 * 16, 10, key=keys[2])

    def __call__(self, image):
        x = self.pool(jax.nn.relu(self.first(image)))
        return self.head(jax.nn.relu(self.second(x)).reshape(-1))


def equinox():
    network = EquinoxNet(jax.random.key(0))

    def apply(network, images):
        used = binarize(network, KERNELS, layout="OIHW")
        return jax.vmap(used)(floats(images).transpose(0, 3, 1, 2))

    return apply, network, (16, 16, 3)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("ResNet", ".safetensors"),
        ("pre-activation ResNet", ".onnx"),
        ("Equinox", ".stablehlo"),
        ("Equinox", ".onnx"),
        ("ResNet", ".c"),
    ],
)
def test_files_of_own_networks_give_their_logits(tmp_path, name, suffix):
    networks = {
        "ResNet": lambda: one_bit(ResNet()),
        "pre-activation ResNet": lambda: one_bit(PreActivationResNet()),
        "Equinox": equinox,
    }
    apply, variables, shape = networks[name]()
    names = [f"class {i}" for i in range(10)]
    found = export(apply, variables, tmp_path / f"m{suffix}", shape, class_names=names, images=IMAGES)
    assert "compared on 20 images" in str(found) and "predictions identical" in found.lines[-1]
    if suffix == ".c":
        return  # `export` has compiled and run it
    expected = np.asarray(jax.jit(apply)(variables, IMAGES)) if name != "Equinox" else None
    for runtime in ("auto", "numpy", "native") if suffix == ".safetensors" else ("auto",):
        predictor = open_model(found.path, runtime=runtime)
        assert predictor.description["class_names"] == names
        if expected is not None:
            assert np.abs(predictor(IMAGES) - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_result_says_that_images_are_random(tmp_path):
    found = export(*one_bit(ResNet())[:2], tmp_path / "m", (16, 16, 3), format="packed")
    assert found.lines[0] == "compared on 100 RANDOM images, as none were given"


def test_bfloat16_is_exported_in_float32_and_said(tmp_path):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.relu(nn.Conv(16, (3, 3), dtype=jnp.bfloat16)(floats(images)))
            return nn.Dense(10)(x.mean((1, 2)))

    apply, variables, shape = one_bit(Half())
    found = export(apply, variables, tmp_path / "m.safetensors", shape, images=IMAGES)
    assert any("computes in bfloat16 and the file in float32" in line for line in found.lines)
    predictor = open_model(found.path)
    expected = np.asarray(apply(variables, IMAGES), np.float32)
    assert np.abs(predictor(IMAGES) - expected).max() < 0.05 * np.abs(expected).max()


def test_networks_beyond_the_format_are_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "m.safetensors"
    apply, variables, shape = linen(ResNet())
    with pytest.raises(UserError, match="32-bit weights"):
        export(apply, variables, path, shape)
    wide = nn.Sequential([floats, nn.Conv(4, (65, 1), padding=32), lambda x: x.mean((1, 2))])
    message = (
        r"cannot be packed: operation 2 \(conv\): window \[65, 1\]; "
        r"it comes from conv_general_dilated in \S+ \(test_own_network.py:\d+\), module .*layers_1"
    )
    with pytest.raises(UserError, match=message):
        export(*one_bit(wide)[:2], path, shape)
    assert not list(tmp_path.iterdir())


def test_kernels_that_the_mask_leaves_out_stay_float32_and_are_reported(tmp_path, capsys):
    apply, variables, shape = NETWORKS["MobileNet 2"]()
    masked = by_path(lambda path: path.endswith("kernel") and "Dense" not in path)
    path = tmp_path / "m.safetensors"
    found = export(
        lambda v, x: apply({**v, "params": binarize(v["params"], masked)}, x),
        variables,
        path,
        shape,
        images=IMAGES,
    )
    told = "2,328 of 2,648 weights are one bit; float32: params/Dense_0/kernel (320)"
    assert told in found.lines
    packed = read_packed(path)
    assert packed.metadata["requires"] == ["clip", "float_kernels", "groups"]
    assert main(["verify", str(path)]) == 0
    report = capsys.readouterr().out
    assert "2,328 of 2,648 weights are one bit" in report and "1x1x32x10 (320)" in report
    assert main(["inspect", str(path)]) == 0
    assert "2,328 of 2,648 weights are one bit" in capsys.readouterr().out
    np.save(tmp_path / "images.npy", IMAGES)
    assert main(["predict", "--json", str(path), str(tmp_path / "images.npy")]) == 0
    predicted = [json.loads(line)["predictions"][0]["name"] for line in capsys.readouterr().out.splitlines()]
    assert [int(name) for name in predicted] == list(open_model(path, runtime="numpy")(IMAGES).argmax(1))


def test_mistakes_are_one_line(tmp_path):
    apply, variables, shape = one_bit(ResNet())
    for fields, words in (
        ({"path": tmp_path / "m.bin"}, "names no format: use one of .safetensors"),
        ({"format": "tflite"}, "unknown format 'tflite'"),
        ({"input_shape": (16, 16)}, "it must be .height, width, channels."),
        ({"class_names": ["a"]}, "1 class names for a network of 10 classes"),
        ({"images": IMAGES[:0]}, "no images to compare on"),
        ({"images": IMAGES[:, :8]}, "16"),
        ({"path": tmp_path / "none" / "m.onnx"}, "there is no such folder"),
    ):
        arguments = {"path": tmp_path / "m.onnx", "input_shape": shape, **fields}
        with pytest.raises(UserError, match=words):
            export(apply, variables, **arguments)


def test_operations_of_training_are_refused(tmp_path):
    """Batch statistics and dropout that are active, each with the line of the user's code."""

    class Training(nn.Module):
        dropout: bool

        @nn.compact
        def __call__(self, images):
            x = nn.Conv(8, (3, 3))(floats(images))
            if self.dropout:
                x = nn.Dropout(0.5, deterministic=False)(x)
            else:
                x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(10)(x.mean((1, 2)))

    for dropout, words in (
        (True, "such as a dropout mask"),
        (False, "batch norm must use its running moments"),
    ):
        network = Training(dropout)
        rngs = {"dropout": jax.random.key(1)}
        variables = network.init({"params": jax.random.key(0), **rngs}, IMAGES)

        def apply(variables, images, network=network, rngs=rngs):
            used = {**variables, "params": binarize(variables["params"], KERNELS)}
            return network.apply(used, images, rngs=rngs, mutable=["batch_stats"])[0]

        with pytest.raises(UserError, match=words) as caught:
            export(apply, variables, tmp_path / "m.onnx", (16, 16, 3), images=IMAGES)
        assert "test_own_network.py:" in str(caught.value)
    assert not list(tmp_path.iterdir())
