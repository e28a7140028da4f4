"""The packed model file: one bit per convolution weight, everything else folded (docs/packed-format.md).

It has version 1 where that suffices, and else version 2 (docs/packed-format-2.md).

packed = pack(model, golden_image)
write_packed(packed, Path("model.safetensors"))
packed = read_packed("model.safetensors")
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.entropy import encode, worthwhile
from binwrn_jax.deploy.graph_file import content_of, graph_of, place_of
from binwrn_jax.errors import UserError
from binwrn_jax.graph.operations import Graph
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import trace
from binwrn_jax.nn.registry import is_own
from binwrn_jax.store.description import Description
from binwrn_jax.store.model import Model
from binwrn_jax.system.files import replace_file

_log = logging.getLogger("binwrn_jax")
_NO_CHECKSUM = "0" * 64  # stands in the file while its checksum is computed


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """What a packed file holds; the exporters translate it, the readers run it.

    Attributes:
      metadata: the JSON object ``binwrn`` of docs/packed-format.md, with ``operations``.
      bits: ``{'conv{i}': uint8 [C_out, ceil(K / 8)]}`` of the 1-bit kernels, in order of the operations.
      affines: ``{'affine{j}': (scale, offset)}``, both float32 ``[C]``, in order of the operations.
      golden_image: uint8 ``[H, W, C]``.
      golden_logits: float32 ``[classes]``, what `numpy_reader` computes of the image.
      checksum: the SHA-256 of the whole file that it was read from, in hex; None where it was read from no
        packed file, or from an older one, which states none.
      coded: bytes of each kernel that was coded in the file that it was read from; `bits` has it decoded.
      kernels: ``{'conv{i}': float32 [C_out, F_h, F_w, C_in / groups]}``, those that stay float32; int8 in an
        integer network.
      integers: of an integer network, the multipliers, biases and tables by their names in the file.
    """

    metadata: dict[str, Any]
    bits: dict[str, np.ndarray]
    affines: dict[str, tuple[np.ndarray, np.ndarray]]
    golden_image: np.ndarray
    golden_logits: np.ndarray
    checksum: str | None = None
    coded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    integers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def operations(self) -> list[dict[str, Any]]:
        """The network, in order; each has ``op``, ``in``, ``out`` and the fields of its kind."""
        return self.metadata["operations"]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by their names in the file: larger numbers first, so that all of them lie aligned."""
        result = {}
        for name, (scale, offset) in self.affines.items():
            result[name + ".scale"], result[name + ".offset"] = scale, offset
        golden = {"golden.logits": self.golden_logits, "golden.image": self.golden_image}
        found = {**result, **self.kernels, **self.integers, **golden, **self.bits}
        return _aligned(found)

    @property
    def value_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each value that the operations name: ``(H, W, C)``, for the logits ``(classes,)``."""
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}
        return numpy_reader.value_shapes(self.metadata, shapes)

    @property
    def most_numbers(self) -> int:
        """How many numbers the values of one image have that are needed at a time."""
        shapes = self.value_shapes
        last_use = {name: i for i, op in enumerate(self.operations) for name in op["in"]}
        live, most = {"image": math.prod(shapes["image"])}, 0
        for index, op in enumerate(self.operations):
            live[op["out"]] = math.prod(shapes[op["out"]])
            most = max(most, sum(live.values()))
            for name in {*op["in"], op["out"]}:
                if last_use.get(name, -1) <= index:
                    live.pop(name, None)
        return most

    @property
    def ideal_bytes(self) -> int:
        """The 1-bit weights at one bit each, in bytes, rounded up."""
        kernels = (math.prod(self.kernel_shape(name)) for name in self.bits)
        return -(-sum(kernels) // 8)

    @property
    def multiply_adds(self) -> int:
        """Of all operations for one image, as the limit of the format counts them."""
        return numpy_reader.multiply_adds(self.metadata, self.value_shapes)

    @property
    def description(self) -> dict[str, Any]:
        """What ``model.json`` has for a model folder, as far as the file knows it, and ``input``."""
        rest = {key: value for key, value in self.metadata.items() if key not in ("operations", "network")}
        return {
            **rest,
            "model": self.metadata.get("network"),
            "image_shape": self.metadata["input"]["shape"],
            "dataset": self.metadata.get("dataset"),
        }

    def count_plus(self, name: str) -> int:
        """How many weights of the convolution ``name`` are +1, without making floats of them."""
        return int(np.bitwise_count(self.bits[name]).sum())  # padding bits are 0

    @property
    def graph(self) -> Graph:
        """The network as a graph."""
        names = [op["tensor"] for op in self.operations if op["op"] == "conv"]
        kernels = {
            name: self.weights(name).astype(np.int8 if name in self.bits else np.float32) for name in names
        }
        return graph_of(self.operations, self.value_shapes, kernels, self.affines)

    def signs(self, name: str) -> np.ndarray:
        """Bits of the convolution ``name``: float32 ``[F_h, F_w, C_in / groups, C_out]`` of -1 and +1."""
        *window, depth, outputs = self.kernel_shape(name)
        return numpy_reader.signs(self.bits[name], window, [depth, outputs])

    def weights(self, name: str) -> np.ndarray:
        """Weights of the convolution ``name``, 1-bit or not: float32 ``[F_h, F_w, C_in / groups, C_out]``."""
        return self.signs(name) if name in self.bits else self.kernels[name].transpose(1, 2, 3, 0)

    def kernel_shape(self, name: str) -> tuple[int, int, int, int]:
        """``(F_h, F_w, C_in / groups, C_out)`` of the convolution ``name``."""
        operation = next(op for op in self.operations if op["op"] == "conv" and op["tensor"] == name)
        (height, width), (inputs, outputs) = operation["window"], operation["channels"]
        return height, width, inputs // operation.get("groups", 1), outputs


def pack(model: Model, golden_image: np.ndarray, license: str | None = None) -> PackedModel:
    """A model as bits and multiply-adds.

    Args:
      model: trained with a 1-bit rule.
      golden_image: uint8 ``[H, W, C]``, a real image if there is one; its logits are computed here.
      license: of the weights; the description's own where None.

    Raises:
      UserError: 32-bit weights, NaN weights, moments or scales that are not finite.
    """
    # `Model.apply` computes in float32, as all readers do, also where the network was trained in bfloat16.
    graph = simplify(trace(model.apply, model.variables, model.description.image_shape))
    description = model.description
    if is_own(description.model or {}):  # the file needs no code of the user's
        description = dataclasses.replace(description, model=None)
    return pack_graph(graph, description, golden_image, license)


def pack_graph(
    graph: Graph, description: Description, golden_image: np.ndarray, license: str | None = None
) -> PackedModel:
    """A simplified graph as bits and multiply-adds; arguments and errors as for `pack`."""
    shape, classes = description.image_shape, description.num_classes
    content = content_of(graph)
    metadata = {
        "format": numpy_reader.FORMAT,
        "operations": content.operations,
        "input": {
            "shape": list(shape),
            "dtype": "uint8",
            "range": [0, 255],
            "channels": {1: "grey", 3: "RGB"}.get(shape[2], "other"),
            "resize": (description.input or {}).get("resize", "bilinear"),
        },
        "num_classes": classes,
        "class_names": list(description.class_names),
        "dataset": description.dataset,
        "network": description.model,
        "test": description.test,
        "config_sha256": description.config_sha256,
        "license": license or description.license,
        "source": description.source,
    }
    if description.other.get("temperature") is not None:  # of probabilities, see `evaluation.fit_temperature`
        metadata["temperature"] = description.other["temperature"]
    metadata = versioned(metadata)
    metadata["sha256"] = numpy_reader.checksum(metadata, content.bits | content.kernels)
    unknown = np.zeros(classes, np.float32)
    packed = PackedModel(
        metadata, content.bits, content.affines, golden_image, unknown, kernels=content.kernels
    )
    _check(packed, lambda message: place_of(message, content, graph))
    try:
        logits = numpy_reader.Model(metadata, packed.tensors)(golden_image[None])[0]
    except numpy_reader.PackedFileError as error:
        raise UserError(f"this network cannot be packed: {error}") from error
    return dataclasses.replace(packed, golden_logits=logits)


def _check(packed: PackedModel, place: Callable[[str], str] = lambda message: "") -> None:
    try:
        packed.value_shapes  # noqa: B018  (it checks)
        numpy_reader.check_description(packed.metadata)
        numpy_reader.check_tensors(packed.metadata, packed.tensors)
    except numpy_reader.PackedFileError as error:
        raise UserError(f"this network cannot be packed: {error}{place(str(error))}") from error


def versioned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object ``binwrn`` with the version that its operations need, and the features of version 2."""
    used = numpy_reader.features(dict(metadata))
    first: dict[str, Any] = {"format": metadata["format"], "version": 1}
    if set(used) - {"temperature"}:  # which is a key like others in version 1
        first |= {"version": 2, "requires": used}
    return {**first, **{key: value for key, value in metadata.items() if key not in (*first, "requires")}}


