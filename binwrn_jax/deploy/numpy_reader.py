"""Reads and runs a packed model file with NumPy alone: the definition of the format as a program.

This one file needs nothing else of binwrn-jax and may be copied out of it (MIT licence). It checks
everything that docs/packed-format.md and docs/packed-format-2.md demand before it allocates anything;
whatever is wrong raises `PackedFileError` with one line. In Python:

    model = load("model.packed")
    logits = model(images)                # uint8 [N, H, W, C] -> float32 [N, classes]

On the command line, with images as uint8 [H, W, C] or [N, H, W, C] in NumPy's format:

    python numpy_reader.py model.packed image.npy
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

FORMAT = "binwrn-packed"
VERSION = 1  # in which files are written wherever it suffices
FEATURES = (  # of version 2 that this program reads, see docs/packed-format-2.md: all
    *("clip", "concat", "dilation", "elementwise", "entropy", "float_kernels"),
    *("global_pool", "groups", "int8", "pad", "product", "resize", "temperature"),
)

# Limits that every reader enforces. The largest network of the paper, 20-20, is far inside: a header of
# 8 kB, 13.5 MB of tensors, 15 million activations and 16 billion multiply-adds per image.
MAX_HEADER = 16 << 20  # bytes
MAX_MARKS = 1 << 20  # characters , : [ { of a JSON text, outside of its strings
MAX_NESTING = 64  # arrays and objects inside each other
MAX_NUMBER = 4300  # characters of a number
MAX_DATA = 256 << 20  # bytes of all tensors together
MAX_OPERATIONS = 4096
MAX_SIDE = 4096  # height, width and channels of the input
MAX_CHANNELS = 65536  # of any other value, and classes
MAX_WINDOW = 64  # and strides, dilations, and factors of resizing
MAX_CONSTANT = 3e38  # magnitude of a limit or of a constant
MAX_INPUTS = 256  # of a concatenation
MAX_SLOPE = 1000  # magnitude of a leaky ReLU's
MAX_ACTIVATIONS = 1 << 27  # float32 values of all results together, per image
MAX_WORK = 1 << 38  # multiply-adds of all operations together, per image
MAX_RANGE = 2.0**126  # of a result that the operations can have: float32 ends below 2^128
UNPACKED = 1 << 22  # weights of a convolution that are floats at a time, while it runs
AT_A_TIME = 1 << 16  # numbers that an elementwise function computes in float64 at a time
MAX_VALUE = 2.0**64  # of a result while the network runs, where its range is not known to be inside

DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F32": np.dtype("<f4")}
CODED_DTYPE = np.dtype("<u2")  # U16, in version 2
NEW_DTYPES: dict[str, np.dtype[Any]] = {  # of version 2
    "U16": CODED_DTYPE,
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
}
ALL_DTYPES = {**DTYPES, **NEW_DTYPES}
RESERVED = ("golden.image", "golden.logits")  # tensors that belong to no operation
CHECKSUM = "file_sha256"  # entry of __metadata__: of the whole file, its own value taken as 64 zeros
OLDER = (
    "written before files had a checksum of all their bytes: damage is found in the convolutions only; "
    "export it again to cover everything"
)

Shape = tuple[int, ...]


class PackedFileError(ValueError):
    """The file is not a packed model that this version reads; the message is one line."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise PackedFileError(message)


def _field(holder: dict[str, Any], key: str) -> Any:
    """The value of a key, None where there is none."""
    return holder.get(key)


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_list_of(value: Any, length: int, low: int, high: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(_is_int(n, low, high) for n in value)


def _brief(value: Any) -> str:
    """A value from the file as it may stand in a message: short and on one line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- JSON ---------------------------------------------------------------------------------------------------


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    _demand(len(result) == len(pairs), "a JSON object in the header has a key twice")
    return result


def _refuse_constant(name: str) -> None:
    raise PackedFileError(f"the header's JSON has the value {name}")


def _number(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        _demand(len(text) <= MAX_NUMBER, f"the header's JSON has a number of {len(text)} characters")
        return convert(text)

    return parse


def _bound_json(text: str, what: str) -> None:
    """Checks, before anything is made of it, that a JSON text has few values and is not nested deeply."""
    # Without strings; possessive (++, *+), so that it takes linear time and no memory for ways back.
    marks = re.sub(r'"(?:[^"\\]++|\\.)*+"?', "", text, flags=re.DOTALL)
    count = sum(marks.count(mark) for mark in ",:[{")
    _demand(count <= MAX_MARKS, f"{what} has more than {MAX_MARKS} values")
    depth = 0
    for mark in re.findall(r"[][{}]", marks):
        depth += 1 if mark in "[{" else -1
        _demand(depth <= MAX_NESTING, f"{what} is nested more than {MAX_NESTING} deep")


def parse_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object, of a text that keeps the limits and has only complete Unicode characters."""
    _bound_json(text, what)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_number(int),
            parse_float=_number(float),
        )
    except PackedFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise PackedFileError(f"{what} is not valid JSON ({type(error).__name__})") from error
    _demand(isinstance(value, dict), f"{what} is not a JSON object")
    if "\\u" in text:  # else no string can have half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise PackedFileError(f"{what} has half of a character (a lone surrogate)") from error
    return value


# --- the container ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its dtype, shape, and bytes from ``begin`` to ``end`` of the data."""

    dtype: np.dtype[Any]
    shape: Shape
    begin: int
    end: int


class Header(NamedTuple):
    """What `read_header` finds.

    Attributes:
      metadata: the JSON object called ``binwrn``, its descriptive fields checked.
      entries: the tensors by name.
      start: the position of their first byte in the file.
      checksum: the SHA-256 of the file that it states, in hex; None in an older file, which states none.
      raw: all bytes of the file before ``start``.
    """

    metadata: dict[str, Any]
    entries: dict[str, Entry]
    start: int
    checksum: str | None
    raw: bytes


def read_header(file: BinaryIO) -> Header:
    """Reads and checks the container's header, and that the file is as long as it says.

    Args:
      file: opened in binary mode, at its start.

    Raises:
      PackedFileError: it is no safetensors file of a packed model, or its lengths do not fit.
    """
    status = os.fstat(file.fileno())
    _demand(stat.S_ISREG(status.st_mode), "not a regular file")
    size = status.st_size
    first = file.read(8)
    _demand(len(first) == 8, f"not a packed model: only {size} bytes long")
    (length,) = struct.unpack("<Q", first)
    _demand(length <= MAX_HEADER, "not a packed model: no header of a safetensors file")
    _demand(8 + length <= size, f"truncated: a header of {length} bytes in a file of {size}")
    text = file.read(length)
    _demand(
        len(text) == length and text.startswith(b"{"), "not a packed model: no header of a safetensors file"
    )
    try:
        header = parse_json(text.decode("utf-8"), "the header")
    except UnicodeDecodeError as error:
        raise PackedFileError("the header is not UTF-8") from error
    outer = header.pop("__metadata__", None)
    _demand(
        isinstance(outer, dict) and isinstance(_field(outer, "binwrn"), str),
        "a safetensors file, but no packed model: it has no metadata called 'binwrn'",
    )
    metadata = parse_json(outer["binwrn"], "the metadata 'binwrn'")
    _demand(_field(metadata, "format") == FORMAT, f"format {_brief(metadata.get('format'))}, not {FORMAT!r}")
    version = check_version(metadata)
    unknown = sorted(set(outer) - {"binwrn", CHECKSUM})
    _demand(not unknown, f"metadata {_brief(unknown[:1])} beside 'binwrn'")
    _demand((8 + length) % 8 == 0, "the tensors do not begin at a multiple of 8 bytes")
    entries = {name: _read_entry(name, item, version) for name, item in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].begin):
        _demand(entry.begin == position, f"gap or overlap before the bytes of tensor {_brief(name)}")
        position = entry.end
    _demand(
        8 + length + position == size,
        f"the file has {size} bytes, but its header announces {8 + length + position}: truncated or damaged",
    )
    check_description(metadata)
    stated = _field(outer, CHECKSUM)
    _demand(version == 1 or CHECKSUM in outer, f"a file of version {version} without {CHECKSUM}")
    if CHECKSUM in outer:
        _demand(isinstance(stated, str) and _checksum_at(text, stated) >= 0, f"{CHECKSUM} is no checksum")
    return Header(metadata, entries, 8 + length, stated, first + text)


def check_version(metadata: dict[str, Any]) -> int:
    """The version of a file, all of whose features this program reads."""
    version = _field(metadata, "version")
    _demand(_is_int(version, 1, 2**31 - 1), f"version {_brief(version)} is no version number")
    _demand(version <= 2, f"version {version}, but this program reads versions 1 and 2: update it")
    if version == 2:
        requires = _field(metadata, "requires")
        _demand(
            isinstance(requires, list)
            and 1 <= len(requires) <= 32
            and all(isinstance(name, str) and re.fullmatch("[a-z0-9_]{1,32}", name) for name in requires)
            and all(a < b for a, b in itertools.pairwise(requires)),
            f"requires {_brief(requires)} is no ascending list of features",
        )
        for name in requires:
            _demand(
                name in FEATURES, f"this file needs {name!r}, which this program does not read: update it"
            )
    return int(version)


