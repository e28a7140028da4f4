"""Packed files with coded kernels: the same model in fewer bytes; all readers refuse the same ones."""

import dataclasses

import coded_corpus
import numpy as np
import pytest
from coded_corpus import GOLDEN, coded_model
from packed_readers import READERS, verdicts

from binwrn_jax.cli.main import main
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.layers import layers_of
from binwrn_jax.deploy.packed import read_packed, serialise, write_packed
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
