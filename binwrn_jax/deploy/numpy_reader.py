"""Reads and runs a packed model file with NumPy alone: the definition of the format as a program.

This one file needs nothing else of binwrn-jax and may be copied out of it (MIT licence). It checks
everything that docs/packed-format.md demands before it allocates anything; whatever is wrong raises
`PackedFileError` with one line. In Python:

    model = load("model.packed")
    logits = model(images)                # uint8 [N, H, W, C] -> float32 [N, classes]

On the command line, with images as uint8 [H, W, C] or [N, H, W, C] in NumPy's format:

    python numpy_reader.py model.packed image.npy
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import stat
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

FORMAT = "binwrn-packed"
VERSION = 1

# Limits that every reader enforces. The largest network of the paper, 20-20, is far inside: a header of
# 8 kB, 13.5 MB of tensors, 15 million activations and 16 billion multiply-adds per image.
MAX_HEADER = 16 << 20  # bytes
MAX_DATA = 256 << 20  # bytes of all tensors together
MAX_OPERATIONS = 4096
MAX_SIDE = 4096  # height, width and channels of the input
MAX_CHANNELS = 65536  # of any other value, and classes
MAX_WINDOW = 64  # and strides
MAX_ACTIVATIONS = 1 << 27  # float32 values of all results together, per image
MAX_WORK = 1 << 38  # multiply-adds of all operations together, per image

DTYPES = {"U8": np.dtype("u1"), "F32": np.dtype("<f4")}

Shape = tuple[int, ...]


class PackedFileError(ValueError):
    """The file is not a packed model that this version reads; the message is one line."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise PackedFileError(message)


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _brief(value: Any) -> str:
    """A value from the file as it may stand in a message: short and on one line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the container ------------------------------------------------------------------------------------------


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    _demand(len(result) == len(pairs), "a JSON object in the header has a key twice")
    return result


def _refuse_constant(name: str) -> None:
    raise PackedFileError(f"the header's JSON has the value {name}")


def _parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(
            text, object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
        )
    except PackedFileError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers too long, nested too deeply
        raise PackedFileError(f"{what} is not valid JSON ({type(error).__name__})") from error
    _demand(isinstance(value, dict), f"{what} is not a JSON object")
    return value


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its dtype, shape, and bytes from ``begin`` to ``end`` of the data."""

    dtype: np.dtype
    shape: Shape
    begin: int
    end: int


def read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Entry], int]:
    """Reads and checks the container's header.

    Args:
      file: opened in binary mode, at its start.

    Returns:
      ``(metadata, entries, data_start)``: the JSON object called ``binwrn``, the tensors by name, and
      the position of their first byte in the file.

    Raises:
      PackedFileError: it is no safetensors file of a packed model, or its lengths do not fit.
    """
    status = os.fstat(file.fileno())
    _demand(stat.S_ISREG(status.st_mode), "not a regular file")
    size = status.st_size
    start = file.read(8)
    _demand(len(start) == 8, f"not a packed model: only {size} bytes long")
    (length,) = struct.unpack("<Q", start)
    _demand(length <= MAX_HEADER, "not a packed model: no header of a safetensors file")
    _demand(8 + length <= size, f"truncated: a header of {length} bytes in a file of {size}")
    text = file.read(length)
    _demand(
        len(text) == length and text.startswith(b"{"), "not a packed model: no header of a safetensors file"
    )
    header = _parse_json(text, "the header")

    outer = header.pop("__metadata__", None)
    _demand(
        isinstance(outer, dict) and isinstance(outer.get("binwrn"), str),
        "a safetensors file, but no packed model: it has no metadata called 'binwrn'",
    )
    metadata = _parse_json(outer["binwrn"], "the metadata 'binwrn'")
    _demand(metadata.get("format") == FORMAT, f"format {_brief(metadata.get('format'))}, not {FORMAT!r}")
    version = metadata.get("version")
    _demand(_is_int(version, 1, 2**31), f"version {_brief(version)} is no version number")
    _demand(version == VERSION, f"version {version}, but this program reads version {VERSION}: update it")
    _demand((8 + length) % 8 == 0, "the tensors do not begin at a multiple of 8 bytes")

    entries = {}
    for name, item in header.items():
        _demand(
            isinstance(item, dict) and set(item) == {"dtype", "shape", "data_offsets"}, "bad tensor entry"
        )
        dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
        _demand(dtype in ("U8", "F32"), f"tensor {_brief(name)} has dtype {_brief(dtype)}, not U8 or F32")
        _demand(
            isinstance(shape, list) and len(shape) <= 3 and all(_is_int(n, 1, MAX_DATA) for n in shape),
            f"tensor {_brief(name)} has the shape {_brief(shape)}",
        )
        _demand(
            isinstance(offsets, list) and len(offsets) == 2 and all(_is_int(n, 0, MAX_DATA) for n in offsets),
            f"tensor {_brief(name)} has the offsets {_brief(offsets)}",
        )
        entry = Entry(DTYPES[dtype], tuple(shape), *offsets)
        _demand(
            entry.end - entry.begin == math.prod(shape) * entry.dtype.itemsize,
            f"tensor {_brief(name)}: shape {shape} does not fit its {entry.end - entry.begin} bytes",
        )
        _demand(entry.begin % entry.dtype.itemsize == 0, f"tensor {_brief(name)} is not aligned")
        entries[name] = entry
    position = 0
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].begin):
        _demand(entry.begin == position, f"gap or overlap before the bytes of tensor {_brief(name)}")
        position = entry.end
    _demand(
        8 + length + position == size,
        f"the file has {size} bytes, but its header announces {8 + length + position}: truncated or damaged",
    )
    return metadata, entries, 8 + length


