"""ONNX and StableHLO files: equal to the network, true to their metadata, and safe to open when damaged."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax.deploy import numpy_reader, onnx_file, stablehlo
from binwrn_jax.deploy.packed import PackedModel, pack, serialise
from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import create_network
from binwrn_jax.store.description import Description
from binwrn_jax.store.model import Model
from binwrn_jax.training.config import base_config

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

EXPORTERS = {
    "onnx": (onnx_file.write_onnx, onnx_file.open_onnx),
    "stablehlo": (stablehlo.write_stablehlo, stablehlo.open_stablehlo),
}
# (H, W, C) and the fields that differ from the paper's network. Seven channels: rows of 63 bits.
NETWORKS = {
    "residual": ((8, 8, 3), {}),
    "odd rows": ((8, 8, 1), {"width": 7 / 16}),
    "not square": ((12, 10, 3), {"padding": "same", "input_relu": False}),
    "plain": ((8, 8, 3), {"plain": True}),
    "learned affine": ((8, 8, 1), {"affine": True, "padding": "same"}),
    "no batch norm": ((8, 8, 3), {"norm": "none", "temperature": 40.0, "input_relu": False}),
    "bwn": ((8, 8, 3), {"weights": "bwn"}),
    "bwn of a layer": ((8, 8, 3), {"weights": "bwn_layer", "width": 1.0}),
}


@functools.cache
def make(name="residual", **more):
    """A network with weights and moments that are not trivial: `(packed, images, their logits)`."""
    shape, fields = NETWORKS[name]
    fields = {**base_config().model.to_dict(), "depth": 8, "width": 0.5, **fields, **more}
    model = create_network(fields, num_classes=10)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.uint8))

    def draw(path, leaf):
        layer, kind = path[-2].key, path[-1].key
        centre, spread = (120, 60) if layer == "bn0" else (0, 1)  # pixels, normalised values
        return np.float32(
            {
                "kernel": lambda: rng.normal(size=leaf.shape),
                "scale": lambda: rng.uniform(0.5, 1.5, leaf.shape),
                "offset": lambda: 0.3 * rng.normal(size=leaf.shape),
                "mean": lambda: centre + 0.3 * spread * rng.normal(size=leaf.shape),
                "var": lambda: spread**2 * rng.uniform(0.5, 2, leaf.shape),
            }[kind]()
        )

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    names = tuple(f"klass {i} ü" for i in range(10))
    description = Description(10, shape, fields, "cifar10", names, license="CC0-1.0")
    packed = pack(Model(model, variables, description), images_of(shape, 1, seed=99)[0])
    images = images_of(shape, 7)
    return packed, images, np.asarray(jax.jit(model.apply)(variables, images))


def images_of(shape, n, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def packed():
    return make()[0]


@pytest.fixture(params=EXPORTERS)
def exported(request, packed, tmp_path):
    """Each format's file of one network: `(path, open)`."""
    write, open_ = EXPORTERS[request.param]
    write(packed, tmp_path / "model")
    return tmp_path / "model", open_


