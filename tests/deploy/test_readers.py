"""All readers of the packed format accept the same files, give the same logits, find every flipped bit."""

import resource
import subprocess
import sys
from pathlib import Path

import fuzz_readers
import numpy as np
import packed_corpus
import pytest
from packed_models import GOLDEN, golden_model
from packed_networks import wide_resnet
from packed_readers import READERS, refused, verdicts

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import read_packed, serialise

ROOT = Path(__file__).parents[2]
GOLDEN_WITH_CHECKSUM = GOLDEN.with_name("packed_v1_checksum.safetensors")


pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize("name", packed_corpus.REFUSED)
def test_every_reader_refuses(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(packed_corpus.REFUSED[name]())
    found = verdicts(path)
    assert all(found.values()), found


@pytest.mark.parametrize("name", packed_corpus.ACCEPTED)
def test_every_reader_accepts_and_gives_the_same_logits(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(packed_corpus.ACCEPTED[name]())
    contents = numpy_reader.read(path)
    readers = dict(READERS)
    if len(contents.metadata["operations"]) > 1000:  # XLA compiles that for minutes
        del readers["JAX"]
    image = contents.tensors["golden.image"][None]
    wanted = numpy_reader.load(path)(image)[0]
    assert np.isfinite(wanted).all()
    for reader, read in readers.items():
        logits = np.asarray(read(path)(image))[0]
        np.testing.assert_allclose(
            logits, wanted, rtol=0, atol=1e-4 * max(np.abs(wanted).max(), 1e-30), err_msg=reader
        )


@pytest.mark.parametrize("name", packed_corpus.REFUSED_WHEN_RUN)
def test_every_reader_refuses_an_image_with_values_that_explode(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(packed_corpus.REFUSED_WHEN_RUN[name]())
    image = read_packed(path).golden_image[None]
    for reader, read in READERS.items():
        model = read(path)
        assert "exceeds 1.845e+19" in (refused(model, image) or ""), reader
        assert np.isfinite(model(np.zeros_like(image))).all(), reader


@pytest.mark.slow
def test_readers_agree_on_random_files(tmp_path):
    """Some thousand; docs/packed-format.md has the command for any time."""
    run = fuzz_readers.fuzz(tmp_path / "m", seed=0, files=3000)
    assert run.counts["accepted"] > 500 and run.counts["refused"] > 500 and run.counts["run by JAX"] > 50


def test_readers_agree_on_some_random_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_readers, "JAX_SHARE", 0)
    run = fuzz_readers.fuzz(tmp_path / "m", seed=1, files=60)
    assert run.counts["accepted"] > 10 and run.counts["refused"] > 10


# --- damage -------------------------------------------------------------------------------------------------


def test_the_checksum_is_the_only_change_of_the_golden_file():
    """Written again it gets that entry; without it, and the padding that follows, it is what it was."""
    old = read_packed(GOLDEN)
    content = serialise(old)
    assert content == GOLDEN_WITH_CHECKSUM.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    at = content.index(b',"file_sha256":"')
    header = (content[8:at] + content[at + 16 + 65 : start]).rstrip()
    assert packed_corpus.container(header, content[start:]) == GOLDEN.read_bytes()
    assert (
        old.checksum is None
        and read_packed(GOLDEN_WITH_CHECKSUM).checksum == content[at + 16 :][:64].decode()
    )


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def check_flips(content: bytes, bits, path: Path) -> None:
    """Every reader refuses the file with one bit flipped. JAX reads by NumPy's reader."""
    for bit in bits:
        path.write_bytes(flipped(content, int(bit)))
        for reader in ("NumPy", "C"):
            assert refused(READERS[reader], path), (reader, int(bit))


def test_flipped_bits_are_found(tmp_path):
    """Each bit of the header's length and of the checksum's key, and some hundreds of the rest."""
    content = GOLDEN_WITH_CHECKSUM.read_bytes()
    at = content.index(b'"file_sha256"')
    rng = np.random.default_rng(0)
    bits = [*range(64), *range(8 * at, 8 * (at + 15)), *rng.choice(8 * len(content), 400, replace=False)]
    check_flips(content, bits, tmp_path / "m")


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path):
    """All of the golden file, more than 16,000."""
    content = GOLDEN_WITH_CHECKSUM.read_bytes()
    check_flips(content, range(8 * len(content)), tmp_path / "m")


@pytest.mark.slow
def test_flipped_bits_of_a_network_of_the_paper_are_found(tmp_path):
    """4,000 anywhere in the file, and a fifth of them in its header."""
    content = serialise(wide_resnet(8, 1))
    start = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(1)
    bits = [*rng.integers(0, 8 * start, 800), *rng.integers(0, 8 * len(content), 3200)]
    check_flips(content, bits, tmp_path / "m")


def test_an_older_file_is_read_with_a_line_that_says_what_is_not_covered(tmp_path, caplog, capfd):
    new = GOLDEN_WITH_CHECKSUM
    for read in READERS.values():
        for path, lines in ((GOLDEN, 1), (new, 0)):
            caplog.clear()
            read(path)
            messages = [message for message in caplog.messages if "damage is found in the conv" in message]
            assert len(messages) == lines and all("\n" not in message for message in messages)
    np.save(tmp_path / "image.npy", golden_model().golden_image)
    for path, lines in ((GOLDEN, 1), (new, 0)):
        assert numpy_reader.main([str(path), str(tmp_path / "image.npy")]) == 0
        assert capfd.readouterr().err.count("damage is found in the conv") == lines


# --- memory -------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np
sys.path.insert(0, {folder!r})
import numpy_reader
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    model = numpy_reader.load(sys.argv[1])
    model(model.tensors["golden.image"][None].repeat(8, 0))
except numpy_reader.PackedFileError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def megabytes(path: Path) -> int:
    """What NumPy's reader takes for a file and eight images, beyond NumPy itself."""
    code = MEMORY.format(folder=str(ROOT / "binwrn_jax" / "deploy"))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="maximum memory in other units")
def test_small_files_take_little_memory(tmp_path):
    """A window that is mostly padding, and a header of nothing but small values."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    path = tmp_path / "m"
    path.write_bytes(packed_corpus._pooled(16, 64, 64))
    assert path.stat().st_size < 1600 and megabytes(path) < 60
    path.write_bytes(packed_corpus._pooled(1, 64, 65536, 64))
    assert path.stat().st_size < 400_000 and megabytes(path) < 60
    path.write_bytes(packed_corpus._ignored("[" + "{}," * (5 << 20) + "1]"))
    assert path.stat().st_size > 15 << 20 and megabytes(path) < 150
