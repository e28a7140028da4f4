"""Packed files: equal to their network, exact to the bit, and safe to open whatever they hold."""

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from packed_corpus import HOSTILE
from packed_models import GOLDEN, golden_model
from packed_networks import Network

from binwrn_jax import Description, Model, UserError, load_packed
from binwrn_jax.cli.main import main
from binwrn_jax.deploy import export as verified
from binwrn_jax.deploy import jax_runtime, numpy_reader
from binwrn_jax.deploy.formats import layers, open_model
from binwrn_jax.deploy.graph_file import pack_signs
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import pack, read_packed, serialise, write_packed
from binwrn_jax.nn.registry import create_network
from binwrn_jax.training.config import base_config

ROOT = Path(__file__).parents[2]
FORMAT_TEXT = (ROOT / "docs" / "packed-format.md").read_text()
RNG_IMAGES = np.random.default_rng(1).integers(0, 256, (5, 12, 8, 3), dtype=np.uint8)


def make_model(seed=0, width=0.45, shape=(12, 8, 3), classes=7, **fields) -> Model:
    """A small network with moments and scales that matter."""
    fields = {**base_config().model.to_dict(), "depth": 8, "width": width, **fields}
    network = create_network(fields, classes)
    rng = np.random.default_rng(seed)

    def trained(path, x):
        layer, key = path[-2].key, path[-1].key
        pixels = layer == "bn0"
        if key == "mean":
            return np.float32(rng.normal(size=x.shape) * 0.3 + 120 * pixels)
        if key == "var":
            return np.float32(rng.uniform(0.2, 2, x.shape) * (3000 if pixels else 1))
        if key == "scale":  # learned ones may be negative or zero
            return np.float32(rng.uniform(0.5, 1.5, x.shape) * rng.choice([1, 1, -1, 0], x.shape))
        if key == "offset":
            return np.float32(rng.normal(size=x.shape))
        return np.asarray(x)

    fresh = network.init(jax.random.key(seed), np.zeros((1, *shape), np.uint8))
    variables = jax.tree_util.tree_map_with_path(trained, fresh)
    return Model(network, variables, Description(classes, shape, fields))


def write(path, **fields):
    model = make_model(**fields)
    packed = pack(model, RNG_IMAGES[0])
    write_packed(packed, path)
    return model.network, model.variables, packed


