"""Lossless coding of the bits of 3x3 kernels, in pure NumPy (docs/packed-format-2.md, "entropy").

The signs of a trained 3x3 filter depend on each other. Each of the 512 patterns is coded by its frequency
in the layer, with range asymmetric numeral systems (rANS; Duda 2013, arXiv 1311.2540): about 0.78 bits per
weight for the networks that the paper's author released. Decoding gives back exactly the same bits; it is in
`binwrn_jax.deploy.numpy_reader`, which needs no other file.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt16, UInt64

from binwrn_jax.deploy.numpy_reader import (
    KERNEL_WEIGHTS,
    LOW,
    MAX_RATIO,
    PATTERNS,
    SCALE,
    SCALE_BITS,
    CodedKernel,
    decode_kernels,
    pattern_blocks,
)

STREAM_PATTERNS = 8192  # that the encoder puts into a stream

Bits = UInt8[np.ndarray, "Cout bytes"]  # rows of a packed kernel
Words = UInt16[np.ndarray, " words"]  # a coded kernel


def patterns_of(bits: Bits, channels: int) -> UInt16[np.ndarray, "Cout {channels}"]:
    """The 3x3 patterns of packed bits.

    Args:
      bits: uint8 ``[C_out, ceil(9 C / 8)]``, rows as in docs/packed-format.md.
      channels: C, the input channels that each output channel sees.

    Returns:
      uint16 ``[C_out, C]``: bit ``3 y + x`` of a pattern is the weight at (y, x).

    >>> patterns_of(np.array([[0b11111111, 0b1]], np.uint8), 1).tolist()
    [[511]]
    """
    result = np.zeros((len(bits), channels), np.uint16)
    for rows in pattern_blocks(len(bits), channels):
        flat = np.unpackbits(bits[rows], axis=1, count=KERNEL_WEIGHTS * channels, bitorder="little")
        taps = flat.reshape(-1, KERNEL_WEIGHTS, channels)
        for tap in range(KERNEL_WEIGHTS):
            result[rows] |= taps[:, tap].astype(np.uint16) << tap
    return result


def frequencies(counts: Int[np.ndarray, " 512"]) -> Int64[np.ndarray, " 512"]:
    """Frequencies for coding: integers that sum to 2^13 and are near in proportion to the counts.

    Args:
      counts: how often each pattern occurs, int ``[512]``, not all 0.

    Returns:
      int64 ``[512]``, at least 1 where the pattern occurs, 0 elsewhere. The same on every processor.
    """
    counts = counts.astype(np.int64)
    result = np.where(counts > 0, np.maximum(counts * SCALE // counts.sum(), 1), 0)
    # One more of pattern s saves about counts / (f + 1/2) nats, one less costs about counts / (f - 1/2).
    while result.sum() < SCALE:
        result[np.argmax(counts / (result + 0.5))] += 1
    while result.sum() > SCALE:
        cost = np.where(result > 1, counts / np.maximum(result - 0.5, 0.5), np.inf)
        result[np.argmin(cost)] -= 1
    return result


def _table_words(freq: UInt64[np.ndarray, " 512"]) -> Words:
    """A table as the file has it: 128 words of lengths, then the bits below each leading 1."""
    lengths = np.array([int(f).bit_length() for f in freq], np.uint16)
    nibbles = lengths.reshape(-1, 4) << np.array([0, 4, 8, 12], np.uint16)
    rest = [int(f) >> i & 1 for f, n in zip(freq, lengths, strict=True) for i in range(int(n) - 1)]
    rest += [0] * (-len(rest) % 16)
    return np.concatenate(
        [np.bitwise_or.reduce(nibbles, axis=1), np.packbits(rest, bitorder="little").view("<u2")]
    ).astype(np.uint16)


def encode(bits: Bits, channels: int) -> Words:
    """Codes the bits of one kernel of 3x3 filters.

    Args:
      bits: uint8 ``[C_out, ceil(9 C / 8)]``.
      channels: C, the input channels that each output channel sees, at most 65,536.

    Returns:
      uint16 ``[n]``, `T.coded` of docs/packed-format-2.md. It may be larger than the bits, see `worthwhile`.
    """
    outputs = len(bits)
    flat = patterns_of(bits, channels).ravel()
    freq = frequencies(np.bincount(flat, minlength=PATTERNS)).astype(np.uint64)
    below = np.cumsum(freq) - freq
    rows = min(max(1, STREAM_PATTERNS // channels), outputs)
    steps = rows * channels
    streams = -(-outputs // rows)
    lengths = np.full(streams, steps)
    lengths[-1] = flat.size - (streams - 1) * steps
    padding = np.zeros(streams * steps - flat.size, np.uint16)
    symbols = np.concatenate([flat, padding]).reshape(streams, steps)

    # Backwards through all streams at once. A stream begins with two words for the state.
    state = np.full(streams, LOW, np.uint64)
    words = np.zeros((streams, 2 + steps), np.uint16)
    emitted = np.zeros((streams, 2 + steps), bool)
    emitted[:, :2] = True
    for step in reversed(range(steps)):
        live = streams if step < lengths[-1] else streams - 1  # only the last stream is shorter
        x, f = state[:live], freq[symbols[:live, step]]
        full = x >= f << np.uint64(32 - SCALE_BITS)
        words[:live, 2 + step] = x & np.uint64(0xFFFF)
        emitted[:live, 2 + step] = full
        x = np.where(full, x >> np.uint64(16), x)
        x = ((x // f) << np.uint64(SCALE_BITS)) + x % f + below[symbols[:live, step]]
        state[:live] = x
    words[:, 0], words[:, 1] = state & np.uint64(0xFFFF), state >> np.uint64(16)

    sizes = emitted.sum(1).astype(np.uint16)
    head = np.array([rows], np.uint16)
    return np.concatenate([head, _table_words(freq), sizes, words[emitted]])


def worthwhile(words: Words, bits: Bits) -> bool:
    """Whether a kernel is to be stored coded: the coded form is smaller, yet not too small for a reader."""
    return bits.nbytes > words.nbytes >= -(-bits.nbytes // MAX_RATIO)


def decode(words: Words, outputs: int, channels: int) -> Bits:
    """Decodes one kernel, see `binwrn_jax.deploy.numpy_reader.decode_kernels`.

    >>> bits = np.array([[0b10110100, 0b1], [0b10110100, 0b0]], np.uint8)
    >>> decode(encode(bits, 1), 2, 1).tolist()
    [[180, 1], [180, 0]]
    """
    return decode_kernels({"kernel": CodedKernel(words, outputs, channels)})["kernel"]