def _coded(packed: PackedModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors, each kernel coded that this makes smaller; as they are where there is none."""
    operations, words = [], {}
    for operation in packed.operations:
        name = operation.get("tensor")
        if operation["op"] == "conv" and operation["window"] == [3, 3] and name in packed.bits:
            bits = packed.bits[name]
            coded = encode(bits, packed.kernel_shape(name)[2])
            if worthwhile(coded, bits):
                words[name] = coded
                operation = {**operation, "coding": "rans"}
        operations.append(operation)
    if not words:
        return packed.metadata, packed.tensors
    tensors = {name: tensor for name, tensor in packed.tensors.items() if name not in words}
    renamed = {name + ".coded": coded for name, coded in words.items()}
    return versioned({**packed.metadata, "operations": operations}), _aligned({**renamed, **tensors})


def _aligned(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Larger numbers first, so that all tensors lie aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))


def serialise(packed: PackedModel, coding: str | None = None) -> bytes:
    """The bytes of the packed file; the same model gives the same bytes.

    Args:
      packed: the model.
      coding: ``"entropy"`` codes the kernels without loss, in version 2 of the format; None does not.

    Raises:
      UserError: the model breaks a rule of the format, or there is no such coding.
    """
    _check(packed)
    if coding not in (None, "entropy"):
        raise UserError(f"unknown coding {coding!r}: there is 'entropy'")
    metadata, tensors = _coded(packed) if coding else (packed.metadata, packed.tensors)
    compact: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}
    outer = {"binwrn": json.dumps(metadata, **compact), numpy_reader.CHECKSUM: _NO_CHECKSUM}
    header: dict[str, Any] = {"__metadata__": outer}
    codes = {dtype: code for code, dtype in numpy_reader.ALL_DTYPES.items()}
    position = 0
    for name, tensor in tensors.items():
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, **compact).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    checksum = numpy_reader.file_checksum(start, _NO_CHECKSUM, data)
    marker = f'"{numpy_reader.CHECKSUM}":"%s"'
    return start.replace((marker % _NO_CHECKSUM).encode(), (marker % checksum).encode()) + data


def write_packed(packed: PackedModel, path: Path, coding: str | None = None) -> None:
    """Writes the file; a reader sees an older one or all of the new one.

    Args:
      packed: the model.
      path: of the file.
      coding: see `serialise`.

    Raises:
      UserError: the model breaks a rule of the format, or the path cannot be written.
    """
    content = serialise(packed, coding)
    try:
        replace_file(Path(path), content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


def read_packed(path: str | Path) -> PackedModel:
    """Reads and checks a packed file. A line in the log says so where its checksum does not cover all of it.

    Raises:
      UserError: not there, no packed model, of another version, damaged or hostile.
    """
    try:
        metadata, tensors, checksum, coded = numpy_reader.read(path)
    except numpy_reader.PackedFileError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    if checksum is None:
        _log.warning("%s: %s", path, numpy_reader.OLDER)
    names = [(op["op"], op["tensor"]) for op in metadata["operations"] if "tensor" in op]
    return PackedModel(
        metadata=metadata,
        bits={name: tensors[name] for op, name in names if op == "conv" and tensors[name].dtype == np.uint8},
        affines={
            name: (tensors[name + ".scale"], tensors[name + ".offset"])
            for op, name in names
            if op == "affine"
        },
        golden_image=tensors["golden.image"],
        golden_logits=tensors["golden.logits"],
        checksum=checksum,
        coded=coded,
        kernels={
            name: tensors[name] for op, name in names if op == "conv" and tensors[name].dtype != np.uint8
        },
        integers={
            name: tensor
            for name, tensor in tensors.items()
            if name.endswith((".multiplier", ".bias")) or ("table", name) in names
        },
    )