def _read_entry(name: str, item: Any, version: int) -> Entry:
    _demand(isinstance(item, dict) and set(item) == {"dtype", "shape", "data_offsets"}, "bad tensor entry")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    dtypes = DTYPES if version == 1 else ALL_DTYPES
    _demand(
        isinstance(dtype, str) and dtype in dtypes,
        f"tensor {_brief(name)} has dtype {_brief(dtype)}, not {' or '.join(dtypes)}",
    )
    _demand(
        isinstance(shape, list) and len(shape) <= version + 2 and all(_is_int(n, 1, MAX_DATA) for n in shape),
        f"tensor {_brief(name)} has the shape {_brief(shape)}",
    )
    _demand(_is_list_of(offsets, 2, 0, MAX_DATA), f"tensor {_brief(name)} has the offsets {_brief(offsets)}")
    entry = Entry(dtypes[dtype], tuple(shape), *offsets)
    _demand(
        entry.end - entry.begin == math.prod(shape) * entry.dtype.itemsize,
        f"tensor {_brief(name)}: shape {shape} does not fit its {entry.end - entry.begin} bytes",
    )
    _demand(entry.begin % entry.dtype.itemsize == 0, f"tensor {_brief(name)} is not aligned")
    return entry


def _checksum_at(raw: bytes, stated: str) -> int:
    """Where the digits of the whole file's checksum stand in the header; -1 if not exactly once."""
    marker = f'"{CHECKSUM}":"'.encode()
    at = raw.find(marker) + len(marker)
    once = at >= len(marker) and raw.find(marker, at) < 0
    digits = raw[at : at + 65]
    return at if once and digits == f'{stated}"'.encode() and re.fullmatch(rb"[0-9a-f]{64}\"", digits) else -1


def file_checksum(raw: bytes, stated: str, data: bytes | memoryview) -> str:
    """SHA-256, in hex, over a whole file in which the 64 digits of its own checksum count as zeros.

    Args:
      raw: the file up to its first tensor.
      stated: the checksum in it, which may be wrong.
      data: the rest of the file.
    """
    at = _checksum_at(raw, stated)
    digest = hashlib.sha256(raw[:at] + b"0" * 64 + raw[at + 64 :])
    digest.update(data)
    return digest.hexdigest()


# --- what describes the model -------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    """A string without control characters, which could make a terminal do something."""
    return isinstance(value, str) and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value)


def check_description(metadata: dict[str, Any]) -> None:
    """Checks the fields that say what the model is for; what they mean matters to no computation.

    Raises:
      PackedFileError: a field of another type than docs/packed-format.md says, or control characters.
    """
    image, classes = _field(metadata, "input"), _field(metadata, "num_classes")
    _demand(isinstance(image, dict), f"input {_brief(image)} is not an object")
    for key, choices in (("resize", ("bilinear", "center_crop")), ("channels", ("grey", "RGB", "other"))):
        value = image.get(key, choices[0])
        _demand(
            isinstance(value, str) and value in choices,
            f"input {key} {_brief(value)} is none of {', '.join(choices)}",
        )
    _demand(_is_int(classes, 1, MAX_CHANNELS), f"num_classes {_brief(classes)}")
    names = _field(metadata, "class_names")
    _demand(
        isinstance(names, list) and len(names) in (0, classes) and all(_is_text(n) for n in names),
        f"class_names are not {classes} strings without control characters, nor an empty list",
    )
    for key in ("dataset", "license", "config_sha256"):
        value = _field(metadata, key)
        _demand(
            value is None or _is_text(value), f"{key} {_brief(value)} is no string without control characters"
        )
    for key in ("network", "test"):
        value = _field(metadata, key)
        _demand(value is None or isinstance(value, dict), f"{key} {_brief(value)} is not an object")
    source = _field(metadata, "source")
    _demand(
        source is None or isinstance(source, dict) or _is_text(source),
        f"source {_brief(source)} is no object",
    )


# --- the operations -----------------------------------------------------------------------------------------


def _is_number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and abs(value) <= most


def _slide(where: str, operation: dict[str, Any], shape: Shape) -> tuple[int, int]:
    """Height and width of what a window sliding over an image gives."""
    window, stride, pads = _field(operation, "window"), _field(operation, "stride"), _field(operation, "pads")
    dilation = operation.get("dilation", [1, 1])
    _demand(_is_list_of(window, 2, 1, MAX_WINDOW), f"{where}: window {_brief(window)}")
    _demand(_is_list_of(stride, 2, 1, MAX_WINDOW), f"{where}: stride {_brief(stride)}")
    _demand(
        "dilation" not in operation or (_is_list_of(dilation, 2, 1, MAX_WINDOW) and dilation != [1, 1]),
        f"{where}: dilation {_brief(dilation)}",
    )
    covers = [(side - 1) * gap + 1 for side, gap in zip(window, dilation, strict=True)]
    # Padding below the window's size: each window has a pixel of the image in it, or between its weights.
    _demand(
        isinstance(pads, list)
        and len(pads) == 2
        and all(_is_list_of(pad, 2, 0, size - 1) for pad, size in zip(pads, covers, strict=True)),
        f"{where}: pads {_brief(pads)} with a window of {covers}",
    )
    height, width = (
        (size + sum(pad) - side) // step + 1
        for size, pad, side, step in zip(shape[:2], pads, covers, stride, strict=True)
    )
    _demand(
        min(height, width) >= 1,
        f"{where}: a window of {covers} does not fit into {shape[0]} x {shape[1]} pixels",
    )
    return height, width


