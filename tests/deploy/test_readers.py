"""All readers of the packed format accept the same files, give the same logits, find every flipped bit."""

import os
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

ENVIRONMENT = dict(os.environ)  # before the cache folder of these tests is set
ROOT = Path(__file__).parents[2]
GOLDEN_WITH_CHECKSUM = GOLDEN.with_name("packed_v1_checksum.safetensors")


pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize("name", packed_corpus.REFUSED)
def test_every_reader_refuses(tmp_path, name):
    path = tmp_path / "m"
    path.write_bytes(packed_corpus.REFUSED[name]())
    found = verdicts(path)
    assert all(found.values()), found


LARGE = ("2^20 marks", "4096 operations")  # at limits of the format: they take long


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in packed_corpus.ACCEPTED]
)
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
    assert run.counts["accepted without a known bound"] > 50 and run.counts["images refused"] > 50


def test_readers_agree_on_some_random_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_readers, "JAX_SHARE", 0)
    run = fuzz_readers.fuzz(tmp_path / "m", seed=1, files=60)
    assert run.counts["accepted"] > 10 and run.counts["refused"] > 10


def test_readers_agree_on_values_that_become_too_large(tmp_path, monkeypatch):
    """Where a single operation can be to blame the file is refused, otherwise the image; by all readers."""
    monkeypatch.setattr(fuzz_readers, "JAX_SHARE", 0.1)
    run = fuzz_readers.fuzz(tmp_path / "m", seed=2, files=60, make=fuzz_readers.extreme_file)
    assert run.counts["refused for values that can become too large"] > 5
    assert run.counts["accepted without a known bound"] >= run.counts["images refused"] > 5
    assert run.counts["run by JAX"] > 0


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
reader, *paths = sys.argv[1:]
if reader == "NumPy":  # the one file alone
    sys.path.insert(0, {folder!r})
    import numpy_reader
    load, refused = numpy_reader.load, numpy_reader.PackedFileError
elif reader == "JAX":
    import jax
    from binwrn_jax import UserError as refused
    from binwrn_jax.deploy.jax_runtime import load_packed as load
    jax.jit(lambda x: x + 1)(np.ones(3)).block_until_ready()
else:
    from binwrn_jax import UserError as refused
    from binwrn_jax.deploy import native
    load = lambda path: native.load(path, threads=1)
    native._library()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in paths:
    try:
        model, shape = load(path), tuple(map(int, path.rsplit("/")[-1].split("-")[1:]))
        model(np.zeros((1 if reader == "C" else 8, *shape), np.uint8))
    except refused as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
# Small files that demand much, by name: windows that are mostly padding, a convolution of 2^26 weights,
# one with 18 million for a single channel, a header of nothing but small values.
DEMANDING = {
    "pool-16-16-1": lambda: packed_corpus.pooled("max_pool", 16, 64, 64),
    "wide_pool-1-1-1": lambda: packed_corpus.pooled("max_pool", 1, 64, 65536, 64),
    "average-1-1-1": lambda: packed_corpus.pooled("average_pool", 1, 64, 65536, 64),
    "padded_conv-16-16-1": lambda: packed_corpus.convolved(16, 64, 64, 8),
    "wide_conv-1-1-1": lambda: packed_corpus.convolved(1, 1, 65536, 1024),
    "long_conv-2-2-1": lambda: packed_corpus.convolved(2, 24, 32767, 1),
    "marks-1-1-1": lambda: packed_corpus._ignored("[" + "{}," * (5 << 20) + "1]"),
}
MOST = {"NumPy": 150, "JAX": 300, "C": 150}  # MB beyond the library itself; JAX compiles


@pytest.mark.skipif(sys.platform != "linux", reason="maximum memory in other units")
@pytest.mark.parametrize("reader", MOST)
def test_small_files_take_little_memory(tmp_path, reader):
    paths = [tmp_path / name for name in DEMANDING]
    for path, make in zip(paths, DEMANDING.values(), strict=True):
        path.write_bytes(make())
    assert paths[0].stat().st_size < 1600 and paths[1].stat().st_size < 400_000
    code = MEMORY.format(folder=str(ROOT / "binwrn_jax" / "deploy"))
    cached = {"JAX": ENVIRONMENT}.get(reader, dict(os.environ))  # it needs the library that calls oneDNN
    done = subprocess.run(
        [sys.executable, "-c", code, reader, *paths], capture_output=True, text=True, env=cached
    )
    assert done.returncode == 0, done.stderr
    megabytes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert len(megabytes) == len(paths) and max(megabytes) < MOST[reader], done.stdout