def refused(open_, path, match):
    """That opening fails with one line; returns it."""
    with pytest.raises(UserError, match=match) as caught:
        open_(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500
    return message


# --- equal to the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_file_gives_the_logits_of_the_network(exporter, name, tmp_path):
    write, open_ = EXPORTERS[exporter]
    packed, images, expected = make(name)
    write(packed, tmp_path / "model")
    predictor = open_(tmp_path / "model")
    for n in (1, 7):
        logits = predictor(images[:n])
        assert logits.dtype == np.float32
        atol = 1e-4 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(logits, expected[:n], atol=atol, rtol=0)
        np.testing.assert_array_equal(logits.argmax(-1), expected[:n].argmax(-1))
    assert np.ptp(expected, axis=0).max() > 1e-2  # the images do make a difference


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_operations_that_wide_resnets_do_not_use(exporter, tmp_path):
    rng = np.random.default_rng(5)
    windows = {"window": [3, 3], "stride": [2, 2], "pads": [[0, 1], [2, 0]]}
    conv = {
        "tensor": "conv0",
        "window": [5, 3],
        "stride": [2, 1],
        "pads": [[1, 2], [0, 2]],
        "channels": [3, 5],
    }
    operations = [
        {"op": "affine", "in": ["image"], "out": "logits", "tensor": "affine0", "min": -0.25},
        {"op": "conv", "in": ["logits"], "out": "a", **conv},
        {"op": "max_pool", "in": ["a"], "out": "pixels", **windows},
        {"op": "average_pool", "in": ["a"], "out": "mean", **windows},
        {"op": "add", "in": ["pixels", "mean"], "out": "images"},
        {"op": "pad_channels", "in": ["images"], "out": "b", "channels": 7},
        {"op": "global_average", "in": ["b"], "out": "c"},
    ]
    bits = {"conv0": np.packbits(rng.random((5, 45)) < 0.5, axis=1, bitorder="little")}
    affines = {"affine0": (np.float32([0.01, -0.02, 0.03]), np.float32([-1, 2, 0.5]))}
    metadata = {
        **make()[0].metadata,
        "operations": operations,
        "input": {"shape": [13, 14, 3], "dtype": "uint8", "range": [0, 255]},
        "num_classes": 7,
        "class_names": [],
    }
    metadata["sha256"] = numpy_reader.checksum(metadata, bits)
    image = images_of((13, 14, 3), 1)[0]
    packed = PackedModel(metadata, bits, affines, image, np.zeros(7, np.float32))
    expected = numpy_reader.Model(metadata, packed.tensors)(image[None])
    packed = dataclasses.replace(packed, golden_logits=expected[0])
    write, open_ = EXPORTERS[exporter]
    write(packed, tmp_path / "model")
    np.testing.assert_allclose(open_(tmp_path / "model")(image[None]), expected, atol=1e-4)
    assert expected[0, 5:].tolist() == [0, 0] and np.ptp(expected[0, :5]) > 0.1


def test_any_number_of_images(exported):
    path, open_ = exported
    predictor = open_(path)
    images = images_of((8, 8, 3), 203)
    logits = predictor(images)
    assert logits.shape == (203, 10)
    np.testing.assert_allclose(logits[150:151], predictor(images[150:151]), atol=1e-4)
    assert predictor(images[:0]).shape == (0, 10)


@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")  # OpenVINO starts a process
def test_openvino_gives_the_same_logits(packed, tmp_path):
    openvino = pytest.importorskip("openvino")
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    images = images_of((8, 8, 3), 7)
    # Where the CPU has bfloat16, OpenVINO would use it.
    model = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = onnx_file.open_onnx(tmp_path / "model.onnx")(images)
    np.testing.assert_allclose(model({"images": images})["logits"], expected, atol=1e-4)


@pytest.mark.slow
def test_released_network_predicts_the_same_from_both_files(tmp_path):
    for variable in ("BINWRN_OFFICIAL_DIR", "TFDS_DATA_DIR"):
        if variable not in os.environ:
            pytest.skip(f"needs {variable}")
    from pathlib import Path

    from binwrn_jax.data.open import load
    from binwrn_jax.deploy.formats import open_model
    from binwrn_jax.hub.released import import_released

    source = Path(os.environ["BINWRN_OFFICIAL_DIR"]) / "keras_cifar10_allparams.mat"
    import_released(source, tmp_path / "model", "cifar10")

    data = load("cifar10", "test", limit=200)
    packed = pack(Model.load(tmp_path / "model"), data.images[0])
    expected = open_model(tmp_path / "model")(data.images)
    for name, (write, open_) in EXPORTERS.items():
        write(packed, tmp_path / name)
        assert (tmp_path / name).stat().st_size < 3_600_000
        logits = open_(tmp_path / name)(data.images)
        np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
        np.testing.assert_allclose(logits, expected, atol=1e-3)
    assert (expected.argmax(-1) == data.labels).mean() > 0.9


# --- what the files hold ------------------------------------------------------------------------------------


def test_description_is_the_metadata(exported, packed):
    path, open_ = exported
    description = open_(path).description
    assert description["image_shape"] == [8, 8, 3]
    assert {key: description[key] for key in packed.metadata} == packed.metadata
    assert description["class_names"][3] == "klass 3 ü"


def test_files_grow_by_one_bit_per_weight(tmp_path):
    networks = [make(width=width)[0] for width in (2.0, 4.0)]
    bits = networks[1].ideal_bytes - networks[0].ideal_bytes
    for write, _ in EXPORTERS.values():
        sizes = []
        for packed in networks:
            write(packed, tmp_path / "model")
            sizes.append((tmp_path / "model").stat().st_size)
        # All but the bits: multiply-adds of 8 bytes per channel.
        assert 1 <= (sizes[1] - sizes[0]) / bits < 1.05


def test_onnx_file_is_standard_and_complete(packed, tmp_path):
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    model = onnx.load(tmp_path / "model.onnx")
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    properties = {item.key: item.value for item in model.metadata_props}
    assert json.loads(properties["binwrn"]) == packed.metadata
    assert json.loads(properties["class_names"]) == packed.metadata["class_names"]
    assert properties["license"] == "CC0-1.0"
    assert "one bit" in model.doc_string
    for put, kind, shape in (
        (model.graph.input, onnx.TensorProto.UINT8, ["batch", 8, 8, 3]),
        (model.graph.output, onnx.TensorProto.FLOAT, ["batch", 10]),
    ):
        (value,) = put
        assert value.type.tensor_type.elem_type == kind
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    # Nothing is as large as a float kernel: the weights are there as bits alone.
    largest = {}
    for item in model.graph.initializer:
        array = onnx.numpy_helper.to_array(item)
        largest[array.dtype.name] = max(largest.get(array.dtype.name, 0), array.size)
    assert largest["float32"] == 32  # channels
    assert largest["uint8"] == 32 * 9 * 32 // 8


def test_onnxruntime_unpacks_the_bits_at_load(packed, tmp_path):
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert not {"BitwiseAnd", "Where", "Slice", "Reshape"} & {node.op_type for node in loaded.node}
    constants = {item.name for item in loaded.initializer}
    assert all(node.input[1] in constants for node in loaded.node if node.op_type == "Conv")


@pytest.mark.parametrize("name", ["residual", "odd rows", "no batch norm"])
def test_packed_network_comes_back_from_onnx(name, tmp_path):
    packed = make(name)[0]
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    assert serialise(onnx_file.read_onnx(tmp_path / "model.onnx")) == serialise(packed)


def test_onnx_and_stablehlo_files_as_the_source_of_an_export(packed, tmp_path, capsys):
    from binwrn_jax.cli.main import main

    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    stablehlo.write_stablehlo(packed, tmp_path / "model.stablehlo")
    output = tmp_path / "model.safetensors"
    arguments = ["--format", "packed", "--output", str(output), "--images", "4"]
    assert main(["export", str(tmp_path / "model.onnx"), *arguments]) == 0
    assert output.read_bytes() == serialise(packed)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "model.stablehlo"), *arguments]) == 2
    assert "is a program and no longer a network" in capsys.readouterr().err


