"""The C decoder of coded kernels: the NumPy one's bits and verdicts, and no wrong access to memory."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from coded_corpus import skewed_bits

from binwrn_jax.deploy import native
from binwrn_jax.deploy.entropy import decode, encode
from binwrn_jax.deploy.numpy_reader import PackedFileError

SOURCES = Path(native.__file__).parent
PROGRAM = Path(__file__).parents[1] / "fuzz" / "decode_entropy.c"

Case = tuple[np.ndarray, int, int]  # words, C_out, channels


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The decoder with the sanitizers of addresses and undefined behaviour."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("entropy") / "decode_entropy"
    flags = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    command = [compiler, *flags, *sanitizers, f"-I{SOURCES}", str(PROGRAM), str(SOURCES / "entropy.c")]
    built = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
    if "asan" in built.stderr and built.returncode:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    return path


def decode_c(program: Path, cases: list[Case]) -> list[np.ndarray | str]:
    """What the C decoder makes of each case: bits, or what it says is wrong."""
    data = b"".join(
        struct.pack("=3I", outputs, channels, words.nbytes) + words.astype("<u2").tobytes()
        for words, outputs, channels in cases
    )
    done = subprocess.run([program], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    results: list[np.ndarray | str] = []
    at = 0
    for _, outputs, channels in cases:
        if done.stdout[at]:
            shape = outputs, -(-9 * channels // 8)
            results.append(np.frombuffer(done.stdout, np.uint8, shape[0] * shape[1], at + 1).reshape(shape))
            at += 1 + results[-1].size
        else:
            end = done.stdout.index(b"\n", at)
            results.append(done.stdout[at + 1 : end].decode())
            at = end + 1
    assert at == len(done.stdout)
    return results


def decode_numpy(case: Case) -> np.ndarray | str:
    try:
        return decode(*case)
    except PackedFileError as error:
        return str(error)


def assert_same(program: Path, cases: list[Case]) -> int:
    """Both decoders refuse the same cases and agree on the bits of the others, whose number is returned."""
    accepted = 0
    for case, ours in zip(cases, decode_c(program, cases), strict=True):
        theirs = decode_numpy(case)
        assert isinstance(ours, str) == isinstance(theirs, str), (ours, theirs)
        if not isinstance(ours, str):
            np.testing.assert_array_equal(ours, theirs)
            accepted += 1
    return accepted


def test_bits_of_many_shapes(program):
    shapes = [(1, 1), (2, 1), (3, 5), (16, 16), (9, 63), (9, 64), (9, 65), (7, 1000), (3, 9000), (700, 33)]
    bits = [skewed_bits(*shape) for shape in shapes]
    cases = [
        (encode(b, channels), outputs, channels) for b, (outputs, channels) in zip(bits, shapes, strict=True)
    ]
    assert assert_same(program, cases) == len(cases)
    for ours, theirs in zip(decode_c(program, cases), bits, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_damaged_words_get_the_same_verdict(program):
    rng = np.random.default_rng(11)
    cases: list[Case] = []
    for outputs, channels in ((8, 12), (20, 600), (1, 1)):
        words = encode(skewed_bits(outputs, channels), channels)
        for _ in range(100):
            damaged = words.copy()
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(words))] ^= 1 << rng.integers(16)
            kind = rng.integers(4)
            if kind == 0:
                damaged = damaged[: rng.integers(len(words))]
            elif kind == 1:
                damaged = np.append(damaged, rng.integers(0, 1 << 16, 3).astype(np.uint16))
            cases.append((damaged, outputs, channels))
        cases += [
            (words, outputs + 1, channels),
            (words, outputs, channels + 1),
            (words[:0], outputs, channels),
        ]
    cases += [(rng.integers(0, 1 << 16, 300).astype(np.uint16), 8, 12) for _ in range(100)]
    assert 0 < assert_same(program, cases) < len(cases) // 4