NETWORKS = {
    "paper": {},
    "keras": {"padding": "same", "input_relu": False},
    "plain": {"plain": True},
    "learned batch norm": {"affine": True},
    "no batch norm": {"norm": "none", "temperature": 40.0, "input_relu": False},
    "bwn": {"weights": "bwn"},
    "bwn per layer": {"weights": "bwn_layer"},
    "bwn without batch norm": {"weights": "bwn_layer", "norm": "none"},
    "binaryconnect": {"weights": "binaryconnect"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A packed file to read and to damage."""
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    write(path)
    return path


# --- equal to the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_reader_gives_the_networks_logits(tmp_path, name):
    network, variables, packed = write(tmp_path / "m", **NETWORKS[name])
    run = jax.jit(network.apply)
    expected = np.asarray(run(variables, RNG_IMAGES))
    loaded = load_packed(tmp_path / "m")
    assert loaded.model == network
    results = {
        "jax": loaded.predict(RNG_IMAGES),
        "numpy": open_numpy(tmp_path / "m")(RNG_IMAGES),
        "flax variables": run(loaded.variables, RNG_IMAGES),
    }
    if name == "paper":
        floats = {name: jax.numpy.asarray(packed.signs(name)) for name in packed.bits}
        unpacked = jax.jit(loaded.apply)({**loaded.weights, **floats}, RNG_IMAGES)
        np.testing.assert_array_equal(results["jax"], unpacked)  # the bits change nothing
        results["float images"] = loaded.predict(RNG_IMAGES.astype(np.float32))
    scale = np.abs(expected).max()
    for reader, logits in results.items():
        np.testing.assert_allclose(np.asarray(logits) / scale, expected / scale, atol=3e-5, err_msg=reader)
    np.testing.assert_allclose(packed.golden_logits / scale, expected[0] / scale, atol=3e-5)


def test_variables_to_train_on_have_the_moments_that_were(tmp_path):
    network, variables, packed = write(tmp_path / "m")
    again = load_packed(tmp_path / "m").variables
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for layer, moments in variables["batch_stats"].items():
        if layer != "bn0":  # whose learned scale and offset are folded with the moments for good
            for key in ("mean", "var"):
                np.testing.assert_allclose(
                    again["batch_stats"][layer][key], moments[key], rtol=1e-4, atol=1e-5
                )
    for name in packed.bits:
        latent, old = again["params"][name]["kernel"], variables["params"][name]["kernel"]
        np.testing.assert_array_equal(latent < 0, old < 0)
        assert len(np.unique(latent)) == 2
    # It trains: the gradient with respect to each latent weight exists and is finite.
    loss = jax.jit(jax.grad(lambda params: network.apply({**again, "params": params}, RNG_IMAGES).sum()))
    grads = loss(again["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_variables_of_foreign_operations_are_refused_but_they_run():
    loaded = load_packed(GOLDEN)
    assert loaded.predict(loaded.packed.golden_image[None]).shape == (1, 3)
    with pytest.raises(UserError, match="names no network"):
        loaded.model  # noqa: B018


def test_the_device_holds_one_bit_per_weight(file):
    model, packed = load_packed(file), read_packed(file)
    kernels = sum(x.nbytes for name, x in model.weights.items() if name.startswith("conv"))
    assert kernels == sum(bits.nbytes for bits in packed.bits.values())


@pytest.mark.parametrize(("groups", "dilation"), [(1, (1, 1)), (3, (2, 3))])
def test_large_convolutions_are_unpacked_in_parts(monkeypatch, groups, dilation):
    """Rows of windows of which some meet padding alone, bits that begin within a byte, a rest of channels."""
    rng = np.random.default_rng(3)
    operation = {
        **{"window": [5, 3], "stride": [2, 1], "pads": [[4, 4], [2, 1]], "channels": [9, 15]},
        **{"groups": groups, "dilation": list(dilation)},
    }
    x = jax.numpy.asarray(rng.normal(size=(2, 7, 9, 9)), np.float32)
    bits = jax.numpy.asarray(rng.integers(0, 256, (15, -(-15 * 9 // groups // 8)), np.uint8))
    whole = jax.jit(lambda x, bits: jax_runtime._convolve(x, bits, operation))(x, bits)
    for most in (1, 100):  # weights
        monkeypatch.setattr(jax_runtime, "UNPACKED", most)
        parts = jax.jit(lambda x, bits: jax_runtime._convolve(x, bits, operation))(x, bits)
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
def test_large_pools_take_one_axis_after_the_other(tmp_path, monkeypatch, op):
    network = Network(np.random.default_rng(3), (7, 6, 3))
    packed = network.finish(network.pool("image", op, (4, 3), (3, 2), ((3, 1), (0, 2))))
    write_packed(packed, tmp_path / "m")
    images = np.random.default_rng(4).integers(0, 256, (3, 7, 6, 3), np.uint8)
    whole = load_packed(tmp_path / "m").predict(images)
    monkeypatch.setattr(jax_runtime, "LARGE_WINDOW", 1)
    parts = load_packed(tmp_path / "m").predict(images)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_large_images_come_in_smaller_batches(file, monkeypatch):
    packed = read_packed(file)
    monkeypatch.setattr(jax_runtime, "MAX_NUMBERS", 2 * packed.most_numbers)
    model, sizes = load_packed(file), []
    whole = load_packed(file).predict(RNG_IMAGES)
    run = model._run
    monkeypatch.setattr(model, "_run", lambda weights, x: sizes.append(len(x)) or run(weights, x))
    np.testing.assert_allclose(model(RNG_IMAGES), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    assert max(sizes) == 2 and sum(sizes) >= len(RNG_IMAGES)


def test_any_number_of_images_and_no_other_shape(file):
    for runtime in ("auto", "numpy"):
        predictor = open_model(file, runtime=runtime)
        whole = predictor(RNG_IMAGES)
        np.testing.assert_allclose(predictor(RNG_IMAGES[:3]), whole[:3], rtol=1e-5, atol=1e-5)
        assert predictor(RNG_IMAGES[:0]).shape == (0, 7)
        assert predictor.description["image_shape"] == [12, 8, 3]
        with pytest.raises(UserError, match="the network takes"):
            predictor(RNG_IMAGES[:, :8])


def test_32_bit_weights_are_refused():
    with pytest.raises(UserError, match="32-bit weights: only the 1-bit rules"):
        pack(make_model(weights="32bit"), RNG_IMAGES[0])


def test_a_network_that_diverged_is_refused():
    model = make_model()
    model.variables["batch_stats"]["bn3"]["var"][0] = np.nan
    with pytest.raises(UserError, match=r"'affine3.scale' is not finite"):
        pack(model, RNG_IMAGES[0])
    model = make_model()
    layer = model.variables["params"]["conv2"]
    layer["kernel"] = np.full_like(layer["kernel"], np.nan)
    with pytest.raises(UserError, match="NaN weights"):
        pack(model, RNG_IMAGES[0])


@pytest.mark.slow
def test_a_20_10_is_within_3_percent_of_its_bits():
    rng = np.random.default_rng(0)
    model = make_model(depth=20, width=10.0, shape=(32, 32, 3), classes=10)
    packed = pack(model, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert packed.ideal_bytes == 26_737_120 // 8
    assert len(serialise(packed)) <= 1.03 * packed.ideal_bytes


# --- the bits -----------------------------------------------------------------------------------------------


def test_worked_example_of_the_document():
    """docs/packed-format.md: the table of weights gives the bytes printed below it."""
    section = FORMAT_TEXT.split("## Bits")[1].split("## Operations")[0]
    kernel = np.zeros((2, 2, 3, 2))
    for line in section.splitlines():
        row = re.match(r"    (\d) (\d) +([+-]1) +([+-]1) +([+-]1) .* \1 \2 +([+-]1) +([+-]1) +([+-]1)$", line)
        if row:
            kernel[int(row[1]), int(row[2])] = np.reshape([int(v) for v in row.groups()[2:]], (2, 3)).T
    assert (kernel != 0).all()
    hexadecimal = re.search(r"^    ((?:[0-9a-f]{2} ?){4})$", section, re.MULTILINE)[1]
    packed = pack_signs(kernel)
    assert packed.tobytes() == bytes.fromhex(hexadecimal)
    np.testing.assert_array_equal(numpy_reader.signs(packed, [2, 2], [3, 2]), kernel)


@settings(deadline=None)
@given(
    arrays_of.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf]), st.floats(-2, 2, width=32)
        ),
    )
)
def test_any_latent_weights_round_trip_bit_for_bit(kernel):
    bits = pack_signs(kernel)
    k = kernel[..., 0].size
    assert bits.dtype == np.uint8 and bits.shape == (kernel.shape[3], -(-k // 8))
    signs = numpy_reader.signs(bits, list(kernel.shape[:2]), list(kernel.shape[2:]))
    np.testing.assert_array_equal(signs, np.where(kernel < 0, -1, 1))
    np.testing.assert_array_equal(pack_signs(signs), bits)


def test_nan_has_no_sign():
    with pytest.raises(UserError, match="NaN"):
        pack_signs(np.full((1, 1, 1, 1), np.nan))


# --- the file -----------------------------------------------------------------------------------------------


def test_golden_file_stays_readable():
    """A file of version 1 as it was written when the format was fixed."""
    packed, expected = read_packed(GOLDEN), golden_model()
    assert packed.metadata == expected.metadata
    for name, tensor in expected.tensors.items():
        if name != "golden.logits":
            np.testing.assert_array_equal(packed.tensors[name], tensor)
    for runtime in ("auto", "numpy"):
        logits = open_model(GOLDEN, runtime=runtime)(packed.golden_image[None])[0]
        np.testing.assert_allclose(logits, packed.golden_logits, rtol=1e-5)


def test_golden_file_by_the_reader_printed_in_the_document():
    code = FORMAT_TEXT.split("```python\n")[1].split("```")[0]
    result = subprocess.run([sys.executable, "-c", code, GOLDEN], capture_output=True, text=True, check=True)
    expected = read_packed(GOLDEN).golden_logits
    np.testing.assert_allclose([float(word) for word in result.stdout.split()], expected, rtol=1e-4)


def test_numpy_reader_works_alone_outside_of_the_project(tmp_path):
    shutil.copy(numpy_reader.__file__, tmp_path / "reader.py")
    packed = read_packed(GOLDEN)
    np.save(tmp_path / "image.npy", packed.golden_image)
    command = [sys.executable, "-I", "reader.py", GOLDEN, "image.npy"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    index, name, *logits = result.stdout.split()
    assert int(index) == packed.golden_logits.argmax()
    assert name == packed.metadata["class_names"][int(index)]
    np.testing.assert_allclose([float(value) for value in logits], packed.golden_logits, rtol=1e-3)
    imported = "import sys, reader; assert not {'jax', 'binwrn_jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", imported], cwd=tmp_path, check=True)
    (tmp_path / "bad").write_bytes(b"x" * 20)
    command[3] = "bad"
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_opens_with_the_safetensors_library(file):
    import safetensors

    packed = read_packed(file)
    with safetensors.safe_open(file, "np") as opened:
        assert set(opened.keys()) == set(packed.tensors)
        for name, tensor in packed.tensors.items():
            np.testing.assert_array_equal(opened.get_tensor(name), tensor)
        assert json.loads(opened.metadata()["binwrn"]) == packed.metadata


def test_reading_and_writing_again_changes_no_byte(file, tmp_path):
    write_packed(read_packed(file), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_tensors_are_aligned(file):
    with open(file, "rb") as opened:
        header = numpy_reader.read_header(opened)
    assert header.start % 8 == 0
    assert all(entry.begin % entry.dtype.itemsize == 0 for entry in header.entries.values())


def test_rows_for_inspect(file):
    rows = layers(file)
    assert [row.name for row in rows] == [f"conv{i}" for i in range(8)]
    assert rows[0].shape == (3, 3, 3, 7) and rows[0].bits == 189 and rows[0].bytes == 24
    assert rows[0].scale == pytest.approx((2 / 27) ** 0.5)
    assert all(row.values == 2 and 0 < row.plus_share < 1 for row in rows)


# --- damaged and hostile files ------------------------------------------------------------------------------


def container(header, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.fixture(scope="module")
def parts():
    """Header, metadata and data of the golden file."""
    content = GOLDEN.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return header, json.loads(header["__metadata__"]["binwrn"]), content[start:]


def rebuilt(parts, edit) -> bytes:
    header, metadata, data = copy.deepcopy(parts)
    replacement = edit(header, metadata)
    header["__metadata__"] = {"binwrn": replacement or json.dumps(metadata)}
    return container(header, data)


def refusal(tmp_path, content: bytes) -> str:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_packed(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused_in_one_line(tmp_path, parts, name):
    edit, message = HOSTILE[name]
    assert re.search(message, refusal(tmp_path, rebuilt(parts, lambda h, m: _text(edit(h, m)))))


def _text(value):
    """Only an edit that returns text replaces the metadata; `pop` returns what it took out."""
    return value if isinstance(value, str) and value[:1] in "{[" else None


def test_an_unused_tensor_is_refused(tmp_path, parts):
    header, _, data = copy.deepcopy(parts)
    header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    # Keep it aligned, so that nothing but its being unused is wrong.
    padding = -len(data) % 4
    if padding:
        header["filler"] = {
            "dtype": "U8",
            "shape": [padding],
            "data_offsets": [len(data), len(data) + padding],
        }
        header["extra"]["data_offsets"] = [len(data) + padding, len(data) + padding + 4]
    assert "used by no operation" in refusal(tmp_path, container(header, data + bytes(padding + 4)))


def test_damaged_tensors_are_refused(tmp_path, parts):
    header, metadata, data = parts

    def changed(name, at, value):
        begin = header[name]["data_offsets"][0] + at
        return container(header, data[:begin] + value + data[begin + len(value) :])

    nan = np.float32(np.nan).tobytes()
    assert "not finite" in refusal(tmp_path, changed("affine1.offset", 4, nan))
    assert "checksum" in refusal(
        tmp_path, changed("conv0", 3, bytes([data[header["conv0"]["data_offsets"][0] + 3] ^ 1]))
    )
    # A padding bit, with a checksum that agrees with it.
    packed = golden_model()
    bits = {**packed.bits, "conv1": packed.bits["conv1"] | 0x80}
    metadata = {**metadata, "sha256": numpy_reader.checksum(metadata, bits)}
    with pytest.raises(UserError, match="padding bits"):
        serialise(dataclasses.replace(packed, metadata=metadata, bits=bits))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        bytes(8),
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{",
        container(b"", b"", 16 << 20),
        container(b"[]", b""),
        container(b"{}", b""),
        container(b"\xff\xfe{}", b""),
        container(b'{"a":' * 100_000, b""),
        container(b'{"__metadata__":{"binwrn":7}}', b""),
        container(b'{"__metadata__":' + b"9" * 5000 + b"}", b""),
    ],
    ids=range(12),
)
def test_no_packed_model_at_all(tmp_path, content):
    refusal(tmp_path, content)


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="cannot read"):
            read_packed(path)
    os.mkfifo(tmp_path / "pipe")
    handle = os.open(tmp_path / "pipe", os.O_RDWR)  # or opening it would wait for a writer
    try:
        with pytest.raises(UserError, match="not a regular file"):
            read_packed(tmp_path / "pipe")
    finally:
        os.close(handle)


def test_a_sparse_file_of_a_terabyte_costs_nothing(tmp_path):
    """Sizes are checked against the header before anything is allocated."""
    path = tmp_path / "huge"
    path.write_bytes(GOLDEN.read_bytes())
    os.truncate(path, 1 << 40)
    for reader in (read_packed, open_model):
        with pytest.raises(UserError, match="truncated or damaged"):
            reader(path)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 1 << 20)),
    st.one_of(st.none(), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 16)),
)
def test_mutated_files_are_refused_or_run(tmp_path, flips, cut, length):
    """Bytes flipped (mostly in the header), the file cut, the header's length replaced."""
    content = bytearray(GOLDEN.read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    if length is not None:
        content[:8] = length.to_bytes(8, "little")
    if cut is not None:
        del content[cut % len(content) :]
    path = tmp_path / "mutated"
    path.write_bytes(content)
    try:
        packed = read_packed(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    # Nothing that the rules forbid came of it, so it runs: a name, a float or a pixel has changed.
    image = packed.golden_image[None]
    with np.errstate(all="ignore"):
        assert open_numpy(path)(image).shape == (1, packed.metadata["num_classes"])


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value):
    """Each place within a JSON value that can hold another: pairs of container and key."""
    if isinstance(value, dict | list):
        for key in sorted(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 16), json_values)
def test_any_value_anywhere_in_the_metadata_is_refused_or_runs(tmp_path, parts, index, value):
    """One place of the JSON, at any depth, holds something else than it should."""

    def edit(header, metadata):
        choices = [*places(header), *places(metadata)]
        container, key = choices[index % len(choices)]
        container[key] = value

    path = tmp_path / "odd"
    path.write_bytes(rebuilt(parts, edit))
    try:
        packed = read_packed(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert open_numpy(path)(packed.golden_image[None]).shape == (1, packed.metadata["num_classes"])


# --- exporting and verifying --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    make_model().save(folder)
    return folder


def test_export_proves_what_it_writes(model_folder, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    arguments = ["--format", "packed", "--output", str(output), "--images", "6", "--license", "MIT"]
    assert main(["export", str(model_folder), *arguments]) == 0
    text = capsys.readouterr().out
    assert "6 RANDOM images" in text and "JAX: 6 predictions identical" in text and "NumPy: 6" in text
    packed = read_packed(output)
    assert packed.metadata["license"] == "MIT"
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]

    # And once more, from the packed file: other terms, the same bits.
    again = tmp_path / "again.safetensors"
    arguments = ["--format", "packed", "--output", str(again), "--images", "6", "--license", "CC0-1.0"]
    assert main(["export", str(output), *arguments]) == 0
    other = read_packed(again)
    assert other.metadata == {**packed.metadata, "license": "CC0-1.0"}
    capsys.readouterr()

    assert main(["verify", str(output)]) == 0
    text = capsys.readouterr().out
    assert "FAILED" not in text and text.count("ok ") == 6


def test_export_compares_on_the_real_test_set(digits, tmp_path, monkeypatch):
    from binwrn_jax.cli.export import images_for

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images, what = images_for({"dataset": "digits", "image_shape": [8, 8, 1]}, 20, None)
    np.testing.assert_array_equal(images, digits[1].images[:20])
    assert what == "20 real images, digits test"
    _, what = images_for({"dataset": "cifar100", "image_shape": [32, 32, 3]}, 2, str(tmp_path))
    assert what == "2 RANDOM images, as cifar100 is not prepared here"


def test_export_that_differs_is_refused_and_leaves_the_old_file(model_folder, tmp_path, capsys, monkeypatch):
    """A bug in a writer, here one bit, does not get past the comparison."""
    output = tmp_path / "out.safetensors"
    old = GOLDEN.read_bytes()  # an earlier export
    output.write_bytes(old)

    def wrong(kernel):
        bits = pack_signs(kernel)
        bits[0, 0] ^= 1
        return bits

    monkeypatch.setattr("binwrn_jax.deploy.graph_file.pack_signs", wrong)
    arguments = ["--format", "packed", "--output", str(output), "--images", "6"]
    assert main(["export", str(model_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert "is not written: read back by JAX" in error and error.count("\n") == 1
    assert output.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{tmp}/no/such/file"], "there is no such folder"),
        (["--output", "{tmp}"], "it is a folder"),
        (["--output", "{tmp}/x", "--images", "0"], "at least 1"),
    ],
)
def test_bad_export_arguments(model_folder, tmp_path, capsys, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["export", str(model_folder), "--format", "packed", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_compare_counts_predictions_but_not_ties():
    reference = np.array([[1.0, 0.0], [1.0, 1.00001]], np.float32)
    assert verified.compare(reference, reference) == (0, 0)
    assert verified.compare(reference, reference[:, ::-1])[1] == 1  # the tie of the second is none
    error, different = verified.compare(reference, reference + np.float32(0.01))
    assert different == 0 and error == pytest.approx(0.01, rel=1e-3)
    assert not verified.compare(reference, np.full_like(reference, np.nan))[0] <= verified.TOLERANCE


def test_one_class_is_always_predicted():
    one = np.ones((2, 1), np.float32)
    assert verified.compare(one, one) == (0, 0)


def test_verify_tells_a_file_that_is_not_what_it_says(file, tmp_path, capsys):
    packed = read_packed(file)
    path = tmp_path / "m"

    write_packed(dataclasses.replace(packed, golden_logits=packed.golden_logits + np.float32(0.1)), path)
    assert main(["verify", str(path)]) == 1
    output = capsys.readouterr().out
    assert "FAILED golden image by JAX" in output and "FAILED golden image by NumPy" in output

    bits = {**packed.bits, "conv3": np.zeros_like(packed.bits["conv3"])}
    metadata = {**packed.metadata, "sha256": numpy_reader.checksum(packed.metadata, bits)}
    write_packed(dataclasses.replace(packed, metadata=metadata, bits=bits), path)
    assert main(["verify", str(path)]) == 1
    assert "FAILED two values per convolution: conv3 has the value -1 only" in capsys.readouterr().out

    metadata = {**packed.metadata, "note": "x" * 100_000}
    write_packed(dataclasses.replace(packed, metadata=metadata), path)
    assert main(["verify", str(path)]) == 1
    assert "FAILED size" in capsys.readouterr().out

    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 1
    assert "damaged" in capsys.readouterr().out

    assert main(["verify", str(tmp_path / "nothing")]) == 2


def test_verify_computes_only_so_much(tmp_path, capsys):
    path = tmp_path / "m"
    write_packed(golden_model(), path)
    assert main(["verify", str(path), "--max-multiply-adds", "10"]) == 2
    error = capsys.readouterr().err
    assert "multiply-adds for one image" in error and error.count("\n") == 1
    assert main(["verify", str(path), "--max-multiply-adds", "1e11"]) == 0
