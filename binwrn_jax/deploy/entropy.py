"""Lossless coding of the bits of 3x3 kernels, in pure NumPy (docs/packed-format-2.md, "entropy").

The signs of a trained 3x3 filter depend on each other. Each of the 512 patterns is coded by its frequency
in the layer, with range asymmetric numeral systems (rANS; Duda 2013, arXiv 1311.2540): about 0.78 bits per
weight for the networks that the paper's author released. Decoding gives back exactly the same bits.

The streams of a kernel are independent. The loops below run over the patterns of a stream and work on all
streams at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

WINDOW = 9  # weights of a 3x3 filter
PATTERNS = 1 << WINDOW
SCALE_BITS = 13  # the frequencies of a table sum to 2^13
SCALE = 1 << SCALE_BITS
LOW = 1 << 16  # a state is at least this between two patterns; words have 16 bits
MAX_STREAM = 1 << 16  # patterns
MAX_RATIO = 16  # how often a coded kernel may be smaller than the bits that it stands for

LENGTHS = PATTERNS // 4  # words of a table's lengths, 4 bits each
STREAM_PATTERNS = 8192  # that the encoder puts into a stream
TABLES_AT_ONCE = 32  # kernels that are decoded together: bounds the memory for their tables
BLOCK = 1 << 20  # patterns that are turned into bits at a time

Words = np.ndarray  # uint16 [n]
Bits = np.ndarray  # uint8 [C_out, ceil(9 C / 8)]


class CodingError(ValueError):
    """A coded kernel breaks a rule of the format; the message is one line."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise CodingError(message)


# --- patterns and bits --------------------------------------------------------------------------------------


def patterns_of(bits: Bits, channels: int) -> np.ndarray:
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
    for rows in _blocks(len(bits), channels):
        flat = np.unpackbits(bits[rows], axis=1, count=WINDOW * channels, bitorder="little")
        taps = flat.reshape(-1, WINDOW, channels)
        for tap in range(WINDOW):
            result[rows] |= taps[:, tap].astype(np.uint16) << tap
    return result


