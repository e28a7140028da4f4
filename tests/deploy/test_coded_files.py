"""Packed files with coded kernels: the same model in fewer bytes; all readers refuse the same ones."""

import dataclasses
import json

import coded_corpus
import numpy as np
import pytest
from coded_corpus import GOLDEN, coded_model
from packed_networks import Network
from packed_readers import READERS, verdicts

from binwrn_jax.cli.main import main
from binwrn_jax.deploy import native, numpy_reader
from binwrn_jax.deploy.layers import layers_of
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.packed import PackedModel, read_packed, serialise, write_packed
from binwrn_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("library")


def test_the_golden_file_is_what_the_writer_writes():
    assert serialise(coded_model(), "entropy") == GOLDEN.read_bytes()


@pytest.mark.parametrize("more", [{}, {"temperature": 1.25}])
def test_a_coded_file_holds_the_same_model(tmp_path, more):
    plain, coded = tmp_path / "plain", tmp_path / "coded"
    packed = coded_model()
    packed = dataclasses.replace(packed, metadata={**packed.metadata, **more})
    write_packed(packed, plain)
    write_packed(packed, coded, coding="entropy")
    assert coded.stat().st_size < plain.stat().st_size - 200
    one, other = read_packed(plain), read_packed(coded)
    assert one.metadata == other.metadata and list(one.metadata) == list(other.metadata)
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(other.tensors[name], tensor)
    assert serialise(other) == plain.read_bytes()
    assert serialise(one, "entropy") == coded.read_bytes()
    assert list(other.coded) == ["conv1"]
    sizes = {row.name: row.bytes for row in layers_of(other)}
    assert sizes["conv1"] == other.coded["conv1"] < one.bits["conv1"].nbytes
    assert sizes["conv0"] == 3 * 9 * 32 // 8


def test_the_command_line_writes_inspects_and_verifies_coded_files(tmp_path, capsys):
    plain, coded = tmp_path / "plain", tmp_path / "coded.safetensors"
    write_packed(coded_model(), plain)
    export = ["export", str(plain), "--output", str(coded), "--images", "3"]
    assert main([*export, "--format", "onnx", "--coding", "entropy"]) == 2
    assert "--coding is for --format packed" in capsys.readouterr().err and not coded.exists()
    assert main([*export, "--format", "packed", "--coding", "entropy"]) == 0
    assert coded.read_bytes() == GOLDEN.read_bytes()
    capsys.readouterr()
    for path, told in ((plain, False), (coded, True)):
        assert main(["verify", str(path)]) == 0
        assert main(["inspect", str(path)]) == 0
        assert ("bits per weight" in capsys.readouterr().out) is told


FEW = np.array([7, 56, 448, 73, 146, 292, 0, 511])