class Expected(dict[str, tuple[np.dtype[Any], Shape]]):
    """The tensors that the operations need, by name: dtype and shape, ``(0,)`` where any length will do.

    Attributes:
      coded: ``{T.coded: (C_out, C)}``, the coded kernels among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coded: dict[str, tuple[int, int]] = {}

    @property
    def uncoded_bytes(self) -> int:
        """Bytes of all tensors, coded ones counted as if they were not."""
        plain = (math.prod(shape) * dtype.itemsize for dtype, shape in self.values())
        return sum(plain) + sum(
            outputs * -(-KERNEL_WEIGHTS * channels // 8) for outputs, channels in self.coded.values()
        )

    def tensor(self, where: str, name: Any, suffix: str, dtype: str, shape: Shape) -> None:
        """Adds one, which no other operation has."""
        _demand(isinstance(name, str), f"{where}: tensor {_brief(name)}")
        _demand(name + suffix not in RESERVED, f"{where}: the name {_brief(name)} of a tensor is reserved")
        _demand(name + suffix not in self, f"{where}: tensor {_brief(name)} is used twice")
        self[name + suffix] = ALL_DTYPES[dtype], shape


# Each of these checks the fields of one kind of operation, whose inputs have the shapes given. It returns the
# shape of the result, and multiply-adds for each of its numbers.
Checked = tuple[Shape, int]


def _check_affine(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    low = _field(operation, "min")
    _demand(low is None or _is_number(low, MAX_CONSTANT), f"{where}: min {_brief(low)} is no number")
    if "max" in operation:
        high = operation["max"]
        _demand(_is_number(high, MAX_CONSTANT), f"{where}: max {_brief(high)} is no number")
        ordered = low is None or bool(np.float32(low) <= np.float32(high))
        _demand(ordered, f"{where}: min {_brief(low)} above max {_brief(high)}")
    for suffix in (".scale", ".offset"):
        expected.tensor(where, _field(operation, "tensor"), suffix, "F32", (inputs[0][2],))
    return inputs[0], 1


def _check_conv(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    size, channels = _slide(where, operation, inputs[0]), _field(operation, "channels")
    _demand(
        _is_list_of(channels, 2, 1, MAX_CHANNELS) and channels[0] == inputs[0][2],
        f"{where}: channels {_brief(channels)} for an input with {inputs[0][2]}",
    )
    groups, name = operation.get("groups", 1), _field(operation, "tensor")
    _demand(
        "groups" not in operation
        or (_is_int(groups, 2, MAX_CHANNELS) and channels[0] % groups == 0 == channels[1] % groups),
        f"{where}: groups {_brief(groups)} of channels {channels}",
    )
    window, depth = operation["window"], channels[0] // groups
    weights = math.prod(window) * depth
    if "weights" in operation:
        kind = operation["weights"]
        _demand(
            isinstance(kind, str) and kind in ("float32", "int8"),
            f"{where}: weights {_brief(kind)}, not 'float32' or 'int8'",
        )
        _demand("coding" not in operation, f"{where}: coding of {kind} weights")
        expected.tensor(where, name, "", "F32" if kind == "float32" else "I8", (channels[1], *window, depth))
    elif "coding" in operation:
        coding = operation["coding"]
        _demand(coding == "rans", f"{where}: coding {_brief(coding)}, not 'rans'")
        _demand(window == [3, 3], f"{where}: a coded kernel of {window}, not of 3 x 3")
        expected.tensor(where, name, ".coded", "U16", (0,))
        expected.coded[name + ".coded"] = channels[1], depth
    else:
        expected.tensor(where, name, "", "U8", (channels[1], -(-weights // 8)))
    return (*size, channels[1]), weights


def _check_pool(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    return (*_slide(where, operation, inputs[0]), inputs[0][2]), math.prod(operation["window"])


def _check_pad_channels(
    where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected
) -> Checked:
    height, width, channels = inputs[0]
    more = _field(operation, "channels")
    _demand(_is_int(more, channels, MAX_CHANNELS), f"{where}: {_brief(more)} channels from {channels}")
    return (height, width, more), 1


def _check_add(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    _demand(inputs[0] == inputs[1], f"{where}: values of shapes {inputs[0]} and {inputs[1]}")
    return inputs[0], 1


def _check_average(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    return (inputs[0][2],), 1


def _check_pad(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    pads, value, (height, width, channels) = _field(operation, "pads"), _field(operation, "value"), inputs[0]
    _demand(
        isinstance(pads, list)
        and len(pads) == 2
        and all(_is_list_of(pad, 2, 0, MAX_SIDE) for pad in pads)
        and any(map(any, pads)),
        f"{where}: pads {_brief(pads)}",
    )
    _demand(_is_number(value, MAX_CONSTANT), f"{where}: value {_brief(value)} is no number")
    return (height + sum(pads[0]), width + sum(pads[1]), channels), 1


def _check_concat(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    sizes = {shape[:2] for shape in inputs}
    _demand(len(sizes) == 1, f"{where}: values of {len(sizes)} different sizes")
    channels = sum(shape[2] for shape in inputs)
    _demand(channels <= MAX_CHANNELS, f"{where}: {channels} channels")
    return (*inputs[0][:2], channels), 1


def _check_product(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    first, second = inputs
    _demand(second in (first, (1, 1, first[2])), f"{where}: values of shapes {first} and {second}")
    return first, 1


def _check_global(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    kind = _field(operation, "kind")
    _demand(
        isinstance(kind, str) and kind in ("average", "max"),
        f"{where}: kind {_brief(kind)}, not average or max",
    )
    return (1, 1, inputs[0][2]), math.prod(inputs[0][:2])


def _check_resize(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    factor, method, (height, width, channels) = (
        _field(operation, "factor"),
        _field(operation, "method"),
        inputs[0],
    )
    _demand(_is_list_of(factor, 2, 1, MAX_WINDOW) and factor != [1, 1], f"{where}: factor {_brief(factor)}")
    _demand(
        isinstance(method, str) and method in ("nearest", "bilinear"),
        f"{where}: method {_brief(method)}, not nearest or bilinear",
    )
    return (height * factor[0], width * factor[1], channels), 4 if method == "bilinear" else 1


def _check_elementwise(
    where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected
) -> Checked:
    name, alpha = _field(operation, "function"), _field(operation, "alpha")
    known = isinstance(name, str) and (name == "leaky_relu" or name in ELEMENTWISE)
    _demand(known, f"{where}: unknown function {_brief(name)}")
    _demand(("alpha" in operation) == (name == "leaky_relu"), f"{where}: alpha belongs to leaky_relu")
    _demand(
        "alpha" not in operation or _is_number(alpha, MAX_SLOPE),
        f"{where}: alpha {_brief(alpha)} is no number up to {MAX_SLOPE}",
    )
    return inputs[0], 16


class Kind(NamedTuple):
    """One kind of operation.

    Attributes:
      fields: beside ``op``, ``in`` and ``out``.
      inputs: how many, at least and at most.
      check: its checker.
      feature: of version 2 that has the operation; '' where version 1 has it.
      newer: fields of version 2, and the feature of each.
    """

    fields: frozenset[str]
    inputs: tuple[int, int]
    check: Callable[[str, dict[str, Any], list[Shape], Expected], Checked]
    feature: str = ""
    newer: Mapping[str, str] = {}


_SLIDING = frozenset({"window", "stride", "pads"})
_ONE, _TWO = (1, 1), (2, 2)
_NEW_OF_CONV = {
    "coding": "entropy",
    "dilation": "dilation",
    "groups": "groups",
    "weights": "float_kernels",
}
KINDS = {
    "affine": Kind(frozenset({"tensor", "min"}), _ONE, _check_affine, newer={"max": "clip"}),
    "conv": Kind(_SLIDING | {"tensor", "channels"}, _ONE, _check_conv, newer=_NEW_OF_CONV),
    "average_pool": Kind(_SLIDING, _ONE, _check_pool),
    "max_pool": Kind(_SLIDING, _ONE, _check_pool),
    "pad_channels": Kind(frozenset({"channels"}), _ONE, _check_pad_channels),
    "add": Kind(frozenset(), _TWO, _check_add),
    "global_average": Kind(frozenset(), _ONE, _check_average),
    "pad": Kind(frozenset({"pads", "value"}), _ONE, _check_pad, "pad"),
    "concat": Kind(frozenset(), (2, MAX_INPUTS), _check_concat, "concat"),
    "product": Kind(frozenset(), _TWO, _check_product, "product"),
    "global_pool": Kind(frozenset({"kind"}), _ONE, _check_global, "global_pool"),
    "resize": Kind(frozenset({"factor", "method"}), _ONE, _check_resize, "resize"),
    "elementwise": Kind(frozenset({"function", "alpha"}), _ONE, _check_elementwise, "elementwise"),
}


# --- integer networks (version 2, "int8") -------------------------------------------------------------------

LIMITS = {"u8": (0, 255), "i8": (-128, 127), "i16": (-32768, 32767), "i32": (-(2**31), 2**31 - 1)}
MAX_SUM = 2**31 - 1  # of a convolution and of the logits
MAX_SHIFT = 31
MAX_MULTIPLIER = 2**30  # of a sum of two values
SCALES = (2.0**-64, 2.0**64)


class Integers(NamedTuple):
    """What a value of an integer network is: ``(a - zero) * scale`` for each stored integer a.

    Attributes:
      type: a key of `LIMITS`.
      zero: the zero point.
      scale: of the real numbers; one for each channel after some convolutions.
    """

    type: str
    zero: int = 0
    scale: float | tuple[float, ...] = 1.0

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest centred integer, a - zero."""
        low, high = LIMITS[self.type]
        return low - self.zero, high - self.zero

    @property
    def largest(self) -> int:
        """The largest magnitude of a centred integer."""
        return max(map(abs, self.limits))


def _scale_of(where: str, operation: dict[str, Any], channels: int = 0) -> float | tuple[float, ...]:
    """The scale of a result; where `channels` are given it may be a list of as many."""
    scale = _field(operation, "scale")
    several = isinstance(scale, list) and len(scale) == channels > 0
    _demand(
        all(type(x) in (int, float) and SCALES[0] <= x <= SCALES[1] for x in (scale if several else [scale])),
        f"{where}: scale {_brief(scale)} is no number from 2^-64 to 2^64",
    )
    return tuple(map(float, scale)) if several else float(scale)


def _check_type(where: str, operation: dict[str, Any]) -> Integers:
    """The integers that an operation with a type of its own makes."""
    kind = _field(operation, "type")
    _demand(
        isinstance(kind, str) and kind in ("u8", "i8", "i16"),
        f"{where}: type {_brief(kind)} is no u8, i8 or i16",
    )
    zero = operation.get("zero", 0)
    low, high = LIMITS[kind] if kind != "i16" else (0, 0)
    _demand(
        "zero" not in operation or (_is_int(zero, low, high) and zero != 0),
        f"{where}: zero {_brief(zero)} of {kind}",
    )
    if "shift" in operation:
        shift = operation["shift"]
        _demand(
            _is_int(shift, 0, MAX_SHIFT) and (shift or operation["op"] != "add"),
            f"{where}: shift {_brief(shift)}",
        )
    return Integers(kind, zero, _scale_of(where, operation))


def _check_requantize(
    where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected
) -> Checked:
    _demand("shift" in operation, f"{where}: no shift")
    for suffix in (".multiplier", ".bias"):
        expected.tensor(where, _field(operation, "tensor"), suffix, "I32", (inputs[0][2],))
    ends = _check_type(where, operation).limits
    low, high = operation.get("low", ends[0]), operation.get("high", ends[1])
    _demand(
        _is_int(low, *ends) and _is_int(high, *ends) and low <= high,
        f"{where}: low {_brief(low)} and high {_brief(high)} of integers from {ends[0]} to {ends[1]}",
    )
    for field, default in (("low", ends[0]), ("high", ends[1])):
        _demand(operation.get(field) != default, f"{where}: {field} {default}, which is the default")
    return inputs[0], 1