def bits_of(patterns: np.ndarray) -> Bits:
    """The packed bits of 3x3 patterns: the inverse of `patterns_of`.

    Args:
      patterns: uint16 ``[C_out, C]``.

    Returns:
      uint8 ``[C_out, ceil(9 C / 8)]``, padded with 0 bits.
    """
    outputs, channels = patterns.shape
    result = np.empty((outputs, -(-WINDOW * channels // 8)), np.uint8)
    for rows in _blocks(outputs, channels):
        taps = np.empty((len(patterns[rows]), WINDOW, channels), np.uint8)
        for tap in range(WINDOW):
            taps[:, tap] = patterns[rows] >> tap & 1
        result[rows] = np.packbits(taps.reshape(len(taps), -1), axis=1, bitorder="little")
    return result


def _blocks(outputs: int, channels: int) -> Iterator[slice]:
    """Runs of output channels of about `BLOCK` patterns."""
    step = max(1, BLOCK // channels)
    for first in range(0, outputs, step):
        yield slice(first, first + step)


# --- encoding -----------------------------------------------------------------------------------------------


def frequencies(counts: np.ndarray) -> np.ndarray:
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


def _table_words(freq: np.ndarray) -> Words:
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


# --- decoding -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Coded:
    """A coded kernel and the shape of the bits in it.

    Attributes:
      words: uint16 ``[n]``.
      outputs: C_out.
      channels: C, the input channels that each output channel sees.
    """

    words: Words
    outputs: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Size of the decoded bits."""
        return self.outputs * -(-WINDOW * self.channels // 8)


@dataclasses.dataclass(frozen=True)
class _Streams:
    """A kernel's table and where its streams lie in its words."""

    name: str  # of the kernel
    freq: np.ndarray  # int64 [512]
    begin: np.ndarray  # int64 [S]
    end: np.ndarray  # int64 [S]
    patterns: np.ndarray  # int64 [S], patterns of each stream


def _read_table(words: Words) -> tuple[np.ndarray, int]:
    """The frequencies, int64 ``[512]``, and the number of words that they take."""
    _demand(len(words) >= LENGTHS, "the table is truncated")
    lengths = (words[:LENGTHS, None] >> np.array([0, 4, 8, 12], np.uint16) & 15).ravel().astype(np.int64)
    _demand(int(lengths.max()) <= SCALE_BITS + 1, "a frequency is too large")
    below = np.maximum(lengths - 1, 0)  # bits below the leading 1
    used = int(below.sum())
    size = LENGTHS + -(-used // 16)
    _demand(len(words) >= size, "the table is truncated")
    rest = np.unpackbits(words[LENGTHS:size].astype("<u2").view(np.uint8), bitorder="little").astype(np.int64)
    _demand(not rest[used:].any(), "padding bits of the table are set")
    owner = np.repeat(np.arange(PATTERNS), below)
    place = np.arange(used) - np.repeat(np.cumsum(below) - below, below)
    freq = np.where(lengths > 0, 1 << below, 0)
    np.add.at(freq, owner, rest[:used] << place)
    _demand(int(freq.sum()) == SCALE, f"the frequencies do not sum to {SCALE}")
    return freq, size


def _read_streams(name: str, coded: Coded) -> _Streams:
    try:
        return _parse(name, coded)
    except CodingError as error:
        raise CodingError(f"coded tensor {name!r}: {error}") from error


def _parse(name: str, coded: Coded) -> _Streams:
    words, outputs, channels = coded.words, coded.outputs, coded.channels
    _demand(words.nbytes >= -(-coded.nbytes // MAX_RATIO), f"it claims to be more than {MAX_RATIO} x smaller")
    _demand(len(words) >= 1 + LENGTHS, "the table is truncated")
    rows = int(words[0])
    _demand(1 <= rows <= outputs and rows * channels <= MAX_STREAM, f"{rows} rows in a stream")
    freq, size = _read_table(words[1:])
    count = -(-outputs // rows)
    first = 1 + size + count
    _demand(len(words) >= first, "the sizes of the streams are truncated")
    sizes = words[1 + size : first].astype(np.int64)
    _demand(int(sizes.min()) >= 2, "a stream has no state")
    _demand(first + int(sizes.sum()) == len(words), "the streams do not fill the tensor")
    end = first + np.cumsum(sizes)
    patterns = np.full(count, rows * channels)
    patterns[-1] = (outputs - (count - 1) * rows) * channels
    return _Streams(name, freq, end - sizes, end, patterns)


def _decode_together(kernels: Sequence[Coded], parsed: Sequence[_Streams]) -> list[np.ndarray]:
    """The patterns of some kernels, uint16 ``[C_out, C]`` each, all streams side by side."""

    def demand(good: np.ndarray, message: str) -> None:
        if not good.all():
            raise CodingError(f"coded tensor {parsed[kernel[np.argmin(good)]].name!r}: {message}")

    starts = np.cumsum([0, *(len(coded.words) for coded in kernels)])
    # A damaged stream may read on: its neighbours' words, then these zeros. It is refused at the end.
    words = np.concatenate([*(coded.words for coded in kernels), np.zeros(MAX_STREAM, np.uint16)])
    words = words.astype(np.uint32)
    freq = np.concatenate([p.freq for p in parsed]).astype(np.uint32)
    below = np.concatenate([np.cumsum(p.freq) - p.freq for p in parsed]).astype(np.uint32)
    pattern_at = np.repeat(np.tile(np.arange(PATTERNS, dtype=np.uint16), len(parsed)), freq)  # by slot

    position = np.concatenate([p.begin + s for p, s in zip(parsed, starts, strict=False)])
    end = np.concatenate([p.end + s for p, s in zip(parsed, starts, strict=False)])
    kernel = np.repeat(np.arange(len(parsed)), [len(p.begin) for p in parsed])
    length = np.concatenate([p.patterns for p in parsed])
    target = np.cumsum(length) - length  # of a stream's first pattern in the result

    # The longest streams first, so that those at work are always the first ones.
    order = np.argsort(-length, kind="stable")
    position, end, kernel, length, target = (a[order] for a in (position, end, kernel, length, target))
    live = np.searchsorted(-length, -np.arange(int(length[0])), side="left")
    state = words[position] | words[position + 1] << np.uint32(16)
    demand(state >= LOW, "a stream begins with a wrong state")
    position = position + 2
    result = np.empty(int(length.sum()), np.uint16)
    table, slots = kernel * PATTERNS, kernel * SCALE
    for step, n in enumerate(live.tolist()):
        x = state[:n]
        slot = x & np.uint32(SCALE - 1)
        pattern = pattern_at[slots[:n] + slot]
        entry = table[:n] + pattern
        x = freq[entry] * (x >> np.uint32(SCALE_BITS)) + slot - below[entry]
        short = x < LOW
        at = position[:n]
        state[:n] = np.where(short, x << np.uint32(16) | words[at], x)
        at += short
        result[target[:n] + step] = pattern
    demand((position == end) & (state == LOW), "a stream does not end where it should")
    parts = np.split(result, np.cumsum([coded.outputs * coded.channels for coded in kernels[:-1]]))
    return [part.reshape(k.outputs, k.channels) for k, part in zip(kernels, parts, strict=True)]


def decode_all(kernels: Mapping[str, Coded]) -> dict[str, Bits]:
    """Decodes kernels; those that come together are decoded side by side, which is faster.

    Args:
      kernels: by name.

    Returns:
      Packed bits by name, uint8 ``[C_out, ceil(9 C / 8)]`` each, equal to those that were coded.

    Raises:
      CodingError: a kernel breaks a rule of docs/packed-format-2.md; the message names it.
    """
    parsed = {name: _read_streams(name, coded) for name, coded in kernels.items()}
    names = list(kernels)
    result: dict[str, Bits] = {}
    for first in range(0, len(names), TABLES_AT_ONCE):
        some = names[first : first + TABLES_AT_ONCE]
        decoded = _decode_together([kernels[name] for name in some], [parsed[name] for name in some])
        result |= {name: bits_of(patterns) for name, patterns in zip(some, decoded, strict=True)}
    return result


def decode(words: Words, outputs: int, channels: int) -> Bits:
    """Decodes one kernel, see `decode_all`.

    >>> bits = np.array([[0b10110100, 0b1], [0b10110100, 0b0]], np.uint8)
    >>> decode(encode(bits, 1), 2, 1).tolist()
    [[180, 1], [180, 0]]
    """
    return decode_all({"kernel": Coded(words, outputs, channels)})["kernel"]