def skewed_network(seed: int, convolutions: int = 5) -> PackedModel:
    """A network of 3x3 convolutions of random sizes, with few of the patterns."""
    rng = np.random.default_rng(seed)
    network = Network(rng, (*rng.integers(4, 9, 2).tolist(), 3), classes=4)
    x = network.affine("image")
    for _ in range(convolutions):
        x = network.affine(network.conv(x, int(rng.integers(20, 49))))
    network.affines = {name: (scale / 4, offset) for name, (scale, offset) in network.affines.items()}
    for name, bits in list(network.bits.items())[1:]:
        patterns = rng.choice(FEW, (len(bits), 8 * bits.shape[1] // 9), p=rng.dirichlet(np.ones(len(FEW))))
        network.bits[name] = numpy_reader.bits_of(patterns.astype(np.uint16))
    return network.finish(x)


@pytest.mark.parametrize("seed", range(10))
def test_coded_files_of_random_networks_hold_their_bits(tmp_path, seed):
    packed = skewed_network(seed)
    write_packed(packed, tmp_path / "m", coding="entropy")
    found = read_packed(tmp_path / "m")
    assert 3 <= len(found.coded) < len(packed.bits)
    for name, bits in packed.bits.items():
        np.testing.assert_array_equal(found.bits[name], bits)
    images = np.random.default_rng(seed).integers(0, 256, (2, *packed.golden_image.shape), np.uint8)
    reference = open_numpy(tmp_path / "m")(images)
    for threads in (1, 3):
        logits = native.load(tmp_path / "m", threads).predict(images)
        np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_threads_decode_many_kernels_and_find_the_damaged_one(tmp_path):
    packed = skewed_network(3, convolutions=40)  # more than are decoded at a time
    content = serialise(packed, "entropy")
    (tmp_path / "m").write_bytes(content)
    names = list(read_packed(tmp_path / "m").coded)
    assert len(names) > 32
    for threads in (1, 2, 7):
        logits = native.load(tmp_path / "m", threads).predict(packed.golden_image[None])[0]
        np.testing.assert_allclose(
            logits, packed.golden_logits, atol=1e-4 * np.abs(packed.golden_logits).max()
        )
    damaged = damage_coded(content, names[34])
    (tmp_path / "m").write_bytes(damaged)
    for threads in (1, 7):
        with pytest.raises(UserError, match=f"coded kernel '{names[34]}.coded': a stream"):
            native.load(tmp_path / "m", threads)


def damage_coded(content: bytes, name: str) -> bytes:
    """Another last word in a coded kernel; all checksums of the file are right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = 8 + length + header[name + ".coded"]["data_offsets"][1]
    changed = bytearray(content)
    changed[end - 1] ^= 0x55
    stated = header["__metadata__"][numpy_reader.CHECKSUM]
    start, data = bytes(changed[: 8 + length]), bytes(changed[8 + length :])
    checksum = numpy_reader.file_checksum(start, stated, data)
    return start.replace(stated.encode(), checksum.encode()) + data


def test_inspect_shows_the_coded_size_of_each_layer(tmp_path, capsys):
    packed = skewed_network(1)
    write_packed(packed, tmp_path / "m", coding="entropy")
    assert main(["inspect", str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["bytes", "bits/weight"]
    found = read_packed(tmp_path / "m")
    for line, row in zip(lines[1:], layers_of(found), strict=False):
        assert line.split()[-1] == f"{8 * row.bytes / row.bits:.4f}"
        assert (float(line.split()[-1]) < 1) is (row.name in found.coded) or row.bits < 200
    total = sum(row.bytes for row in layers_of(found)), sum(row.bits for row in layers_of(found))
    assert f"coded: {8 * total[0] / total[1]:.4f} bits per weight" in "".join(lines)


def test_nothing_to_gain_leaves_version_1():
    packed = coded_model()
    rng = np.random.default_rng(0)
    bits = {name: rng.integers(0, 256, x.shape, np.uint8) for name, x in packed.bits.items()}
    bits["conv0"][:, -1] &= 0x07
    metadata = {**packed.metadata, "sha256": numpy_reader.checksum(packed.metadata, bits)}
    packed = type(packed)(metadata, bits, packed.affines, packed.golden_image, packed.golden_logits)
    assert serialise(packed, "entropy") == serialise(packed)


def test_an_unknown_coding_is_refused():
    with pytest.raises(UserError, match="unknown coding 'gzip'"):
        serialise(coded_model(), "gzip")


@pytest.mark.parametrize("name", coded_corpus.ACCEPTED)
def test_every_reader_accepts_and_gives_the_same_logits(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(coded_corpus.ACCEPTED[name]())
    packed = coded_model()
    for reader, read in READERS.items():
        logits = np.asarray(read(path)(packed.golden_image[None]))[0]
        largest = np.abs(packed.golden_logits).max()
        np.testing.assert_allclose(logits, packed.golden_logits, rtol=0, atol=1e-4 * largest, err_msg=reader)


@pytest.mark.parametrize("name", coded_corpus.REFUSED)
def test_every_reader_refuses(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(coded_corpus.REFUSED[name]())
    found = verdicts(path)
    assert all(found.values()), found
    if name == "requires an unknown feature":
        assert all("this file needs 'telepathy'" in verdict for verdict in found.values()), found


def test_every_flipped_bit_is_found(tmp_path):
    content = GOLDEN.read_bytes()
    path = tmp_path / "m"
    rng = np.random.default_rng(4)
    for index in rng.choice(len(content), 200, replace=False):
        damaged = bytearray(content)
        damaged[index] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert all(verdicts(path).values()), index
