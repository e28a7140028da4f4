"""The author's released files: what is read from them, that it computes the same, and what is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.io

from binwrn_jax import Description, Model, UserError, base_config, load
from binwrn_jax.cli.main import main
from binwrn_jax.deploy.formats import open_model
from binwrn_jax.deploy.predictor import JaxPredictor
from binwrn_jax.hub.mat_file import read_released
from binwrn_jax.hub.pretrained import FOLDER_VARIABLE, PRETRAINED, find_released, load_pretrained
from binwrn_jax.hub.released import import_released, to_model
from binwrn_jax.nn.registry import create_network
from binwrn_jax.training.initialise import open_source

ROOT = Path(__file__).parents[2]
OFFICIAL = os.environ.get("BINWRN_OFFICIAL_DIR")
REAL_DATA = os.environ.get("TFDS_DATA_DIR")
needs_official = pytest.mark.skipif(not OFFICIAL, reason="BINWRN_OFFICIAL_DIR is not set")
needs_cifar = pytest.mark.skipif(
    not REAL_DATA or not Path(REAL_DATA or "", "cifar10").is_dir(),
    reason="TFDS_DATA_DIR is not set or has no cifar10",
)


# --- files of the three layouts, written from random networks -----------------------------------------------


def random_model(layout, *, depth=8, width=0.5, classes=7, shape=(12, 12, 3), affine=False, seed=0):
    """A model with the layout's conventions and BN moments of its own."""
    fields = {
        **base_config().model.to_dict(),
        "depth": depth,
        "width": width,
        "plain": layout == "matlab-plain",
        "padding": "same" if layout == "keras" else "symmetric",
        "input_relu": layout != "keras",
        "affine": affine,
    }
    network = create_network(fields, classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *shape), np.uint8))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    for name, moments in variables["batch_stats"].items():
        size = moments["mean"].shape
        first = name == "bn0"
        moments["mean"] = rng.normal(100 if first else 0, 20 if first else 0.5, size).astype(np.float32)
        moments["var"] = rng.uniform(2000 if first else 0.3, 5000 if first else 3, size).astype(np.float32)
        if name in variables["params"]:
            variables["params"][name]["scale"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
            variables["params"][name]["offset"] = rng.normal(0, 0.3, size).astype(np.float32)
    return Model(network, variables, Description(classes, shape, fields))


def content_of(layout, model, first_number=0):
    """What the author's program of that layout saves of a network."""
    params, stats = model.variables["params"], model.variables["batch_stats"]
    depth, plain = model.network.depth, model.network.plain
    bits = [(params[f"conv{i}"]["kernel"] >= 0).astype(np.uint8) for i in range(depth)]
    moments = [stats[f"bn{i}"] for i in range(depth + 1)]
    affine = [params.get(f"bn{i}") for i in range(depth + 1)]
    if layout == "keras":
        content = {}
        for i, bit in enumerate(bits):
            number = first_number + i
            content["conv2d" + (f"_{number}" if number else "")] = bit[None]
        for i, (moment, learned) in enumerate(zip(moments, affine, strict=True)):
            rows = [learned["scale"], learned["offset"]] if learned else []
            rows += [moment["mean"], moment["var"]]
            content[f"batch_normalization_v1_{first_number + i + 2}"] = np.stack(rows)
        return content

    def cells(arrays, rows=False):
        column = np.empty(len(arrays), object)
        column[:] = arrays
        return column[:, None] if rows else column[None]

    ones = [np.ones_like(moment["mean"]) for moment in moments]
    gains = [a["scale"] if a else one for a, one in zip(affine, ones, strict=True)]
    offsets = [a["offset"] if a else 0 * one for a, one in zip(affine, ones, strict=True)]
    std = [np.sqrt(moment["var"] + np.float32(1e-5)) for moment in moments]
    fan_in = np.array([[np.prod(bit.shape[:3])] for bit in bits])
    values = (
        cells(bits),
        ((2 / np.sqrt(fan_in)) if plain else np.sqrt(2 / fan_in)).astype(np.float32),
        cells([gain[:, None] for gain in gains], rows=not plain),
        cells([offset[:, None] for offset in offsets], rows=not plain),
        cells([np.stack([m["mean"], s], 1) for m, s in zip(moments, std, strict=True)], rows=not plain),
    )
    keys = (
        ("BooleanSingleBitWeights", "LayerScales", "BN_Scales", "BN_Offsets", "BN_Moments")
        if plain
        else ("BinaryWeights", "LayerWeights", "BNG", "BNB", "Moments")
    )
    n = (depth - 2) // 3
    content = dict(zip(keys, values, strict=True))
    content["Stride"] = np.array([[2 if i in (n + 1, 2 * n + 1) else 1 for i in range(depth)]], np.uint8)
    content["Padding"] = np.array([[1] * (depth - 1) + [0]], np.uint8)
    if not plain:
        content["PercentCorrectTest"] = np.array([[31.25, 50.5, 62.0]])
        content["Training"] = {"BatchSize": 125, "ResNet": 1}
    return content


def write(path, content):
    scipy.io.savemat(path, content, do_compression=True)
    return path


@pytest.mark.parametrize(
    "layout, depth, width, classes, shape, affine",
    [
        ("keras", 14, 0.5, 7, (12, 12, 3), False),
        ("keras", 8, 0.75, 100, (16, 16, 1), True),
        ("matlab", 8, 1.25, 10, (8, 8, 1), False),
        ("matlab", 14, 0.5, 3, (13, 11, 3), True),
        ("matlab-plain", 8, 1, 20, (16, 16, 3), False),
        ("matlab-plain", 8, 0.5, 5, (9, 9, 2), True),
    ],
)
def test_an_imported_file_computes_what_its_source_computes(
    tmp_path, capsys, layout, depth, width, classes, shape, affine
):
    model = random_model(layout, depth=depth, width=width, classes=classes, shape=shape, affine=affine)
    # From 95: the numbers of the layers pass from two digits to three.
    path = write(tmp_path / "anything.bin", content_of(layout, model, first_number=95))
    assert main(["import", str(path), "--output", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert f" {depth}-{width:g}, {shape[2]} input channels, {classes} classes" in out

    imported = Model.load(tmp_path / "model").description
    assert imported.model == model.description.model
    assert imported.num_classes == classes
    assert imported.dataset is None
    images = np.random.default_rng(1).integers(0, 256, (5, *shape), dtype=np.uint8)
    expected = JaxPredictor(model)(images)
    actual = open_model(tmp_path / "model")(images)
    assert np.ptp(expected) > 0.01  # the networks do answer differently
    if layout == "keras":
        np.testing.assert_array_equal(actual, expected)
    else:  # the standard deviations are rounded
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_order_is_that_of_the_numbers_not_of_the_file(tmp_path):
    """As in Keras' own file the first layer has no number, and conv2d_10 sorts before conv2d_2 as text."""
    model = random_model("keras", depth=14)
    content = content_of("keras", model)
    assert "conv2d" in content and "conv2d_10" in content
    shuffled = dict(sorted(content.items()))
    import_released(write(tmp_path / "a.mat", shuffled), tmp_path / "model")
    images = np.random.default_rng(1).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(open_model(tmp_path / "model")(images), JaxPredictor(model)(images))


def test_recorded_accuracy_and_dataset(tmp_path, capsys):
    model = random_model("matlab", classes=10, shape=(28, 28, 1))
    path = write(tmp_path / "a.mat", content_of("matlab", model))
    assert main(["import", str(path), "--output", str(tmp_path / "model"), "--dataset", "mnist"]) == 0
    assert "2: 50.50, 3: 62.00" in capsys.readouterr().out
    imported = json.loads((tmp_path / "model" / "model.json").read_text())
    assert imported["recorded"]["accuracy_by_epoch"] == [31.25, 50.5, 62.0]
    assert imported["image_shape"] == [28, 28, 1]
    assert imported["dataset"] == "mnist"
    assert imported["class_names"][:2] == ["0", "1"]
    assert imported["source"]["layout"] == "matlab"


def test_latent_weights_have_the_magnitude_of_the_scale(tmp_path):
    for layout, factor in (("matlab", np.sqrt(2)), ("matlab-plain", 2)):
        released = write(tmp_path / "a.mat", content_of(layout, random_model(layout)))
        import_released(released, tmp_path / "m")
        params = Model.load(tmp_path / "m").variables["params"]
        np.testing.assert_allclose(np.abs(params["conv1"]["kernel"]), factor / np.sqrt(9 * 8), rtol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A good file of each layout: its content."""
    return {
        layout: content_of(layout, random_model(layout)) for layout in ("keras", "matlab", "matlab-plain")
    }


def refused(tmp_path, capsys, path, *options):
    """The one line that ``binwrn import`` says; nothing may be left behind."""
    output = tmp_path / "out" / "model"
    assert main(["import", str(path), "--output", str(output), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not output.parent.exists()
    return captured.err


def replaced(cells, index, value):
    """A cell array with one cell changed."""
    changed = cells.copy()
    changed.ravel()[index] = value
    return changed


def test_files_that_are_no_matlab_files(tmp_path, capsys, sources):
    good = write(tmp_path / "good.mat", sources["matlab"]).read_bytes()
    bad = tmp_path / "bad.mat"
    assert "there is no such file" in refused(tmp_path, capsys, tmp_path / "none.mat")
    assert "there is no such file" in refused(tmp_path, capsys, tmp_path)
    for content in (b"", b"hello\n" * 100, os.urandom(4096)):
        bad.write_bytes(content)
        assert "no MATLAB 5 file" in refused(tmp_path, capsys, bad)
    for length in (100, 130, len(good) // 2, len(good) - 10):
        bad.write_bytes(good[:length])
        message = refused(tmp_path, capsys, bad)
        assert "truncated" in message or "missing" in message, message
    bad.write_bytes(good[:200] + bytes(64) + good[264:])
    assert "damaged" in refused(tmp_path, capsys, bad)
    bad.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    assert "-v7" in refused(tmp_path, capsys, bad)


def element(kind, data, compress=False):
    """An element of a MATLAB 5 file."""
    packed = struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
    if compress:
        packed = zlib.compress(packed, 9)
        packed = struct.pack("<II", 15, len(packed)) + packed
    return packed


def variable(name, kind, shape, data=b"", **options):
    """An array that may claim another shape than it has."""
    flags = element(6, struct.pack("<II", kind, 0))
    dimensions = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + dimensions + element(1, name) + data, **options)


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
MANY = (1, 2**31 - 1)
FIELDS = element(5, struct.pack("<i", 32)) + element(1, b"ResNet".ljust(32, b"\0"))


@pytest.mark.parametrize(
    "content",
    [
        variable(b"conv2d", 9, (3, 3, 2**20, 250), element(2, bytes(2_400_000_000 // 8)), compress=True),
        variable(b"BinaryWeights", 1, MANY),
        variable(b"BinaryWeights", 1, MANY, compress=True),
        variable(b"BinaryWeights", 1, (1, 1), variable(b"", 1, MANY)),
        variable(
            b"Training", 2, MANY, element(5, struct.pack("<i", 32)) + element(1, b"ResNet".ljust(32, b"\0"))
        ),
        variable(b"Training", 2, MANY, element(5, struct.pack("<i", 32)) + element(1, b"")),
        variable(b"conv2d", 4, MANY, element(4, b"")),
        variable(b"conv2d", 6, MANY, element(9, b"")),
        variable(b"conv2d", 5, MANY, element(5, b"")),
        variable(b"conv2d", 16, (1, 1)),
        variable(b"conv2d", 6, (-1, 2), element(9, bytes(8))),
        variable(b"x", 6, MANY, element(9, b"")),
        b"".join(variable(b"BinaryWeights", 1, (1, 1)) for _ in range(1)) * 3 + element(15, b"\x78\xda"),
    ],
)
def test_a_file_that_claims_more_than_it_has_takes_no_memory(tmp_path, content):
    """2 MB inflate to 300; a cell array claims two billion cells."""
    (tmp_path / "a.mat").write_bytes(HEADER + content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a.mat"):
            read_released(tmp_path / "a.mat")
        assert tracemalloc.get_traced_memory()[1] < 10 * len(content) + 2**24
    finally:
        tracemalloc.stop()


def test_a_larger_limit_can_be_given(tmp_path, capsys, sources):
    ones = {**sources["keras"], "conv2d_2": np.ones((3, 3, 2000, 5000), np.uint8)}
    path = write(tmp_path / "a.mat", ones)
    assert "more than its network can need: fetch it again, or give --max-memory" in refused(
        tmp_path, capsys, path
    )
    assert "no wide ResNet" in refused(tmp_path, capsys, path, "--max-memory", "100M")
    assert "more than 89 MB" in refused(tmp_path, capsys, path, "--max-memory", "85M")
    assert "'lots' is no size" in refused(tmp_path, capsys, path, "--max-memory", "lots")


def test_a_file_cut_between_two_variables(tmp_path, capsys, sources):
    """Such a file is still a whole MATLAB file."""
    keys = ("BinaryWeights", "LayerWeights", "BNG")
    path = write(tmp_path / "a.mat", {key: sources["matlab"][key] for key in keys})
    assert "BNB, Moments are missing" in refused(tmp_path, capsys, path)
    content = {key: value for key, value in sources["keras"].items() if key.startswith("conv")}
    path = write(tmp_path / "a.mat", content)
    assert "8 convolutions (conv2d*) and 0 batch norms" in refused(tmp_path, capsys, path)
    path = write(tmp_path / "a.mat", {"x": np.ones(3), "y": np.ones(2)})
    assert "has the keys x, y" in refused(tmp_path, capsys, path)


def keras_edits(content):
    conv, norm = content["conv2d_3"], content["batch_normalization_v1_4"]
    yield "values other than 0 and 1", {"conv2d_3": conv * 2}
    yield "no kernel", {"conv2d_3": conv[0, 0]}
    yield (
        "convolution 4 of 8 is (3, 3, 8, 8), where a network 8-0.5 for 7 classes has (3, 3, 8, 16)",
        {"conv2d_3": conv[..., :8]},
    )
    yield "convolution 8 of 8", {"conv2d_7": np.zeros((1, 3, 3, 32, 7), np.uint8)}
    yield "neither (4, channels) nor (2, channels)", {"batch_normalization_v1_4": norm[:1]}
    yield "has 3 channels, not 8", {"batch_normalization_v1_4": norm[:, :3]}
    yield "negative variance", {"batch_normalization_v1_4": -np.abs(norm)}
    yield "no finite numbers", {"batch_normalization_v1_4": norm * np.nan}
    yield "no finite numbers", {"batch_normalization_v1_4": np.full(norm.shape, "a")}


def matlab_edits(content):
    bits, moments = content["BinaryWeights"], content["Moments"]
    yield "values other than 0 and 1", {"BinaryWeights": replaced(bits, 2, bits.ravel()[2] + 3)}
    yield "no cell array", {"BinaryWeights": np.ones(3)}
    yield "7 convolutions", {"BinaryWeights": bits[:, :7]}
    yield "LayerWeights are not sqrt(2 / (F^2 C_in))", {"LayerWeights": content["LayerWeights"] * 1.1}
    yield "LayerWeights are not", {"LayerWeights": content["LayerWeights"][:5]}
    yield "LayerWeights are not 2 / sqrt(F^2 C_in)", {"Training": {"ResNet": 0}}
    yield "Stride is", {"Stride": np.ones((1, 8), np.uint8)}
    yield "Padding is", {"Padding": np.zeros((1, 8), np.uint8)}
    yield "do not agree", {"Moments": replaced(moments, 3, moments.ravel()[3][:, :1])}
    yield "below sqrt(1e-05)", {"Moments": replaced(moments, 3, moments.ravel()[3] * 1e-5)}


@pytest.mark.parametrize("layout, edits", [("keras", keras_edits), ("matlab", matlab_edits)])
def test_damaged_content(tmp_path, capsys, sources, layout, edits):
    for expected, edit in edits(sources[layout]):
        path = write(tmp_path / "a.mat", {**sources[layout], **edit})
        message = refused(tmp_path, capsys, path)
        assert expected in message
        assert str(path) in message


def test_a_depth_that_no_network_has(tmp_path, capsys, sources):
    content = dict(sources["keras"])
    del content["conv2d_7"], content["batch_normalization_v1_10"]
    assert "depth 7 is not 6n + 2" in refused(tmp_path, capsys, write(tmp_path / "a.mat", content))


def test_a_dataset_that_does_not_fit(tmp_path, capsys, sources):
    path = write(tmp_path / "a.mat", sources["keras"])
    assert "7 classes, but cifar10 has" in refused(tmp_path, capsys, path, "--dataset", "cifar10")
    assert "unknown data set" in refused(tmp_path, capsys, path, "--dataset", "cifar11")


def test_only_a_model_is_replaced(tmp_path, capsys, sources):
    path = write(tmp_path / "a.mat", sources["keras"])
    output = tmp_path / "model"
    for _ in range(2):  # the second time the first model is replaced
        assert main(["import", str(path), "--output", str(output)]) == 0
    (output / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(["import", str(path), "--output", str(output)]) == 2
    assert "'notes.txt'" in capsys.readouterr().err
    assert (output / "notes.txt").read_text() == "mine"
    assert main(["import", str(path), "--output", str(path)]) == 2
    assert main(["import", str(path), "--output", str(path / "below")]) == 2
    assert "choose another --output" in capsys.readouterr().err


# --- training goes on ---------------------------------------------------------------------------------------


def run_training(workdir, config, **fields):
    """Runs train.py as a user would; its summary."""
    command = [sys.executable, "train.py", f"--config=configs/{config}", f"--workdir={workdir}"]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((workdir / "summary.json").read_text())


# A rate at which few signs change: the first peak of a fresh run, 0.1, would undo the training.
SMALL_RATE = {"schedule.peak": 1e-4, "schedule.floor": 1e-5}


@pytest.mark.slow
def test_training_goes_on_where_the_released_network_stood(tmp_path):
    first = run_training(tmp_path / "first", "digits.py:8-0.5", epochs=6)
    assert first["test_error"] < 50  # chance is 90
    released = write(tmp_path / "a.mat", content_of("matlab", Model.load(tmp_path / "first")))
    import_released(released, tmp_path / "model")
    second = run_training(
        tmp_path / "second", "digits.py:8-0.5", epochs=1, init_from=tmp_path / "model", **SMALL_RATE
    )
    assert second["train_error"] < first["train_error"] + 3
    assert second["test_error"] < first["test_error"] + 3


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections' config files
def test_training_refuses_other_conventions_than_those_of_the_import(tmp_path, capsys, monkeypatch):
    """Of the same shapes, so that nothing else would tell: such a network starts near chance."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    released = content_of("keras", random_model("keras", classes=10, shape=(8, 8, 1)))
    import_released(write(tmp_path / "a.mat", released), tmp_path / "model")
    arguments = ["--config=configs/digits.py:8-0.5", "--config.devices=1", f"--workdir={tmp_path / 'run'}"]
    arguments += [f"--config.init_from={tmp_path / 'model'}"]
    monkeypatch.chdir(ROOT)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "has model.padding 'same', this run 'symmetric': give --config.model.padding=same" in error
    assert not (tmp_path / "run" / "config.json").exists()


# --- the files themselves -----------------------------------------------------------------------------------


@needs_official
@pytest.mark.parametrize(
    "name, layout, classes, width, recorded",
    [
        ("keras_cifar10_allparams.mat", "keras", 10, 160, []),
        (
            "matlab_cifar10_20-10.mat",
            "matlab",
            10,
            160,
            [73.40, 86.45, 91.54, 94.44, 95.36, 95.68, 96.18],
        ),
        ("matlab_cifar100_20-4-plain.mat", "matlab-plain", 100, 64, []),
    ],
)
def test_structure_of_the_released_files(name, layout, classes, width, recorded):
    released = read_released(Path(OFFICIAL) / name)
    assert released.layout == layout
    assert released.plain == (layout == "matlab-plain")
    scales = [width] * 6 + [2 * width] * 6 + [4 * width] * 6
    inputs, outputs = [3, width, *scales], [width, *scales, classes]
    shapes = [(3, 3, i, o) for i, o in zip(inputs, outputs, strict=True)]
    shapes[-1] = (1, 1, 4 * width, classes)
    assert [bits.shape for bits in released.bits] == shapes
    assert [norm.mean.shape for norm in released.norms] == [(c,) for c in [*inputs, classes]]
    for norm in released.norms[1:]:  # section 5.3: only the first one's are learned
        assert (norm.gain == 1).all() and (norm.offset == 0).all()
    assert (released.norms[0].gain != 1).all() and (released.norms[0].mean > 100).all()
    for bits in released.bits:
        assert 0.4 < bits.mean() < 0.6
    ends = [2, 6, 14, 30, 62, 126, 254] if recorded else []
    assert [released.accuracy[end - 1] for end in ends] == recorded


@needs_official
def test_the_plain_file_runs(tmp_path, capsys):
    """CIFAR-100 is not at hand: structure, scale convention, and that the answers depend on the image."""
    path = Path(OFFICIAL) / "matlab_cifar100_20-4-plain.mat"
    assert main(["import", str(path), "--output", str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "plain network 20-4" in out and "20 convolutions, 4,303,552 weights of 1 bit: 0.513 MiB" in out
    model = Model.load(tmp_path / "model")
    assert model.network.plain and model.description.num_classes == 100
    kernel = model.variables["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(np.unique(np.abs(kernel)), [2 / np.sqrt(9 * 64)], rtol=1e-6)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    logits = open_model(tmp_path / "model")(images)
    assert logits.shape == (4, 100) and np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 0.01


@needs_official
@needs_cifar
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, errors, loss",
    [("keras_cifar10_allparams.mat", 7, 0.36257), ("matlab_cifar10_20-10.mat", 5, 0.35339)],
)
def test_the_first_200_test_images(tmp_path, capsys, name, errors, loss):
    """With another padding, ReLU, pooling or epsilon these counts are not met."""
    model = str(tmp_path / "model")
    assert main(["import", str(Path(OFFICIAL) / name), "--output", model, "--dataset", "cifar10"]) == 0
    capsys.readouterr()
    assert main(["evaluate", model, "--dataset", "cifar10", "--limit", "200", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["n"] - result["correct"]) == (200, errors)
    assert result["loss"] == pytest.approx(loss, abs=2e-4)
    # Saved and restored: the same logits to the last bit as straight from the file.
    images = load("cifar10", "test", limit=16).images
    unsaved = JaxPredictor(to_model(read_released(Path(OFFICIAL) / name)))
    np.testing.assert_array_equal(open_model(model)(images), unsaved(images))


@needs_official
@needs_cifar
@pytest.mark.slow
def test_further_training_on_cifar10_does_not_start_at_chance(tmp_path):
    """Two steps of the paper's batch; the augmentation is flip and crop."""
    import_released(Path(OFFICIAL) / "matlab_cifar10_20-10.mat", tmp_path / "model", "cifar10")
    summary = run_training(
        tmp_path / "run",
        "cifar10.py:20-10",
        epochs=1,
        init_from=tmp_path / "model",
        **{"data.train_split": "train[:250]", "data.test_split": "test[:100]", "eval.batch_size": 50},
        **SMALL_RATE,
    )
    assert summary["train_error"] < 10  # chance is 90
    assert summary["test_error"] < 10


# --- by name ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the author's CIFAR-100 file for Keras, whose content is a small network's."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    file = tmp_path / PRETRAINED["cifar100-20-10-keras"].path
    file.parent.mkdir(parents=True)
    scipy.io.savemat(file, content_of("keras", random_model("keras", classes=100)))
    return tmp_path


def test_a_pretrained_network_is_found_by_name(folder):
    model = load_pretrained("cifar100-20-10-keras")
    assert model.description.dataset == "cifar100" and len(model.description.class_names) == 100
    assert not model.network.input_relu
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    logits = np.asarray(model.apply(model.variables, images))
    np.testing.assert_allclose(open_model("cifar100-20-10-keras")(images), logits, rtol=1e-5, atol=1e-5)
    assert open_source("cifar100-20-10-keras").description.num_classes == 100
    # A clone of the repository, and its file alone.
    file = folder / PRETRAINED["cifar100-20-10-keras"].path
    file.rename(folder / file.name)
    assert find_released("cifar100-20-10-keras") == folder / file.name


def test_a_released_file_that_is_missing_or_another(folder):
    with pytest.raises(
        UserError, match=r"^cifar10-20-10 is the file Trained\S+4MB.mat of https://github.com/"
    ):
        load_pretrained("cifar10-20-10")
    (folder / "CIFAR100_20-4-Plain_644kB.mat").write_bytes(b"something else")
    with pytest.raises(
        UserError, match=r"644kB.mat: it is not the file CIFAR100_20-4-Plain_644kB.mat of http"
    ):
        find_released("cifar100-20-4-plain")
    for opener in (open_model, open_source):
        with pytest.raises(UserError, match="did you mean the pretrained 'cifar10-20-10'"):
            opener("cifar10-20-1")
    with pytest.raises(UserError, match="choose one of cifar10-20-10, "):
        load_pretrained("resnet")


def test_without_a_folder_the_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=f"put it into {tmp_path}/binwrn_jax/released, or set {FOLDER_VARIABLE}"
    ):
        find_released("cifar10-20-10")


@needs_official
@pytest.mark.parametrize("name", ["cifar10-20-10", "cifar10-20-10-keras", "cifar100-20-4-plain"])
def test_the_released_files_have_their_hashes(name):
    assert find_released(name).parent == Path(OFFICIAL)