def _check_table(where: str, operation: dict[str, Any], inputs: list[Shape], expected: Expected) -> Checked:
    kind = _check_type(where, operation).type
    expected.tensor(where, _field(operation, "tensor"), "", kind.upper(), (256,))
    return inputs[0], 1


_TYPE = frozenset({"type", "zero", "scale"})
_INTEGER_KINDS = {
    "requantize": Kind(_TYPE | {"tensor", "shift", "low", "high"}, _ONE, _check_requantize, "int8"),
    "table": Kind(_TYPE | {"tensor"}, _ONE, _check_table, "int8"),
}
# Fields of integer networks beside those of `KINDS`, and the types that an operation takes.
_INTEGER_FIELDS = {
    "conv": frozenset({"scale"}),
    "add": _TYPE | {"multipliers", "shift"},
    "product": _TYPE | {"multiplier", "shift"},
    "global_average": frozenset({"scale"}),
}
_NARROW, _SMALL = ("u8", "i8"), ("u8", "i8", "i16")
_TAKES = {"conv": _NARROW, "table": _NARROW, "requantize": tuple(LIMITS), "add": tuple(LIMITS)}


def _check_integers(
    where: str, operation: dict[str, Any], shapes: list[Shape], inputs: list[Integers]
) -> Integers:
    """What the result of an operation of an integer network is.

    Args:
      where: for messages.
      operation: whose fields the checker of its kind accepts.
      shapes: of its inputs.
      inputs: what they are.
    """
    op, first = operation["op"], inputs[0]
    takes = _TAKES.get(op, _SMALL)
    _demand(op not in ("affine", "elementwise"), f"{where}: an operation of float32 in an integer network")
    _demand(all(x.type in takes for x in inputs), f"{where}: inputs of types {[x.type for x in inputs]}")
    if op in ("requantize", "table"):
        return _check_type(where, operation)
    if op == "conv":
        kind = operation.get("weights")
        _demand(kind != "float32", f"{where}: weights 'float32' in an integer network")
        weights = math.prod(operation["window"]) * (shapes[0][2] // operation.get("groups", 1))
        _demand(
            255 * weights * (1 if kind is None else 127) <= MAX_SUM,
            f"{where}: sums of {weights} weights exceed int32",
        )
        channels = operation["channels"][1] if kind == "int8" else 0
        return Integers("i32", 0, _scale_of(where, operation, channels))
    if op == "add":
        multipliers = operation.get("multipliers", [1, 1])
        _demand(
            _is_list_of(multipliers, 2, -MAX_MULTIPLIER, MAX_MULTIPLIER)
            and ("multipliers" not in operation or multipliers != [1, 1]),
            f"{where}: multipliers {_brief(multipliers)}",
        )
        return _check_type(where, operation)
    if op == "product":
        multiplier = _field(operation, "multiplier")
        _demand(_is_int(multiplier, 1, MAX_SUM), f"{where}: multiplier {_brief(multiplier)}")
        _demand("shift" in operation, f"{where}: no shift")
        return _check_type(where, operation)
    if op == "pad":
        value = operation["value"]
        _demand(
            _is_int(value, *first.limits), f"{where}: value {_brief(value)} of integers within {first.limits}"
        )
    if op == "concat":
        _demand(len(set(inputs)) == 1, f"{where}: values of different types, zero points or scales")
    if op == "global_average":
        most = 32768 if first.type == "i16" else 255
        _demand(
            math.prod(shapes[0][:2]) * most <= MAX_SUM,
            f"{where}: sums over {shapes[0][:2]} pixels exceed int32",
        )
        return Integers("i32", 0, _scale_of(where, operation))
    return first


def is_integer(metadata: dict[str, Any]) -> bool:
    """Whether a checked file has an integer network."""
    return _field(metadata, "version") == 2 and "int8" in metadata["requires"]


def integers_of(metadata: dict[str, Any], shapes: dict[str, Shape]) -> dict[str, Integers]:
    """What each value of an integer network is, by name.

    Args:
      metadata: the JSON object ``binwrn``.
      shapes: what `value_shapes` returns of it.
    """
    found = {"image": Integers("u8")}
    for operation in metadata["operations"]:
        inputs = operation["in"]
        found[operation["out"]] = _check_integers(
            "", operation, [shapes[name] for name in inputs], [found[name] for name in inputs]
        )
    return found


# --- all operations -----------------------------------------------------------------------------------------


def _check_input(metadata: dict[str, Any]) -> Shape:
    """The shape of an image."""
    image = _field(metadata, "input")
    shape: Any = _field(image, "shape") if isinstance(image, dict) else None
    _demand(_is_list_of(shape, 3, 1, MAX_SIDE), f"input shape {_brief(shape)} is not [H, W, C]")
    _demand(_field(image, "dtype") == "uint8", f"input dtype {_brief(image.get('dtype'))}, not 'uint8'")
    limits = _field(image, "range")
    _demand(
        _is_list_of(limits, 2, 0, 255) and limits == [0, 255], f"input range {_brief(limits)}, not [0, 255]"
    )
    return tuple(shape)


class Checker:
    """Checks operations one after another.

    Attributes:
      shapes: of the values so far, by name.
      integers: what they are, in an integer network; None in one of float32.
      expected: the tensors that they need.
    """

    def __init__(self, image: Shape, integer: bool) -> None:
        self.shapes: dict[str, Shape] = {"image": image}
        self.integers = {"image": Integers("u8")} if integer else None
        self.expected = Expected()

    def check(self, where: str, operation: Any) -> Checked:
        """Checks one operation; returns its shape and the multiply-adds for each of its numbers."""
        _demand(isinstance(operation, dict), f"{where} is not an object")
        op, inputs, out = _field(operation, "op"), _field(operation, "in"), _field(operation, "out")
        kinds = KINDS if self.integers is None else _ALL_KINDS
        _demand(isinstance(op, str) and op in kinds, f"{where}: unknown op {_brief(op)}")
        kind, where = kinds[op], f"{where} ({op})"
        fields = {"op", "in", "out"} | kind.fields | set(kind.newer)
        if self.integers is not None:
            fields |= _INTEGER_FIELDS.get(op, frozenset())
        unknown = sorted(set(operation) - fields)
        _demand(not unknown, f"{where}: unknown field {_brief(unknown[:1])}")
        _demand(
            isinstance(inputs, list)
            and kind.inputs[0] <= len(inputs) <= kind.inputs[1]
            and all(isinstance(name, str) and name in self.shapes for name in inputs),
            f"{where}: inputs {_brief(inputs)} are not made by the operations before it",
        )
        _demand(isinstance(out, str) and 1 <= len(out) <= 64, f"{where}: output name {_brief(out)}")
        _demand(out not in self.shapes, f"{where}: output {_brief(out)} is made twice")
        shapes = [self.shapes[name] for name in inputs]
        shape, cost = kind.check(where, operation, shapes, self.expected)
        if self.integers is not None:
            given = [self.integers[name] for name in inputs]
            self.integers[out] = _check_integers(where, operation, shapes, given)
        else:
            _demand(operation.get("weights") != "int8", f"{where}: weights 'int8' in a network of float32")
        self.shapes[out] = shape
        return shape, cost


_ALL_KINDS = {**KINDS, **_INTEGER_KINDS}


def features(metadata: dict[str, Any]) -> list[str]:
    """The features of version 2 that the operations and the metadata use, in ascending order.

    Args:
      metadata: the JSON object ``binwrn``, with a list of operations, checked or not.
    """
    used = {"temperature"} & set(metadata)  # of probabilities, which no reader of this project computes
    for operation in metadata["operations"]:
        op = operation.get("op") if isinstance(operation, dict) else None
        if isinstance(op, str) and op in _ALL_KINDS:
            kind = _ALL_KINDS[op]
            used |= {kind.feature} - {""}
            used |= {feature for field, feature in kind.newer.items() if field in operation}
            if operation.get("weights") == "int8":
                used = used - {"float_kernels"} | {"int8"}
            if _TYPE & set(operation):
                used.add("int8")
    return sorted(used)


def _check_features(metadata: dict[str, Any]) -> None:
    """Checks that the file uses the features that it says it requires, and no others."""
    used = features(metadata)
    if _field(metadata, "version") == 1:
        new = [name for name in used if name != "temperature"]  # which is an unknown key there
        _demand(not new, f"it uses {', '.join(new)}, which version 1 does not have")
        return
    _demand(used == metadata["requires"], f"it requires {metadata['requires']}, but uses {used}")
    temperature = metadata.get("temperature", 1.0)
    _demand(
        _is_number(temperature, 2**10) and temperature >= 2**-10,
        f"temperature {_brief(temperature)} is no number from 2^-10 to 2^10",
    )


def multiply_adds(metadata: dict[str, Any], shapes: dict[str, Shape]) -> int:
    """Of all operations for one image, as the limit counts them.

    Args:
      metadata: the JSON object ``binwrn``.
      shapes: what `value_shapes` returns of it.
    """
    total = 0
    for operation in metadata["operations"]:
        kind, inputs = _ALL_KINDS[operation["op"]], [shapes[name] for name in operation["in"]]
        shape, cost = kind.check("", operation, inputs, Expected())
        total += math.prod(shape) * cost
    return total


def value_shapes(
    metadata: dict[str, Any], tensor_shapes: dict[str, tuple[np.dtype[Any], Shape]]
) -> dict[str, Shape]:
    """Checks all operations and computes the shape of each value they name.

    Args:
      metadata: the JSON object ``binwrn``.
      tensor_shapes: dtype and shape of each tensor of the file.

    Returns:
      ``{name: (H, W, C)}``, per image, from ``image`` on; the last one, the logits, has ``(C,)``.

    Raises:
      PackedFileError: they are no well-formed network within the limits, or do not fit the tensors.
    """
    image_shape = _check_input(metadata)
    operations = _field(metadata, "operations")
    _demand(
        isinstance(operations, list) and 1 <= len(operations) <= MAX_OPERATIONS,
        f"no list of 1 to {MAX_OPERATIONS} operations",
    )
    _check_features(metadata)
    integer = is_integer(metadata)
    checker = Checker(image_shape, integer)
    expected, shapes = checker.expected, checker.shapes
    activations, work = math.prod(image_shape), 0
    for index, operation in enumerate(operations):
        where = f"operation {index}"
        shape, cost = checker.check(where, operation)
        last = index + 1 == len(operations)
        _demand(
            last or operation["op"] != "global_average", f"{where} (global_average) is not the last operation"
        )
        small = _field(metadata, "version") == 1 or max(shape[:2]) <= MAX_SIDE or last
        _demand(small, f"{where}: a value of shape {shape}, with more than {MAX_SIDE} pixels a side")
        activations += math.prod(shape)
        work += math.prod(shape) * cost
        _demand(activations <= MAX_ACTIVATIONS, f"{where}: more than {MAX_ACTIVATIONS} activations per image")
        _demand(work <= MAX_WORK, f"{where}: more than {MAX_WORK} multiply-adds per image")
    classes = _field(metadata, "num_classes")
    _demand(operations[-1]["op"] == "global_average", "the last operation is not global_average")
    _demand(shape == (classes,), f"the operations end in {shape[0]} logits, but there are {classes} classes")
    expected["golden.image"] = DTYPES["U8"], image_shape
    expected["golden.logits"] = ALL_DTYPES["I32" if integer else "F32"], (classes,)
    for name, wanted in expected.items():
        _demand(name in tensor_shapes, f"tensor {_brief(name)} is missing")
        (dtype, have), (wanted_dtype, want) = tensor_shapes[name], wanted
        _demand(
            dtype == wanted_dtype,
            f"tensor {_brief(name)} has {dtype}, but the operations need {wanted_dtype}",
        )
        fits = have == want or (want == (0,) and len(have) == 1)
        _demand(fits, f"tensor {_brief(name)} has {have}, but the operations need {want}")
    _demand(expected.uncoded_bytes <= MAX_DATA, f"more than {MAX_DATA} bytes of tensors")
    unused = sorted(set(tensor_shapes) - set(expected))
    _demand(not unused, f"tensor {_brief(unused[:1])} is used by no operation")
    return shapes


# --- coded kernels (version 2, "entropy") -------------------------------------------------------------------

KERNEL_WEIGHTS = 9  # of a 3x3 filter
PATTERNS = 1 << KERNEL_WEIGHTS
SCALE_BITS = 13  # the frequencies of a table sum to 2^13
SCALE = 1 << SCALE_BITS
LOW = 1 << 16  # a state is at least this between two patterns; words have 16 bits
MAX_STREAM = 1 << 16  # patterns
MAX_RATIO = 16  # how often a coded kernel may be smaller than the bits that it stands for
LENGTHS = PATTERNS // 4  # words of a table's lengths, 4 bits each
TABLES_AT_ONCE = 32  # kernels that are decoded together: bounds the memory for their tables
BLOCK = 1 << 20  # patterns that are turned into bits at a time


def pattern_blocks(outputs: int, channels: int) -> Iterator[slice]:
    """Runs of output channels of about `BLOCK` patterns."""
    step = max(1, BLOCK // channels)
    for first in range(0, outputs, step):
        yield slice(first, first + step)


def bits_of(patterns: np.ndarray) -> np.ndarray:
    """The packed bits of 3x3 patterns: the inverse of `binwrn_jax.deploy.entropy.patterns_of`.

    Args:
      patterns: uint16 ``[C_out, C]``.

    Returns:
      uint8 ``[C_out, ceil(9 C / 8)]``, padded with 0 bits.
    """
    outputs, channels = patterns.shape
    result = np.empty((outputs, -(-KERNEL_WEIGHTS * channels // 8)), np.uint8)
    for rows in pattern_blocks(outputs, channels):
        taps = np.empty((len(patterns[rows]), KERNEL_WEIGHTS, channels), np.uint8)
        for tap in range(KERNEL_WEIGHTS):
            taps[:, tap] = patterns[rows] >> tap & 1
        result[rows] = np.packbits(taps.reshape(len(taps), -1), axis=1, bitorder="little")
    return result


@dataclasses.dataclass(frozen=True)
class CodedKernel:
    """A coded kernel and the shape of the bits in it.

    Attributes:
      words: uint16 ``[n]``.
      outputs: C_out.
      channels: C, the input channels that each output channel sees.
    """

    words: np.ndarray
    outputs: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Size of the decoded bits."""
        return self.outputs * -(-KERNEL_WEIGHTS * self.channels // 8)


@dataclasses.dataclass(frozen=True)
class _Streams:
    """A kernel's table and where its streams lie in its words."""

    name: str  # of the kernel
    freq: np.ndarray  # int64 [512]
    begin: np.ndarray  # int64 [S]
    end: np.ndarray  # int64 [S]
    patterns: np.ndarray  # int64 [S], patterns of each stream


def _read_table(words: np.ndarray) -> tuple[np.ndarray, int]:
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


def _read_streams(name: str, coded: CodedKernel) -> _Streams:
    try:
        return _parse(name, coded)
    except PackedFileError as error:
        raise PackedFileError(f"coded kernel {_brief(name)}: {error}") from error


def _parse(name: str, coded: CodedKernel) -> _Streams:
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


def _decode_together(kernels: Sequence[CodedKernel], parsed: Sequence[_Streams]) -> list[np.ndarray]:
    """The patterns of some kernels, uint16 ``[C_out, C]`` each, all streams side by side."""

    def demand(good: np.ndarray, message: str) -> None:
        if not good.all():
            raise PackedFileError(f"coded kernel {_brief(parsed[kernel[np.argmin(good)]].name)}: {message}")

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


def decode_kernels(kernels: Mapping[str, CodedKernel]) -> dict[str, np.ndarray]:
    """Decodes kernels; those that come together are decoded side by side, which is faster.

    Args:
      kernels: by name.

    Returns:
      Packed bits by name, uint8 ``[C_out, ceil(9 C / 8)]`` each, equal to those that were coded.

    Raises:
      PackedFileError: a kernel breaks a rule of docs/packed-format-2.md; the message names it.
    """
    parsed = {name: _read_streams(name, coded) for name, coded in kernels.items()}
    names = list(kernels)
    result: dict[str, np.ndarray] = {}
    for first in range(0, len(names), TABLES_AT_ONCE):
        some = names[first : first + TABLES_AT_ONCE]
        decoded = _decode_together([kernels[name] for name in some], [parsed[name] for name in some])
        result |= {name: bits_of(patterns) for name, patterns in zip(some, decoded, strict=True)}
    return result


# --- what the tensors hold ----------------------------------------------------------------------------------


def checksum(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256, in hex, over the bytes of all convolutions in order of the operations."""
    digest = hashlib.sha256()
    for operation in metadata["operations"]:
        if operation["op"] == "conv":
            digest.update(np.ascontiguousarray(tensors[operation["tensor"]]).data)
    return digest.hexdigest()


def _magnitude_after(operation: dict[str, Any], kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The largest magnitude of each channel after a convolution of channels with magnitudes `x`."""
    x = x.reshape(operation.get("groups", 1), -1)  # [groups, channels that each sees]
    outputs = operation["channels"][1] // len(x)  # of each group
    if kernel.dtype == np.uint8:
        return np.repeat(math.prod(operation["window"]) * x.sum(1), outputs)
    result = np.empty(len(kernel))
    together = max(1, UNPACKED // math.prod(kernel.shape[1:]))
    for first in range(0, len(kernel), together):
        some = slice(first, first + together)
        group = np.arange(first, min(first + together, len(kernel))) // outputs
        result[some] = (np.abs(kernel[some]).sum((1, 2), dtype=np.float64) * x[group]).sum(1)
    return result


def largest_value(
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    shapes: dict[str, Shape],
    most: float = math.inf,
) -> float:
    """A bound of the magnitudes of all results and partial sums, whatever the image; in float64.

    Args:
      metadata: the JSON object ``binwrn``.
      tensors: the arrays by name.
      shapes: what `value_shapes` returns of them.
      most: magnitudes are cut to this before the next operation; the bound is of what was before.

    Returns:
      The bound; where it exceeds MAX_RANGE, that of the first result that does.
    """
    magnitudes = {"image": np.full(shapes["image"][2], 255.0)}  # of each value, by channel
    last_use = {name: i for i, op in enumerate(metadata["operations"]) for name in op["in"]}
    bound = 255.0
    for index, operation in enumerate(metadata["operations"]):
        x = magnitudes[operation["in"][0]]
        terms = 1  # of a sum that is divided by their number afterwards
        if operation["op"] == "affine":
            scale, offset = (
                np.abs(np.float64(tensors[f"{operation['tensor']}.{part}"])) for part in ("scale", "offset")
            )
            limit = max(abs(float(_field(operation, end) or 0)) for end in ("min", "max"))
            x = np.maximum(scale * x + offset, limit)
            if "max" in operation and _field(operation, "min") is not None:
                bound = max(bound, float(x.max()))
                x = np.full(len(x), limit)
        elif operation["op"] == "conv":
            x = _magnitude_after(operation, tensors[operation["tensor"]], x)
        elif operation["op"] == "pad_channels":
            x = np.pad(x, (0, operation["channels"] - len(x)))
        elif operation["op"] == "pad":
            x = np.maximum(x, abs(float(operation["value"])))
        elif operation["op"] == "add":
            x = x + magnitudes[operation["in"][1]]
        elif operation["op"] == "product":
            x = x * magnitudes[operation["in"][1]]
        elif operation["op"] == "concat":
            x = np.concatenate([magnitudes[name] for name in operation["in"]])
        elif operation["op"] == "elementwise":
            if operation["function"] in ("sigmoid", "hard_sigmoid", "tanh"):
                x = np.ones(len(x))
            x = x * max(1.0, abs(float(operation.get("alpha", 1))))
        elif operation["op"] == "average_pool":
            terms = math.prod(operation["window"])
        elif operation["op"] == "global_average" or operation.get("kind") == "average":
            terms = math.prod(shapes[operation["in"][0]][:2])
        bound = max(bound, terms * float(x.max()))
        if bound > MAX_RANGE:
            break
        magnitudes[operation["out"]] = np.minimum(x, most)
        for name in (*operation["in"], operation["out"]):
            if last_use.get(name, -1) <= index:
                magnitudes.pop(name, None)
    return bound


def is_bounded(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bool:
    """Whether no image can lead to values that float32 does not hold.

    Where this cannot be shown, as in very deep networks, no single operation may turn values up to MAX_VALUE
    into values beyond MAX_RANGE, and running the network checks that none exceeds MAX_VALUE.

    Raises:
      PackedFileError: an operation does.
    """
    shapes = value_shapes(metadata, {name: (x.dtype, x.shape) for name, x in tensors.items()})
    if is_integer(metadata):
        return True
    if largest_value(metadata, tensors, shapes) <= MAX_RANGE:
        return True
    _demand(
        largest_value(metadata, tensors, shapes, MAX_VALUE) <= MAX_RANGE,
        "its values can exceed what float32 holds: a scale, offset or minimum is too large",
    )
    return False


def check_tensors(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Checks what the tensors hold; their dtypes and shapes are those that `value_shapes` accepts.

    Raises:
      PackedFileError: wrong checksum, a padding bit that is set, a number that is not finite, values that
        can become too large.
    """
    _demand(
        _field(metadata, "sha256") == checksum(metadata, tensors), "the bits do not have the checksum stated"
    )
    for operation in metadata["operations"]:
        if operation["op"] == "conv" and "weights" not in operation:
            depth = operation["channels"][0] // operation.get("groups", 1)
            used = math.prod(operation["window"]) * depth % 8
            last = tensors[operation["tensor"]][:, -1]
            _demand(not used or not (last >> used).any(), f"padding bits of {operation['tensor']!r} are set")
        if operation.get("weights") == "int8":
            kernel = tensors[operation["tensor"]]
            _demand(bool((kernel > -128).all()), f"a weight of {operation['tensor']!r} is -128")
    for name, tensor in tensors.items():
        _demand(tensor.dtype.kind != "f" or bool(np.isfinite(tensor).all()), f"tensor {name!r} is not finite")
    is_bounded(metadata, tensors)


class Contents(NamedTuple):
    """What `read` finds, with coded kernels decoded.

    Attributes:
      metadata: the JSON object ``binwrn``, see `without_coding`.
      tensors: the arrays by name, read-only.
      checksum: the SHA-256 of the whole file, in hex, which was checked; None in an older file without one.
      coded: bytes in the file of each kernel that was coded there, by its name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    checksum: str | None
    coded: dict[str, int]


def without_coding(metadata: dict[str, Any]) -> dict[str, Any]:
    """The JSON object ``binwrn`` of the same model in a file whose kernels are not coded.

    It is of version 1 where that suffices.
    """
    if metadata["version"] == 1:
        return metadata
    operations = [
        {key: value for key, value in operation.items() if key != "coding"}
        for operation in metadata["operations"]
    ]
    requires = [name for name in metadata["requires"] if name != "entropy"]
    if set(requires) <= {"temperature"}:
        rest = {key: value for key, value in metadata.items() if key != "requires"}
        return {**rest, "version": 1, "operations": operations}
    return {**metadata, "requires": requires, "operations": operations}


def _decode(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, with the bits in the place of coded kernels."""
    kernels = {
        operation["tensor"]: CodedKernel(
            tensors[operation["tensor"] + ".coded"],
            operation["channels"][1],
            operation["channels"][0] // operation.get("groups", 1),
        )
        for operation in metadata["operations"]
        if "coding" in operation
    }
    plain = {name: tensor for name, tensor in tensors.items() if tensor.dtype != CODED_DTYPE}
    return {**plain, **decode_kernels(kernels)}


def read(path: str | os.PathLike[str]) -> Contents:
    """Reads and checks a packed file.

    Raises:
      PackedFileError: it is not a packed model, is damaged, or breaks a rule of the format.
      OSError: it cannot be read at all.
    """
    with open(path, "rb") as file:
        header = read_header(file)
        metadata, entries = header.metadata, header.entries
        value_shapes(metadata, {name: (entry.dtype, entry.shape) for name, entry in entries.items()})
        size = max(entry.end for entry in entries.values())
        data = file.read(size)
    _demand(len(data) == size, "the file became shorter while it was read")
    if header.checksum is not None:
        found = file_checksum(header.raw, header.checksum, data)
        _demand(found == header.checksum, "damaged: the file does not have the checksum that it states")
    tensors = {
        name: np.frombuffer(data, entry.dtype, math.prod(entry.shape), entry.begin).reshape(entry.shape)
        for name, entry in entries.items()
    }
    coded = {name.removesuffix(".coded"): x.nbytes for name, x in tensors.items() if x.dtype == CODED_DTYPE}
    if coded:
        tensors = _decode(metadata, tensors)
    metadata = without_coding(metadata)
    check_tensors(metadata, tensors)
    return Contents(metadata, tensors, header.checksum, coded)


# --- running ------------------------------------------------------------------------------------------------


def signs(bits: np.ndarray, window: list[int], channels: list[int]) -> np.ndarray:
    """The weights of a convolution, float32 ``[F_h, F_w, C_in, C_out]`` of -1 and +1.

    Args:
      bits: uint8 ``[C_out, ceil(K / 8)]``, K = F_h F_w C_in, least significant bit first.
      window: ``[F_h, F_w]``.
      channels: ``[C_in, C_out]``.

    >>> signs(np.array([[0b00000101]], np.uint8), [1, 1], [3, 1]).ravel().tolist()
    [1.0, -1.0, 1.0]
    """
    rows = np.unpackbits(bits, axis=1, count=math.prod(window) * channels[0], bitorder="little")
    kernel = rows.reshape(channels[1], *window, channels[0]).transpose(1, 2, 3, 0)
    return np.where(kernel, np.float32(1), np.float32(-1))


def _tap(kernel: np.ndarray, tap: int, channels: int) -> np.ndarray:
    """The weights at one place of a window, float32 ``[C, C_out]``; `tap` counts the places row by row.

    Args:
      kernel: bits, uint8 ``[C_out, ceil(K / 8)]``, or float32 ``[C_out, F_h, F_w, C]``.
      tap: the place.
      channels: C, the input channels that each output channel sees.
    """
    if kernel.dtype != np.uint8:
        return kernel.reshape(len(kernel), -1, channels)[:, tap].T  # float32, or int8 of an integer network
    first = tap * channels
    columns = kernel[:, first // 8 : -(-(first + channels) // 8)]
    rows = np.unpackbits(columns, axis=1, bitorder="little")[:, first % 8 : first % 8 + channels]
    return np.where(rows.T, np.float32(1), np.float32(-1))


class Place(NamedTuple):
    """One place of a sliding window: which pixels of the result have an input there, and which inputs."""

    tap: int
    out: tuple[slice, slice]
    into: tuple[slice, slice]


def _places(operation: dict[str, Any], shape: Shape) -> Iterator[Place]:
    """The places of a window that slides over images ``(H, W, C)``, without what lies in the padding."""
    window, dilation = operation["window"], operation.get("dilation", (1, 1))
    size = _slide("", operation, shape)
    axes = []
    for axis in range(2):
        step, before = operation["stride"][axis], operation["pads"][axis][0]
        slices = []
        for at in range(0, window[axis] * dilation[axis], dilation[axis]):
            first = max(0, -((at - before) // step))
            last = min(size[axis] - 1, (shape[axis] - 1 + before - at) // step)
            begin = first * step + at - before
            slices.append(
                (slice(first, last + 1), slice(begin, begin + (last - first) * step + 1, step), last >= first)
            )
        axes.append(slices)
    for y, (out_y, in_y, some_y) in enumerate(axes[0]):
        for x, (out_x, in_x, some_x) in enumerate(axes[1]):
            if some_y and some_x:
                yield Place(y * window[1] + x, (out_y, out_x), (in_y, in_x))


def _convolve(x: np.ndarray, operation: dict[str, Any], kernel: np.ndarray) -> np.ndarray:
    (c_in, c_out), shape = operation["channels"], x.shape[1:]
    groups = operation.get("groups", 1)
    depth, outputs = c_in // groups, c_out // groups  # of each group
    result = np.zeros((len(x), *_slide("", operation, shape), c_out), x.dtype)
    for place in _places(operation, shape):
        part = x[:, *place.into]
        for some in _blocks(c_out, outputs, max(1, UNPACKED // depth)):
            weights = _tap(kernel[some], place.tap, depth)
            count = -(-weights.shape[1] // outputs)  # groups
            first = some.start // outputs * depth
            product = _product_of_groups(part[..., first : first + count * depth], weights, count)
            result[:, *place.out, some] += product.reshape(*part.shape[:3], -1)
    return result


def _blocks(channels: int, outputs: int, most: int) -> Iterator[slice]:
    """Runs of output channels, `most` or fewer: whole groups of `outputs`, or parts of one."""
    whole = max(1, most // outputs) * outputs
    for group in range(0, channels, whole):
        end = min(group + whole, channels)
        step = min(most, whole)
        for first in range(group, end, step):
            yield slice(first, min(first + step, end))


def _product_of_groups(x: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    """Each group of channels times its weights.

    Args:
      x: ``[N, H, W, groups C]``.
      weights: ``[C, groups O]``.
      groups: their number.

    Returns:
      ``[..., groups O]``.
    """
    depth = len(weights)
    if groups == 1:
        return x.reshape(-1, depth) @ weights
    if depth == 1:  # depthwise
        return x[..., None] * weights.reshape(groups, -1)
    by_group = x.reshape(-1, groups, depth).transpose(1, 0, 2)
    kernels = weights.reshape(depth, groups, -1).transpose(1, 0, 2)
    return (by_group @ kernels).transpose(1, 0, 2)


def _average_pool(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    size = _slide("", operation, x.shape[1:])
    total = np.zeros((len(x), *size, x.shape[3]), np.float32)
    inside = np.zeros((*size, 1), np.float32)
    for place in _places(operation, x.shape[1:]):
        total[:, *place.out] += x[:, *place.into]
        inside[place.out] += 1
    total /= inside
    return total


def _max_pool(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    result = np.full((len(x), *_slide("", operation, x.shape[1:]), x.shape[3]), -np.inf, np.float32)
    for place in _places(operation, x.shape[1:]):
        view = result[:, *place.out]
        np.maximum(view, x[:, *place.into], out=view)
    return result


def _pad(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    value = np.float32(operation["value"])
    return np.pad(x, ((0, 0), *operation["pads"], (0, 0)), constant_values=value)


def _resize(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    (down, across), (count, height, width, channels) = operation["factor"], x.shape
    if operation["method"] == "nearest":
        every = np.broadcast_to(x[:, :, None, :, None], (count, height, down, width, across, channels))
        return every.reshape(count, height * down, width * across, channels)
    result = np.empty((count, height * down, width * across, channels), np.float32)
    above, below, low = _between(height, down)
    left, right, part = _between(width, across)
    part = part[:, None]
    for y in range(height * down):
        row = x[:, above[y]] * (1 - low[y]) + x[:, below[y]] * low[y]
        result[:, y] = row[:, left] * (1 - part) + row[:, right] * part
    return result


def _between(size: int, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of an enlarged row: the two pixels that it lies between, and the second one's weight."""
    place = 2 * np.arange(size * factor) + 1 - factor  # in steps of 1 / (2 factor)
    first, rest = np.divmod(place, 2 * factor)
    ends = (np.clip(first + more, 0, size - 1) for more in (0, 1))
    return *ends, np.float32(rest / (2 * factor))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


# erfc(x) = t exp(-x^2 + p(t)), t = 1 / (1 + x / 2) for x >= 0, with a relative error below 1.2e-7:
# W. H. Press and others, Numerical Recipes, 2nd edition, section 6.2.
_ERFC = (
    *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
    *(-0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223),
)


def _erfc(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    t = 1 / (1 + size / 2)
    tail = t * np.exp(np.polyval(_ERFC, t) - size * size)
    return np.where(x < 0, 2 - tail, tail)


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3, 0, 6) / 6


# Of float64, so that a result in float32 has little error of its own.
ELEMENTWISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "gelu": lambda x: x * _erfc(-x / math.sqrt(2)) / 2,
    # (1 + tanh(u)) / 2 = sigmoid(2 u)
    "gelu_tanh": lambda x: x * _sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
}


def _elementwise(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    if operation["function"] == "leaky_relu":
        return np.where(x >= 0, x, np.float32(operation["alpha"]) * x)
    function, flat = ELEMENTWISE[operation["function"]], x.reshape(-1)
    result = np.empty(flat.shape, np.float32)
    for first in range(0, len(flat), AT_A_TIME):
        some = slice(first, first + AT_A_TIME)
        result[some] = function(flat[some].astype(np.float64))
    return result.reshape(x.shape)


# Those with one input and nothing else than their fields.
_SIMPLE: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "average_pool": _average_pool,
    "max_pool": _max_pool,
    "pad": _pad,
    "resize": _resize,
    "elementwise": _elementwise,
}


def compute(
    operation: dict[str, Any], inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The result of one operation, float32 ``[N, H, W, C]``, or the logits ``[N, C]``.

    Args:
      operation: checked by `value_shapes`.
      inputs: float32 ``[N, H, W, C]``.
      tensors: its arrays by name, among any others.
    """
    op, x = operation["op"], inputs[0]
    if op in _SIMPLE:
        return _SIMPLE[op](x, operation)
    if op == "affine":
        name, low, high = operation["tensor"], _field(operation, "min"), _field(operation, "max")
        y = x * tensors[name + ".scale"] + tensors[name + ".offset"]
        y = y if low is None else np.maximum(y, np.float32(low))
        return y if high is None else np.minimum(y, np.float32(high))
    if op == "conv":
        return _convolve(x, operation, tensors[operation["tensor"]])
    if op == "pad_channels":
        return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, operation["channels"] - x.shape[3])))
    if op == "add":
        return x + inputs[1]
    if op == "product":
        return x * inputs[1]
    if op == "concat":
        return np.concatenate(inputs, axis=3)
    if op == "global_pool":
        reduce = np.max if operation["kind"] == "max" else np.mean
        return reduce(x, (1, 2), keepdims=True)
    return x.mean((1, 2))


# --- running integer networks -------------------------------------------------------------------------------

# Values are int32 arrays of centred integers.


def shift_right(t: np.ndarray, shift: int) -> np.ndarray:
    """R of docs/packed-format-2.md: ``floor((t + 2^(r-1)) / 2^r)``, and t for r = 0; int64.

    >>> shift_right(np.array([18, -18, -19, 17]), 2).tolist()
    [5, -4, -5, 4]
    """
    return (t + (1 << shift - 1)) >> shift if shift else t


def divide(t: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """D of docs/packed-format-2.md: ``floor((2 t + n) / (2 n))``; int64.

    >>> divide(np.array([9, -9, -10]), 6).tolist()
    [2, -1, -2]
    """
    return (2 * t + n) // (2 * n)


def _integer_convolution(x: np.ndarray, operation: dict[str, Any], kernel: np.ndarray) -> np.ndarray:
    depth = operation["channels"][0] // operation.get("groups", 1)
    most = 255 * math.prod(operation["window"]) * depth * (1 if kernel.dtype == np.uint8 else 127)
    # Floats add integers exactly as long as no sum exceeds their fraction.
    exact = np.float32 if most < 1 << 24 else np.float64
    return _convolve(x.astype(exact), operation, kernel).astype(np.int32)


def _integer_average(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    size = _slide("", operation, x.shape[1:])
    total = np.zeros((len(x), *size, x.shape[3]), np.int64)
    inside = np.zeros((*size, 1), np.int64)
    for place in _places(operation, x.shape[1:]):
        total[:, *place.out] += x[:, *place.into]
        inside[place.out] += 1
    return divide(total, inside)


def _integer_max(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    result = np.full((len(x), *_slide("", operation, x.shape[1:]), x.shape[3]), LIMITS["i32"][0], np.int32)
    for place in _places(operation, x.shape[1:]):
        view = result[:, *place.out]
        np.maximum(view, x[:, *place.into], out=view)
    return result


def _integer_resize(x: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    if operation["method"] == "nearest":
        return _resize(x, operation)
    (down, across), wide = operation["factor"], x.astype(np.int64)
    (above, below, low), (left, right, part) = (
        whole_steps(size, factor) for size, factor in zip(x.shape[1:3], (down, across), strict=True)
    )
    low, part = low[:, None, None], part[:, None]
    rows = wide[:, above] * (2 * down - low) + wide[:, below] * low
    return divide(rows[:, :, left] * (2 * across - part) + rows[:, :, right] * part, 4 * down * across)


def whole_steps(size: int, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_between`, the weight in steps of 1 / (2 factor)."""
    first, rest = np.divmod(2 * np.arange(size * factor) + 1 - factor, 2 * factor)
    ends = (np.clip(first + more, 0, size - 1) for more in (0, 1))
    return *ends, rest


_INTEGER_SIMPLE: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "average_pool": _integer_average,
    "max_pool": _integer_max,
    "resize": _integer_resize,
}


def compute_integers(
    operation: dict[str, Any],
    inputs: list[np.ndarray],
    tensors: Mapping[str, np.ndarray],
    source: Integers,
    target: Integers,
) -> np.ndarray:
    """The result of one operation of an integer network: centred integers, int32 ``[N, H, W, C]``.

    Args:
      operation: checked by `value_shapes`.
      inputs: int32 ``[N, H, W, C]``.
      tensors: its arrays by name, among any others.
      source: what its first input is.
      target: what its result is.

    Returns:
      For ``global_average`` the logits, int32 ``[N, C]``.
    """
    op, x = operation["op"], inputs[0]
    low, high = operation.get("low", target.limits[0]), operation.get("high", target.limits[1])

    def clamped(t: np.ndarray, shift: int) -> np.ndarray:
        return np.clip(shift_right(t, shift), low, high).astype(np.int32)

    if op in _INTEGER_SIMPLE:
        return _INTEGER_SIMPLE[op](x, operation).astype(np.int32)
    if op == "conv":
        return _integer_convolution(x, operation, tensors[operation["tensor"]])
    if op == "requantize":
        m, b = (tensors[f"{operation['tensor']}.{part}"].astype(np.int64) for part in ("multiplier", "bias"))
        return clamped(x * m + b, operation["shift"])
    if op == "add":
        first, second = operation.get("multipliers", (1, 1))
        return clamped(np.int64(first) * x + np.int64(second) * inputs[1], operation.get("shift", 0))
    if op == "product":
        t = x.astype(np.int64) * inputs[1] * operation["multiplier"]
        return clamped(t, operation["shift"])
    if op == "table":
        stored = x + source.zero - LIMITS[source.type][0]
        return tensors[operation["tensor"]].astype(np.int32)[stored] - target.zero
    if op == "global_pool":
        if operation["kind"] == "max":
            return x.max((1, 2), keepdims=True)
        return divide(x.sum((1, 2), np.int64, keepdims=True), math.prod(x.shape[1:3])).astype(np.int32)
    if op == "pad":
        widths = ((0, 0), *operation["pads"], (0, 0))
        return np.pad(x, widths, constant_values=np.int32(operation["value"]))
    if op == "global_average":
        return x.sum((1, 2), np.int32)
    return compute(operation, inputs, tensors)  # concat and pad_channels, which compute nothing


class Model:
    """A packed model that can be run.

    Attributes:
      metadata: the JSON object ``binwrn`` of the file.
      tensors: the arrays of the file by name.
      checksum: see `Contents`.
    """

    def __init__(
        self, metadata: dict[str, Any], tensors: dict[str, np.ndarray], checksum: str | None = None
    ) -> None:
        self.metadata, self.tensors, self.checksum = metadata, tensors, checksum
        self._bounded = is_bounded(metadata, tensors)
        shapes = value_shapes(metadata, {name: (x.dtype, x.shape) for name, x in tensors.items()})
        self._images_at_once = max(1, MAX_ACTIVATIONS // sum(math.prod(shape) for shape in shapes.values()))
        self._integers = integers_of(metadata, shapes) if is_integer(metadata) else None
        # After which operation a value is needed no more.
        self._last_use = {name: i for i, op in enumerate(metadata["operations"]) for name in op["in"]}

    def __call__(self, images: np.ndarray, chunk: int = 8) -> np.ndarray:
        """Logits float32 ``[N, classes]`` of images ``[N, H, W, C]``, uint8 or floats in 0..255.

        Args:
          images: any N; for an integer network whole numbers.
          chunk: images worked on at a time at most, to bound the memory; fewer if they are large.

        Raises:
          ValueError: the images have another shape, or (`PackedFileError`) a value becomes too large.
        """
        logits = self.raw_logits(images, chunk)
        if self._integers is None:
            return logits
        scale = self._integers[self.metadata["operations"][-1]["out"]].scale
        return (logits.astype(np.float64) * np.asarray(scale)).astype(np.float32)

    def raw_logits(self, images: np.ndarray, chunk: int = 8) -> np.ndarray:
        """The logits as the operations make them: int32 of an integer network, else float32.

        Arguments and errors are those of calling the model. ``golden.logits`` are of this kind.
        """
        shape = tuple(self.metadata["input"]["shape"])
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"images of shape {images.shape}, but the model takes (N, {', '.join(map(str, shape))})"
            )
        chunk = min(chunk, self._images_at_once)
        logits = [self._run(images[i : i + chunk]) for i in range(0, len(images), chunk)]
        dtype = np.float32 if self._integers is None else np.int32
        return np.concatenate([np.empty((0, self.metadata["num_classes"]), dtype), *logits])

    def _run(self, images: np.ndarray) -> np.ndarray:
        if self._integers is not None and not np.array_equal(images, images.astype(np.uint8)):
            raise ValueError("images of an integer network are whole numbers from 0 to 255")
        values = {"image": images.astype(np.float32 if self._integers is None else np.int32)}
        for index, operation in enumerate(self.metadata["operations"]):
            result = self._apply(operation, [values[name] for name in operation["in"]])
            if not self._bounded:
                small = result.min() >= -MAX_VALUE and result.max() <= MAX_VALUE  # false for NaN
                _demand(small, f"value {_brief(operation['out'])} of an image exceeds {MAX_VALUE:.4g}")
            if operation["out"] in self._last_use:
                values[operation["out"]] = result
            for name in operation["in"]:
                if self._last_use[name] == index:
                    values.pop(name, None)
        return result

    def _apply(self, operation: dict[str, Any], inputs: list[np.ndarray]) -> np.ndarray:
        if self._integers is None:
            return compute(operation, inputs, self.tensors)
        kinds = self._integers[operation["in"][0]], self._integers[operation["out"]]
        return compute_integers(operation, inputs, self.tensors, *kinds)


def load(path: str | os.PathLike[str]) -> Model:
    """Reads a packed file, checks it, and returns it ready to run; see `read` for what it raises."""
    contents = read(path)
    return Model(contents.metadata, contents.tensors, contents.checksum)


def main(arguments: list[str]) -> int:
    """``numpy_reader.py MODEL IMAGE.npy``: prints the class of each image with its name and logits."""
    if len(arguments) != 2:
        print("usage: python numpy_reader.py MODEL.packed IMAGE.npy", file=sys.stderr)
        return 2
    try:
        model = load(arguments[0])
        images = np.load(arguments[1], allow_pickle=False)
        logits = model(images[None] if images.ndim == 3 else images)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if model.checksum is None:
        print(f"note: {arguments[0]}: {OLDER}", file=sys.stderr)
    names = model.metadata["class_names"]
    for row in logits:
        best = int(row.argmax())
        print(best, names[best] if names else "-", " ".join(f"{value:.5g}" for value in row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
