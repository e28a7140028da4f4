"""Packed files of version 2 with coded kernels: the golden one, and files that every reader refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from packed_corpus import Parts, assemble, container, seal

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.entropy import encode
from binwrn_jax.deploy.graph_file import pack_signs
from binwrn_jax.deploy.packed import PackedModel

GOLDEN = Path(__file__).parent / "golden" / "packed_v2_entropy.safetensors"
SHAPES = {"conv0": (3, 3, 3, 32), "conv1": (3, 3, 32, 32), "conv2": (1, 1, 32, 4)}


def skewed_bits(outputs: int, channels: int, seed: int = 0) -> np.ndarray:
    """Bits of 3x3 kernels whose patterns are as unequal as those of trained ones."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential(512) ** 2
    patterns = rng.choice(512, (outputs, channels), p=weights / weights.sum())
    return numpy_reader.bits_of(patterns.astype(np.uint16))


def coded_model() -> PackedModel:
    """Three convolutions, of which the writer codes the one in the middle, and a residual sum."""
    rng = np.random.default_rng(9)
    few = rng.choice(np.array([7, 56, 448, 73, 146, 292, 0, 511]), (32, 32))  # rows, columns, all, none
    bits = {
        "conv0": pack_signs(rng.choice([-1, 1], SHAPES["conv0"])),
        "conv1": numpy_reader.bits_of(few.astype(np.uint16)),
        "conv2": pack_signs(rng.choice([-1, 1], SHAPES["conv2"])),
    }
    operations: list[dict[str, Any]] = []
    affines, x = {}, "image"
    for i, (name, (height, width, c_in, c_out)) in enumerate(SHAPES.items()):
        affines[f"affine{i}"] = tuple(rng.integers(-4, 5, c_in).astype(np.float32) / 64 for _ in range(2))
        operations += [
            {"op": "affine", "in": [x], "out": f"a{i}", "tensor": f"affine{i}", "min": 0.0},
            {"op": "conv", "in": [f"a{i}"], "out": f"c{i}", "tensor": name, "window": [height, width],
             "stride": [1, 1], "pads": [[height // 2] * 2, [width // 2] * 2], "channels": [c_in, c_out]},
        ]  # fmt: skip
        x = f"c{i}"
    # A residual sum, as in the paper's networks: the coded kernel's result and its input.
    operations.insert(4, {"op": "add", "in": ["c0", "c1"], "out": "sum"})
    operations[5]["in"] = ["sum"]
    operations.append({"op": "global_average", "in": [x], "out": "logits"})
    metadata = {
        "format": "binwrn-packed",
        "version": 1,
        "operations": operations,
        "input": {"shape": [5, 6, 3], "dtype": "uint8", "range": [0, 255], "resize": "bilinear"},
        "num_classes": 4,
        "class_names": [],
        "license": "CC0-1.0",
    }
    metadata["sha256"] = numpy_reader.checksum(metadata, bits)
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    packed = PackedModel(metadata, bits, affines, image, np.zeros(4, np.float32))
    return dataclasses.replace(
        packed, golden_logits=numpy_reader.Model(metadata, packed.tensors)(image[None])[0]
    )


def coded_parts(*names: str) -> Parts:
    """The golden model with these kernels coded, whether or not that makes them smaller."""
    packed = coded_model()
    operations = [
        {**op, "coding": "rans"} if op.get("tensor") in names else op for op in packed.metadata["operations"]
    ]
    metadata = {**packed.metadata, "version": 2, "requires": ["entropy"], "operations": operations}
    words = {name + ".coded": encode(packed.bits[name], SHAPES[name][2]) for name in names}
    tensors = {name: x for name, x in packed.tensors.items() if name not in names}
    return Parts(metadata, {}, {**tensors, **words}, {numpy_reader.CHECKSUM: "0" * 64})


def lay(parts: Parts) -> bytes:
    """The file, its tensors placed one after the other: those of larger numbers first."""
    position = 0
    parts.header = {}
    codes = {"float32": "F32", "uint16": "U16", "uint8": "U8", "int16": "I16"}
    for name, array in sorted(parts.tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        offsets = [position, position + array.nbytes]
        parts.header[name] = {
            "dtype": codes[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        position += array.nbytes
    parts.tensors = {name: parts.tensors[name] for name in parts.header}
    return assemble(parts, parts.data())


def changed(edit: Callable[[Parts], Any], *names: str) -> bytes:
    """The file with kernels coded after a change of its parts."""
    parts = coded_parts(*(names or ("conv1",)))
    edit(parts)
    return lay(parts)


def _metadata(**fields: Any) -> bytes:
    return changed(lambda parts: parts.metadata.update(fields))


def _conv1(**fields: Any) -> bytes:
    return changed(lambda parts: parts.operations[3].update(fields))


def _words(edit: Callable[[np.ndarray], np.ndarray | None]) -> bytes:
    def apply(parts: Parts) -> None:
        words = parts.tensors["conv1.coded"].copy()
        result = edit(words)
        parts.tensors["conv1.coded"] = words if result is None else result

    return changed(apply)


def _set(index: int, value: int) -> bytes:
    return _words(lambda words: words.__setitem__(index, value))


def _last_word(words: np.ndarray) -> None:
    words[-1] ^= 1


def _misaligned() -> bytes:
    """The bytes of conv0 before the words of conv1, which then begin at an odd place."""
    parts = coded_parts("conv1")
    parts.tensors["odd"] = np.zeros(1, np.uint8)
    content = lay(parts)
    start = 8 + int.from_bytes(content[:8], "little")
    names = ["odd", *(name for name in parts.tensors if name != "odd")]
    position, data = 0, b""
    for name in sorted(names, key=lambda name: (parts.tensors[name].dtype.itemsize != 4, name != "odd")):
        array = parts.tensors[name]
        parts.header[name]["data_offsets"] = [position, position + array.nbytes]
        position += array.nbytes
        data += array.tobytes()
    assert len(data) == len(content) - start
    return assemble(parts, data)


def _no_checksum() -> bytes:
    return changed(lambda parts: parts.outer.clear())


def _other_bits(parts: Parts) -> None:
    """Well-formed, but the bits are not those that the file's sha256 is of."""
    parts.tensors["conv1.coded"] = encode(skewed_bits(32, 32, 5), 32)


def _plain_too(parts: Parts) -> None:
    parts.tensors["conv1"] = coded_model().bits["conv1"]


ACCEPTED = {
    "one coded kernel": lambda: changed(lambda parts: None),
    "two coded kernels": lambda: changed(lambda parts: None, "conv0", "conv1"),
    "an unknown key": lambda: _metadata(note={"temperature": 2}),
    "a temperature": lambda: _metadata(requires=["entropy", "temperature"], temperature=2.5),
    "a whole temperature": lambda: _metadata(requires=["entropy", "temperature"], temperature=1024),
}
REFUSED = {
    "requires left out": lambda: changed(lambda parts: parts.metadata.pop("requires")),
    "requires nothing": lambda: _metadata(requires=[]),
    "requires as text": lambda: _metadata(requires="entropy"),
    "requires a number": lambda: _metadata(requires=[1]),
    "requires twice": lambda: _metadata(requires=["entropy", "entropy"]),
    "requires in another order": lambda: _metadata(requires=["groups", "entropy"]),
    "requires an unknown feature": lambda: _metadata(requires=["entropy", "telepathy"]),
    "requires a feature in capitals": lambda: _metadata(requires=["ENTROPY"]),
    "requires 33 features": lambda: _metadata(requires=[f"a{i:02}" for i in range(33)]),
    "a temperature that it does not require": lambda: _metadata(temperature=2.0),
    "a temperature that is not there": lambda: _metadata(requires=["entropy", "temperature"]),
    "a temperature of 0": lambda: _metadata(requires=["entropy", "temperature"], temperature=0),
    "a temperature as text": lambda: _metadata(requires=["entropy", "temperature"], temperature="2"),
    "true as a temperature": lambda: _metadata(requires=["entropy", "temperature"], temperature=True),
    "a temperature too high": lambda: _metadata(requires=["entropy", "temperature"], temperature=1025),
    "requires what it does not use": lambda: changed(_plain_instead),
    "coding in version 1": lambda: changed(lambda parts: parts.metadata.update(version=1)),
    "coded words in version 1": lambda: changed(_words_in_version_1),
    "version 3": lambda: _metadata(version=3),
    "coding null": lambda: _conv1(coding=None),
    "another coding": lambda: _conv1(coding="huffman"),
    "coding of a 1x1 kernel": lambda: changed(_coded_1x1),
    "no checksum of the file": _no_checksum,
    "bits and coded bits": lambda: changed(_plain_too),
    "coded bits missing": lambda: changed(lambda parts: parts.tensors.pop("conv1.coded")),
    "coded bits as bytes": lambda: changed(
        lambda parts: parts.tensors.update(
            {"conv1.coded": parts.tensors["conv1.coded"].view(np.uint8).copy()}
        )
    ),
    "coded bits as signed words": lambda: changed(
        lambda parts: parts.tensors.update({"conv1.coded": parts.tensors["conv1.coded"].view(np.int16)})
    ),
    "coded bits in two dimensions": lambda: changed(
        lambda parts: parts.tensors.update({"conv1.coded": parts.tensors["conv1.coded"][None]})
    ),
    "coded bits misaligned": _misaligned,
    "other bits": lambda: changed(_other_bits),
    "no rows": lambda: _set(0, 0),
    "more rows than there are": lambda: _set(0, 33),
    "a frequency too large": lambda: _set(1, 0xFFFF),
    "a word too many": lambda: _words(lambda words: np.append(words, np.uint16(0))),
    "a word too few": lambda: _words(lambda words: words[:-1].copy()),
    "one word": lambda: _words(lambda words: words[:1].copy()),
    "another last word": lambda: _words(_last_word),
}


def _plain_instead(parts: Parts) -> None:
    _plain_too(parts)
    del parts.tensors["conv1.coded"], parts.operations[3]["coding"]


def _words_in_version_1(parts: Parts) -> None:
    _plain_instead(parts)
    parts.metadata["version"] = 1
    parts.tensors["conv1"] = parts.tensors["conv1"].astype(np.uint16)


def _coded_1x1(parts: Parts) -> None:
    parts.operations[6]["coding"] = "rans"
    parts.tensors["conv2.coded"] = np.zeros(8, np.uint16)
    del parts.tensors["conv2"]


__all__ = ["ACCEPTED", "GOLDEN", "REFUSED", "coded_model", "container", "seal", "skewed_bits"]