def test_stablehlo_runs_from_plain_jax(packed, tmp_path):
    stablehlo.write_stablehlo(packed, tmp_path / "model.stablehlo")
    line, header, program = (tmp_path / "model.stablehlo").read_bytes().split(b"\n", 2)
    assert line == b"binwrn-stablehlo 1"
    assert b".py" not in program  # no path of the machine that wrote it
    assert json.loads(header)["binwrn"] == packed.metadata
    exported = jax.export.deserialize(bytearray(program))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    images = images_of((8, 8, 3), 3)
    expected = stablehlo.open_stablehlo(tmp_path / "model.stablehlo")(images)
    np.testing.assert_allclose(exported.call(jnp.asarray(images)), expected, atol=1e-4)


def test_open_model_and_layers_know_both_by_content(packed, tmp_path):
    from binwrn_jax.deploy.formats import format_of, layers, open_model
    from binwrn_jax.deploy.packed import write_packed

    for name, (write, _) in EXPORTERS.items():
        write(packed, tmp_path / name)
        assert format_of(tmp_path / name).name == name
        assert open_model(tmp_path / name)(images_of((8, 8, 3), 2)).shape == (2, 10)
    write_packed(packed, tmp_path / "packed")
    assert layers(tmp_path / "onnx") == layers(tmp_path / "packed")


