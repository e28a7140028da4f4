"""Coding of 3x3 kernels: the same bits come back, trained ones are small, hostile tensors are refused."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from coded_corpus import skewed_bits

from binwrn_jax.deploy import entropy
from binwrn_jax.deploy.entropy import decode, encode, worthwhile
from binwrn_jax.deploy.graph_file import pack_signs
from binwrn_jax.deploy.numpy_reader import CodedKernel, PackedFileError, bits_of, decode_kernels
from binwrn_jax.hub.mat_file import read_released
from binwrn_jax.hub.released import to_model

OFFICIAL = os.environ.get("BINWRN_OFFICIAL_DIR")
needs_official = pytest.mark.skipif(not OFFICIAL, reason="BINWRN_OFFICIAL_DIR is not set")


def reference_decode(words: np.ndarray, outputs: int, channels: int) -> np.ndarray:
    """The document's definition, one pattern after another, with Python's integers."""
    words = [int(word) for word in words]
    rows, at = words[0], 1
    lengths = [words[at + s // 4] >> 4 * (s % 4) & 15 for s in range(512)]
    at += 128
    bits = [word >> i & 1 for word in words[at:] for i in range(16)]
    freq, used = [], 0
    for length in lengths:
        rest = bits[used : used + max(length - 1, 0)]
        used += len(rest)
        freq.append((1 << length - 1 if length else 0) + sum(bit << i for i, bit in enumerate(rest)))
    at += -(-used // 16)
    below = [sum(freq[:s]) for s in range(512)]
    count = -(-outputs // rows)
    sizes, at = words[at : at + count], at + count
    patterns = []
    for stream in range(count):
        own, at = words[at : at + sizes[stream]], at + sizes[stream]
        x, own = own[0] + (own[1] << 16), own[2:]
        for _ in range((min(rows, outputs - stream * rows)) * channels):
            slot = x % 8192
            s = next(s for s in range(512) if below[s] <= slot < below[s] + freq[s])
            x = freq[s] * (x // 8192) + slot - below[s]
            if x < 1 << 16:
                x, own = (x << 16) + own[0], own[1:]
            patterns.append(s)
        assert x == 1 << 16 and not own
    assert at == len(words)
    taps = np.array(patterns).reshape(outputs, 1, channels) >> np.arange(9)[:, None] & 1
    return np.packbits(taps.reshape(outputs, -1), axis=1, bitorder="little")


@pytest.mark.parametrize(
    ("outputs", "channels"), [(1, 1), (2, 1), (3, 5), (16, 16), (7, 1000), (5, 8192), (3, 9000), (700, 33)]
)
def test_decoding_gives_the_bits_back(outputs, channels):
    for bits in (
        skewed_bits(outputs, channels),
        pack_signs(np.random.default_rng(1).normal(size=(3, 3, channels, outputs))),
        pack_signs(np.ones((3, 3, channels, outputs))),  # one pattern only
    ):
        words = encode(bits, channels)
        assert words.dtype == np.uint16
        if words.nbytes >= -(-bits.nbytes // 16):
            np.testing.assert_array_equal(decode(words, outputs, channels), bits)
        else:
            assert not worthwhile(words, bits)


def test_the_widest_kernel():
    bits = skewed_bits(1, 65536)
    words = encode(bits, 65536)
    assert words[0] == 1
    np.testing.assert_array_equal(decode(words, 1, 65536), bits)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_any_number_of_rows_in_a_stream_is_read(monkeypatch, rows):
    monkeypatch.setattr(entropy, "STREAM_PATTERNS", rows * 12)
    bits = skewed_bits(8, 12)
    words = encode(bits, 12)
    assert words[0] == rows
    np.testing.assert_array_equal(decode(words, 8, 12), bits)
    np.testing.assert_array_equal(reference_decode(words, 8, 12), bits)


def test_the_documents_example():
    patterns = np.array([[7, 7, 56, 7, 448, 56, 73, 511]], np.uint16)
    bits = bits_of(patterns)
    words = encode(bits, 8)
    text = (Path(__file__).parents[2] / "docs" / "packed-format-2.md").read_text()
    example = text[text.index("**Example.**") : text.index("## Limits")]
    stated = {
        int(index): [int(word, 16) for word in values.split()]
        for index, values in re.findall(r"^    word (\d+): ((?:[0-9a-f]{4} )+)", example + " ", re.MULTILINE)
    }
    assert bytes(bits[0]).hex(" ") in example and f"these {len(words)} words" in example
    full = np.zeros(len(words), int)
    for index, values in stated.items():
        full[index : index + len(values)] = values
    assert full.tolist() == words.tolist()
    np.testing.assert_array_equal(reference_decode(words, 1, 8), bits)


def test_kernels_are_decoded_together_and_by_name():
    shapes = {f"conv{i}": (4 + i, 3 + 2 * i) for i in range(40)}  # more than are decoded at a time
    bits = {name: skewed_bits(*shape, seed=shape[0]) for name, shape in shapes.items()}
    coded = {name: CodedKernel(encode(bits[name], shape[1]), *shape) for name, shape in shapes.items()}
    decoded = decode_kernels(coded)
    assert list(decoded) == list(shapes)
    for name in shapes:
        np.testing.assert_array_equal(decoded[name], bits[name])


def test_random_signs_stay_uncoded_and_would_cost_little():
    bits = np.random.default_rng(0).integers(0, 256, (640, 720), dtype=np.uint8)
    words = encode(bits, 640)
    assert not worthwhile(words, bits)
    assert words.nbytes < 1.002 * bits.nbytes


def test_patterns_are_coded_near_their_entropy():
    bits = skewed_bits(256, 256)
    counts = np.bincount(entropy.patterns_of(bits, 256).ravel(), minlength=512)
    share = counts[counts > 0] / counts.sum()
    ideal = -(counts[counts > 0] * np.log2(share)).sum() / 8  # bytes
    words = encode(bits, 256)
    assert worthwhile(words, bits)
    assert ideal < words.nbytes < 1.01 * ideal + 700


def test_frequencies_sum_and_keep_rare_patterns():
    counts = np.zeros(512, int)
    counts[3] = 1
    assert entropy.frequencies(counts)[3] == 8192
    counts[:] = 1
    counts[7] = 10**9
    freq = entropy.frequencies(counts)
    assert freq.sum() == 8192 and freq.min() == 1 and freq[7] == 8192 - 511


# --- hostile tensors ----------------------------------------------------------------------------------------


def refused(words, outputs=8, channels=12) -> str:
    with pytest.raises(PackedFileError) as failure:
        decode(np.asarray(words, np.uint16), outputs, channels)
    message = str(failure.value)
    assert "\n" not in message and "kernel" in message
    return message


def test_hostile_tensors_are_refused():
    bits = skewed_bits(8, 12)
    words = encode(bits, 12)
    # Words of head and table; then comes the size of the only stream.
    size = next(n for n in range(129, 999) if n + 1 + words[n] == len(words))

    def changed(index, value):
        copy = words.copy()
        copy[index] = value
        return copy

    assert "rows" in refused(changed(0, 0))
    assert "rows" in refused(changed(0, 9))
    assert "too large" in refused(changed(1, 0xFFFF))
    assert "sum" in refused(np.concatenate([words[:1], np.zeros(128), words[129:]]))
    assert "state" in refused(changed(size, 1))
    assert "fill" in refused(changed(size, words[size] + 1))
    assert "fill" in refused(np.append(words, 0))
    assert "fill" in refused(words[:-1])
    assert "wrong state" in refused(changed(size + 2, 0))
    assert "end" in refused(changed(size + 2, words[size + 2] ^ 1))
    for length in range(size):
        refused(words[:length])
    # One word more for the stream, and one less.
    longer = np.append(changed(size, words[size] + 1), 0)
    assert "end" in refused(longer)
    shorter = changed(size, words[size] - 1)[:-1]
    assert "end" in refused(shorter)


def test_padding_bits_of_the_table_are_refused():
    bits = np.array(
        [[0b10110100, 0b1], [0b10110100, 0b0]], np.uint8
    )  # two frequencies of 12 bits below the 1
    words = encode(bits, 1)
    words[129 + 1] |= 1 << 8
    assert "padding" in refused(words, 2, 1)


def test_a_small_tensor_cannot_claim_to_be_large():
    bits = pack_signs(np.ones((3, 3, 512, 512)))
    words = encode(bits, 512)
    assert words.nbytes < bits.nbytes / 16
    assert "16 x smaller" in refused(words, 512, 512)
    assert not worthwhile(words, bits)


def test_flipped_bits_are_refused_or_give_other_bits():
    """A flip that is not refused gives other bits, which the checksum over the bits finds."""
    bits = skewed_bits(8, 12)
    words = encode(bits, 12)
    rng = np.random.default_rng(5)
    accepted = 0
    for index in range(len(words)):
        damaged = words.copy()
        damaged[index] ^= 1 << rng.integers(16)
        try:
            decoded = decode(damaged, 8, 12)
        except PackedFileError:
            continue
        accepted += 1
        assert decoded.shape == bits.shape and not np.array_equal(decoded, bits)
    assert accepted < len(words) // 10


def test_random_words_are_refused():
    rng = np.random.default_rng(2)
    for _ in range(200):
        refused(rng.integers(0, 1 << 16, 400))


# --- the released networks ----------------------------------------------------------------------------------


@needs_official
@pytest.mark.parametrize(
    ("file", "most", "coded_kernels"),
    [
        ("matlab_cifar100_20-4-plain.mat", 0.735, 12),
        pytest.param("keras_cifar10_allparams.mat", 0.785, 18, marks=pytest.mark.slow),
        pytest.param("matlab_cifar10_20-10.mat", 0.785, 18, marks=pytest.mark.slow),
    ],
)
def test_released_networks(file, most, coded_kernels):
    variables = to_model(read_released(Path(OFFICIAL, file))).variables
    kernels = {name: leaf["kernel"] for name, leaf in variables["params"].items() if "kernel" in leaf}
    bits = {name: pack_signs(kernel) for name, kernel in kernels.items()}
    coded = {}
    for name, kernel in kernels.items():
        if kernel.shape[:2] == (3, 3):
            words = encode(bits[name], kernel.shape[2])
            if worthwhile(words, bits[name]):
                coded[name] = CodedKernel(words, kernel.shape[3], kernel.shape[2])
    assert len(coded) == coded_kernels
    start = time.process_time()
    decoded = decode_kernels(coded)
    seconds = time.process_time() - start
    for name in coded:
        np.testing.assert_array_equal(decoded[name], bits[name])
    size = sum((coded[name].words if name in coded else bits[name]).nbytes for name in bits)
    per_weight = 8 * size / sum(kernel.size for kernel in kernels.values())
    print(f"{file}: {per_weight:.4f} bits per weight, {size:,} bytes, decoded in {seconds:.2f} s")
    assert per_weight <= most
    assert seconds < 3