# --- the operations -----------------------------------------------------------------------------------------

FIELDS = {
    "affine": {"tensor", "min"},
    "conv": {"tensor", "window", "stride", "pads", "channels"},
    "average_pool": {"window", "stride", "pads"},
    "max_pool": {"window", "stride", "pads"},
    "pad_channels": {"channels"},
    "add": set(),
    "global_average": set(),
}


def _pair(value: Any, low: int, high: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_int(n, low, high) for n in value)


def _slide(where: str, operation: dict[str, Any], shape: Shape) -> tuple[int, int]:
    """Height and width of what a window sliding over an image gives."""
    window, stride, pads = operation.get("window"), operation.get("stride"), operation.get("pads")
    _demand(_pair(window, 1, MAX_WINDOW), f"{where}: window {_brief(window)}")
    _demand(_pair(stride, 1, MAX_WINDOW), f"{where}: stride {_brief(stride)}")
    # Padding below the window's size: each window has a pixel of the image in it.
    _demand(
        isinstance(pads, list)
        and len(pads) == 2
        and all(_pair(pad, 0, size - 1) for pad, size in zip(pads, window, strict=True)),
        f"{where}: pads {_brief(pads)} with a window of {window}",
    )
    result = tuple(
        (size + sum(pad) - side) // step + 1
        for size, pad, side, step in zip(shape, pads, window, stride, strict=False)
    )
    _demand(
        min(result) >= 1, f"{where}: a window of {window} does not fit into {shape[0]} x {shape[1]} pixels"
    )
    return result