# --- mistakes and damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package, program",
    [
        ("onnx", lambda packed, path: onnx_file.write_onnx(packed, path)),
        ("onnx", lambda packed, path: onnx_file.read_onnx(path)),
        ("onnxruntime", lambda packed, path: onnx_file.open_onnx(path)),
    ],
)
def test_missing_package_is_named(package, program, packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"package {package}: pip install 'binwrn-jax\[deploy\]'"):
        program(packed, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_unwritable_path_is_refused(exporter, packed, tmp_path):
    refused(lambda path: EXPORTERS[exporter][0](packed, path), tmp_path / "absent" / "model", "cannot write")


def test_damage_is_refused(exported):
    path, open_ = exported
    whole = path.read_bytes()
    for content in (b"", whole[:9], whole[: len(whole) // 2], whole[:-1], b"\x00" * 1000, b"{}\n{}\n{}"):
        path.write_bytes(content)
        refused(open_, path, "export it again")
    path.unlink()
    refused(open_, path, "cannot read")


def test_flipped_bits_are_noticed(exported, packed):
    path, open_ = exported
    whole = path.read_bytes()
    if open_ is onnx_file.open_onnx:
        row = packed.bits["conv3"].tobytes()
        assert whole.count(row) == 1
        changed = whole.replace(row, bytes(255 - byte for byte in row))
    else:
        changed = whole[:-500] + bytes([255 - whole[-500]]) + whole[-499:]
    path.write_bytes(changed)
    refused(open_, path, "damaged")
    if open_ is onnx_file.open_onnx:
        refused(onnx_file.read_onnx, path, "checksum")


def test_onnx_file_with_random_damage_is_read_or_refused(packed, tmp_path):
    path = tmp_path / "model.onnx"
    onnx_file.write_onnx(packed, path)
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        content = bytearray(whole)
        at = rng.integers(len(content))
        if rng.random() < 0.5:
            content[at] ^= rng.integers(1, 256)
        else:
            content[at : at + rng.integers(1, 20)] = rng.bytes(rng.integers(0, 20))
        path.write_bytes(content)
        for read in (onnx_file.open_onnx, onnx_file.read_onnx):
            try:
                read(path)
            except UserError as error:
                refusals += 1
                assert "\n" not in str(error)
    assert refusals > 100


def test_onnx_metadata_that_is_no_text_is_refused(packed, tmp_path):
    path = tmp_path / "model.onnx"
    onnx_file.write_onnx(packed, path)
    path.write_bytes(path.read_bytes().replace(b"klass 3", b"klass\xf13"))
    for read in (onnx_file.open_onnx, onnx_file.read_onnx):
        refused(read, path, "export it again")


def rewrite(path, change):
    """Applies `change(model, properties)` to an ONNX file."""
    model = onnx.load(path)
    properties = {item.key: item.value for item in model.metadata_props}
    change(model, properties)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def with_metadata(**fields):
    def change(model, properties):
        properties["binwrn"] = json.dumps({**json.loads(properties["binwrn"]), **fields})

    return change


LYING = [
    ("dataset", ["digits"], "dataset"),
    ("license", {"name": "MIT"}, "license"),
    ("network", "wide_resnet", "network"),
    ("input", {"shape": [8, 8, 3], "resize": ["bilinear"]}, "input resize"),
    ("class_names", ["\x1b[2J"] * 10, "control characters"),
]


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda model, properties: properties.clear(), "another program"),
        (lambda model, properties: properties.pop("golden"), "golden"),
        (lambda model, properties: properties.update(binwrn="[" * 100_000), "more than 64 deep"),
        (lambda model, properties: properties.update(binwrn="[1]"), "is not a JSON object"),
        (
            lambda model, properties: properties.update(golden='{"image": "?", "logits": []}'),
            "base64|binascii",
        ),
        (with_metadata(version=3), "version 3"),
        (with_metadata(version=2), "requires"),
        (with_metadata(version=2, requires=["groups", "telepathy"]), "this file needs 'telepathy'"),
        (with_metadata(input={"shape": [3, 8, 8]}), "input is not"),
        (with_metadata(input={"shape": [1 << 40, 1 << 40, 3]}), "cannot reshape"),
        (with_metadata(num_classes=5), "class_names are not 5 strings"),
        *((with_metadata(**{key: value}), message) for key, value, message in LYING),
        (with_metadata(class_names=["one"]), "class_names"),
        (lambda model, properties: setattr(model.graph.input[0], "name", "x"), "onnxruntime"),
    ],
)
def test_onnx_file_that_is_not_ours_is_refused(change, match, packed, tmp_path):
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    rewrite(tmp_path / "model.onnx", change)
    refused(onnx_file.open_onnx, tmp_path / "model.onnx", match)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda model, properties: properties.clear(), "another program"),
        (lambda model, properties: model.graph.ClearField("initializer"), "KeyError"),
        (with_metadata(operations=[]), "operations"),
        (with_metadata(operations=7), "TypeError"),
        (with_metadata(sha256="0"), "checksum"),
    ],
)
def test_onnx_layers_that_are_not_ours_are_refused(change, match, packed, tmp_path):
    onnx_file.write_onnx(packed, tmp_path / "model.onnx")
    rewrite(tmp_path / "model.onnx", change)
    refused(onnx_file.read_onnx, tmp_path / "model.onnx", match)