def value_shapes(
    metadata: dict[str, Any], tensor_shapes: dict[str, tuple[np.dtype, Shape]]
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
    image = metadata.get("input")
    image_shape = image.get("shape") if isinstance(image, dict) else None
    _demand(
        isinstance(image_shape, list)
        and len(image_shape) == 3
        and all(_is_int(n, 1, MAX_SIDE) for n in image_shape),
        f"input shape {_brief(image_shape)} is not [H, W, C]",
    )
    _demand(image.get("dtype") == "uint8", f"input dtype {_brief(image.get('dtype'))}, not 'uint8'")
    _demand(image.get("range") == [0, 255], f"input range {_brief(image.get('range'))}, not [0, 255]")
    operations = metadata.get("operations")
    _demand(
        isinstance(operations, list) and 1 <= len(operations) <= MAX_OPERATIONS,
        f"no list of 1 to {MAX_OPERATIONS} operations",
    )

    expected: dict[str, tuple[np.dtype, Shape]] = {}
    shapes: dict[str, Shape] = {"image": tuple(image_shape)}
    activations, work = math.prod(image_shape), 0

    def expect(where: str, name: Any, suffixes: tuple[str, ...], dtype: str, shape: Shape) -> None:
        _demand(isinstance(name, str), f"{where}: tensor {_brief(name)}")
        for suffix in suffixes:
            _demand(name + suffix not in expected, f"{where}: tensor {_brief(name)} is used twice")
            expected[name + suffix] = DTYPES[dtype], shape

    for index, operation in enumerate(operations):
        where = f"operation {index}"
        _demand(isinstance(operation, dict), f"{where} is not an object")
        op, inputs, out = operation.get("op"), operation.get("in"), operation.get("out")
        _demand(isinstance(op, str) and op in FIELDS, f"{where}: unknown op {_brief(op)}")
        where = f"{where} ({op})"
        unknown = set(operation) - {"op", "in", "out"} - FIELDS[op]
        _demand(not unknown, f"{where}: unknown field {_brief(sorted(unknown)[:1])}")
        _demand(
            isinstance(inputs, list)
            and len(inputs) == (2 if op == "add" else 1)
            and all(isinstance(name, str) and name in shapes for name in inputs),
            f"{where}: inputs {_brief(inputs)} are not made by the operations before it",
        )
        _demand(isinstance(out, str) and 1 <= len(out) <= 64, f"{where}: output name {_brief(out)}")
        _demand(out not in shapes, f"{where}: output {_brief(out)} is made twice")
        x = shapes[inputs[0]]
        cost = 1
        if op == "affine":
            low = operation.get("min")
            finite = type(low) in (int, float) and abs(low) <= 3e38
            _demand(low is None or finite, f"{where}: min {_brief(low)} is no number")
            expect(where, operation.get("tensor"), (".scale", ".offset"), "F32", (x[2],))
            shape = x
        elif op == "conv":
            height, width = _slide(where, operation, x)
            channels = operation.get("channels")
            _demand(
                _pair(channels, 1, MAX_CHANNELS) and channels[0] == x[2],
                f"{where}: channels {_brief(channels)} for an input with {x[2]}",
            )
            cost = math.prod(operation["window"]) * x[2]
            expect(where, operation.get("tensor"), ("",), "U8", (channels[1], -(-cost // 8)))
            shape = (height, width, channels[1])
        elif op in ("average_pool", "max_pool"):
            shape = (*_slide(where, operation, x), x[2])
            cost = math.prod(operation["window"])
        elif op == "pad_channels":
            channels = operation.get("channels")
            _demand(
                _is_int(channels, x[2], MAX_CHANNELS), f"{where}: {_brief(channels)} channels from {x[2]}"
            )
            shape = (x[0], x[1], channels)
        elif op == "add":
            other = shapes[inputs[1]]
            _demand(x == other, f"{where}: values of shapes {x} and {other}")
            shape = x
        else:
            _demand(index + 1 == len(operations), f"{where} is not the last operation")
            shape = (x[2],)
        shapes[out] = shape
        activations += math.prod(shape)
        work += math.prod(shape) * cost
        _demand(activations <= MAX_ACTIVATIONS, f"{where}: more than {MAX_ACTIVATIONS} activations per image")
        _demand(work <= MAX_WORK, f"{where}: more than {MAX_WORK} multiply-adds per image")

    classes = metadata.get("num_classes")
    _demand(operations[-1]["op"] == "global_average", "the last operation is not global_average")
    _demand(_is_int(classes, 1, MAX_CHANNELS), f"num_classes {_brief(classes)}")
    _demand(shape == (classes,), f"the operations end in {shape[0]} logits, but there are {classes} classes")
    names = metadata.get("class_names")
    _demand(
        isinstance(names, list) and len(names) in (0, classes) and all(isinstance(n, str) for n in names),
        f"class_names are not {classes} strings, nor an empty list",
    )
    expected["golden.image"] = DTYPES["U8"], tuple(image_shape)
    expected["golden.logits"] = DTYPES["F32"], (classes,)
    for name, wanted in expected.items():
        found = tensor_shapes.get(name)
        _demand(found is not None, f"tensor {_brief(name)} is missing")
        for have, want in zip(found, wanted, strict=True):
            _demand(have == want, f"tensor {_brief(name)} has {have}, but the operations need {want}")
    unused = sorted(set(tensor_shapes) - set(expected))
    _demand(not unused, f"tensor {_brief(unused[:1])} is used by no operation")
    return shapes


def checksum(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256, in hex, over the bytes of all convolutions in order of the operations."""
    digest = hashlib.sha256()
    for operation in metadata["operations"]:
        if operation["op"] == "conv":
            digest.update(np.ascontiguousarray(tensors[operation["tensor"]]))
    return digest.hexdigest()


def check_tensors(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Checks what the tensors hold; their dtypes and shapes are those that `value_shapes` accepts.

    Raises:
      PackedFileError: wrong checksum, a padding bit that is set, a number that is not finite.
    """
    _demand(metadata.get("sha256") == checksum(metadata, tensors), "the bits do not have the checksum stated")
    for operation in metadata["operations"]:
        if operation["op"] == "conv":
            used = math.prod(operation["window"]) * operation["channels"][0] % 8
            last = tensors[operation["tensor"]][:, -1]
            _demand(not used or not (last >> used).any(), f"padding bits of {operation['tensor']!r} are set")
    for name, tensor in tensors.items():
        _demand(tensor.dtype.kind != "f" or bool(np.isfinite(tensor).all()), f"tensor {name!r} is not finite")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads and checks a packed file.

    Returns:
      ``(metadata, tensors)``: the JSON object ``binwrn`` and the arrays by name, read-only.

    Raises:
      PackedFileError: it is not a packed model, is damaged, or breaks a rule of the format.
      OSError: it cannot be read at all.
    """
    with open(path, "rb") as file:
        metadata, entries, start = read_header(file)
        value_shapes(metadata, {name: (entry.dtype, entry.shape) for name, entry in entries.items()})
        file.seek(start)
        size = max(entry.end for entry in entries.values())
        data = file.read(size)
    _demand(len(data) == size, "the file became shorter while it was read")
    tensors = {
        name: np.frombuffer(data, entry.dtype, math.prod(entry.shape), entry.begin).reshape(entry.shape)
        for name, entry in entries.items()
    }
    check_tensors(metadata, tensors)
    return metadata, tensors


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


def _windows(x: np.ndarray, operation: dict[str, Any], fill: float) -> Iterator[tuple[int, int, np.ndarray]]:
    """For each place (y, x) of a window, what all windows have there: ``[N, H_out, W_out, C]``."""
    window, stride, pads = operation["window"], operation["stride"], operation["pads"]
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    height, width = ((x.shape[1 + i] - window[i]) // stride[i] + 1 for i in (0, 1))
    for i in range(window[0]):
        for j in range(window[1]):
            rows = slice(i, i + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(j, j + (width - 1) * stride[1] + 1, stride[1])
            yield i, j, x[:, rows, columns]


class Model:
    """A packed model that can be run.

    Attributes:
      metadata: the JSON object ``binwrn`` of the file.
      tensors: the arrays of the file by name.
    """

    def __init__(self, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.metadata, self.tensors = metadata, tensors
        self._kernels = {
            op["tensor"]: signs(tensors[op["tensor"]], op["window"], op["channels"])
            for op in metadata["operations"]
            if op["op"] == "conv"
        }
        # After which operation a value is needed no more.
        self._last_use = {name: i for i, op in enumerate(metadata["operations"]) for name in op["in"]}

    def __call__(self, images: np.ndarray, chunk: int = 8) -> np.ndarray:
        """Logits float32 ``[N, classes]`` of images ``[N, H, W, C]``, uint8 or floats in 0..255.

        Args:
          images: any N.
          chunk: images worked on at a time, to bound the memory.

        Raises:
          ValueError: the images have another shape.
        """
        shape = tuple(self.metadata["input"]["shape"])
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"images of shape {images.shape}, but the model takes (N, {', '.join(map(str, shape))})"
            )
        logits = [self._run(images[i : i + chunk]) for i in range(0, len(images), chunk)]
        return np.concatenate([np.empty((0, self.metadata["num_classes"]), np.float32), *logits])

    def _run(self, images: np.ndarray) -> np.ndarray:
        values = {"image": images.astype(np.float32)}
        for index, operation in enumerate(self.metadata["operations"]):
            values[operation["out"]] = self._apply(operation, [values[name] for name in operation["in"]])
            for name in operation["in"]:
                if self._last_use[name] == index:
                    values.pop(name, None)
        return values[self.metadata["operations"][-1]["out"]]

    def _apply(self, operation: dict[str, Any], inputs: list[np.ndarray]) -> np.ndarray:
        op, x = operation["op"], inputs[0]
        if op == "affine":
            name, low = operation["tensor"], operation.get("min")
            y = x * self.tensors[name + ".scale"] + self.tensors[name + ".offset"]
            return y if low is None else np.maximum(y, np.float32(low))
        if op == "conv":
            kernel = self._kernels[operation["tensor"]]
            return sum(
                (part.reshape(-1, part.shape[3]) @ kernel[i, j]).reshape(*part.shape[:3], kernel.shape[3])
                for i, j, part in _windows(x, operation, 0)
            )
        if op == "average_pool":
            inside = np.ones((1, *x.shape[1:3], 1), np.float32)
            total = sum(part for _, _, part in _windows(x, operation, 0))
            return total / sum(part for _, _, part in _windows(inside, operation, 0))
        if op == "max_pool":
            return np.max([part for _, _, part in _windows(x, operation, -np.inf)], axis=0)
        if op == "pad_channels":
            return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, operation["channels"] - x.shape[3])))
        if op == "add":
            return x + inputs[1]
        return x.mean((1, 2))


def load(path: str | os.PathLike[str]) -> Model:
    """Reads a packed file, checks it, and returns it ready to run; see `read` for what it raises."""
    return Model(*read(path))


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
    names = model.metadata["class_names"]
    for row in logits:
        best = int(row.argmax())
        print(best, names[best] if names else "-", " ".join(f"{value:.5g}" for value in row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