def stablehlo_file(path, packed, program, **metadata):
    header = {
        "binwrn": {**packed.metadata, **metadata},
        "program_sha256": hashlib.sha256(program).hexdigest(),
    }
    path.write_bytes(b"binwrn-stablehlo 1\n" + json.dumps(header).encode() + b"\n" + program)
    return path


def export(function, *shape):
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct((batch, *shape), jnp.uint8))


def ten_sums(images):
    return jnp.zeros((1, 10), jnp.float32) + images.sum((1, 2, 3), dtype=jnp.float32)[:, None]


def test_stablehlo_program_with_another_signature_is_refused(packed, tmp_path):
    for program, match in (
        (export(ten_sums, 8, 8, 3), None),
        (export(ten_sums, 9, 8, 3), "images"),
        (export(lambda x: ten_sums(x)[:, :9], 8, 8, 3), "10 logits"),
        (export(lambda x: (ten_sums(x), x), 8, 8, 3), "unpack"),
    ):
        path = stablehlo_file(tmp_path / "model", packed, bytes(program.serialize()))
        if match:
            refused(stablehlo.open_stablehlo, path, match)
        else:
            stablehlo.open_stablehlo(path)


@pytest.mark.parametrize("key, value, match", LYING)
def test_stablehlo_with_lying_metadata_is_refused(packed, tmp_path, key, value, match):
    program = bytes(export(ten_sums, 8, 8, 3).serialize())
    refused(stablehlo.open_stablehlo, stablehlo_file(tmp_path / "m", packed, program, **{key: value}), match)


def test_stablehlo_of_another_jax_is_refused(packed, tmp_path):
    program = export(ten_sums, 8, 8, 3)
    bytecode = bytes(program.mlir_module_serialized)
    assert bytecode.startswith(
        b"ML\xefR\x0d"
    )  # the magic number, the version of the bytecode (6) as a varint
    newer = dataclasses.replace(program, mlir_module_serialized=bytecode[:4] + b"\xc9" + bytecode[5:])
    for_tpu = dataclasses.replace(program, platforms=("tpu",))
    for changed, match in ((newer, "JAX"), (for_tpu, "tpu")):
        path = stablehlo_file(tmp_path / "model", packed, bytes(changed.serialize()))
        message = refused(stablehlo.open_stablehlo, path, match)
        assert re.search(r"cannot be used with JAX [\d.]+ on cpu", message)


def test_stablehlo_of_another_version_is_refused(packed, tmp_path):
    stablehlo.write_stablehlo(packed, tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(content.replace(b"binwrn-stablehlo 1", b"binwrn-stablehlo 2", 1))
    refused(stablehlo.open_stablehlo, tmp_path / "model", "that this version reads")
