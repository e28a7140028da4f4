"""From float32 activations to 8 bits: rewrites a packed network in integers, calibrated on images.

The result is the `int8` form of docs/packed-format-2.md: each value between image and logits is an integer,
sums are exact, and multiply-adds become an integer multiplication and a shift.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.calibrate import CHUNK, RULES, Operation, Range, calibrate, choose_limits, values_of
from binwrn_jax.deploy.numpy_reader import LIMITS, MAX_MULTIPLIER, MAX_SHIFT, MAX_SUM
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.errors import UserError

STREAM_ROOM = 2.0  # how much larger than on the calibration images a value of 16 bits may become
_EIGHT_BITS = {"conv", "elementwise"}  # operations that take nothing else
_KEEP_TYPE = {"average_pool", "max_pool", "pad_channels", "pad", "resize", "global_pool"}
_WEIGHTS = 127  # largest magnitude of an 8-bit weight


class Kind(NamedTuple):
    """Type, zero point and scale of a value."""

    type: str
    zero: int
    scale: float


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the integer network: ``q * scale`` is the real number that the centred integer q stands for.

    Attributes:
      name: in the file.
      type: a key of `numpy_reader.LIMITS`.
      zero: the zero point.
      scale: float64, a scalar, or ``[C]`` after a convolution with 8-bit weights.
      channels: C.
    """

    name: str
    type: str
    zero: int
    scale: np.ndarray
    channels: int

    @property
    def kind(self) -> Kind:
        """Its type, zero point and scale, where that is one number."""
        return Kind(self.type, self.zero, float(self.scale))


def fixed_point(
    factor: np.ndarray, offset: np.ndarray, most: int = MAX_SUM
) -> tuple[np.ndarray, np.ndarray, int]:
    """``q factor + offset`` as ``(q m + b) >> r``.

    Args:
      factor: float64.
      offset: float64 of the same shape.
      most: the largest magnitude of m and b.

    Returns:
      m and b, int64, and the largest r from 0 to 31 that they allow.

    >>> fixed_point(np.array([0.5]), np.array([3.0]))[2]
    29
    """
    largest = max(float(np.abs(factor).max()), float(np.abs(offset).max()), 2.0**-40)
    shift = int(np.clip(np.floor(np.log2(most / largest)), 0, MAX_SHIFT))
    m, b = (np.clip(np.rint(x * 2.0**shift), -most, most).astype(np.int64) for x in (factor, offset))
    return m, b, shift


class Quantizer:
    """Rewrites the operations of a float32 network one after another.

    Attributes:
      operations: of the integer network.
      tensors: its arrays by name.
      values: what each value of the float32 network has become.
    """

    def __init__(self, packed: PackedModel, ranges: Mapping[str, Range], rule: str = "mse") -> None:
        self._given, self._ranges, self._rule = packed.tensors, ranges, rule
        self._shapes = packed.value_shapes
        self._users: dict[str, set[str]] = {}
        for operation in reversed(packed.operations):
            op, wanted = operation["op"], self._users.get(operation["out"], set())
            for name in operation["in"]:
                # What keeps its input's type needs what its own users need.
                self._users.setdefault(name, set()).update(wanted if op in _KEEP_TYPE else {op})
        self.operations: list[Operation] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.values = {"image": Value("image", "u8", 0, np.asarray(1.0), self._shapes["image"][2])}
        for operation in packed.operations:
            self._rewrite(operation)

    def _rewrite(self, operation: Operation) -> None:
        op, name = operation["op"], operation["out"]
        if op == "affine":
            scale, offset = (
                self._given[f"{operation['tensor']}.{part}"].astype(np.float64)
                for part in ("scale", "offset")
            )
            source = self.values[operation["in"][0]]
            ends = operation.get("min"), operation.get("max")
            self.values[name] = self._requantize(source, name, self._kind(name), scale, offset, ends)
        elif op in _KEEP_TYPE:
            self._keep_type(operation)
        else:
            getattr(self, "_" + op)(operation)

    def _emit(self, operation: Operation, value: Value) -> Value:
        if operation.get("zero") == 0:
            del operation["zero"]
        self.operations.append(operation)
        self.values[value.name] = value
        return value

    def _kind(self, name: str, narrow: bool | None = None) -> Kind:
        """The type of a value: 8 bits where nothing else is taken by its users, else 16."""
        found = self._ranges[name]
        if narrow is None:
            narrow = bool(self._users.get(name)) and self._users[name] <= _EIGHT_BITS
        if not narrow:
            most = max(-found.low, found.high) or 1.0
            return Kind("i16", 0, float(most) * STREAM_ROOM / LIMITS["i16"][1])
        low, high = choose_limits(found, self._rule)
        scale = (high - low) / 255 or 1.0
        return Kind("u8", int(np.clip(np.rint(-low / scale), 0, 255)), float(scale))

    def _requantize(
        self,
        source: Value,
        out: str,
        kind: Kind,
        factor: np.ndarray | float = 1.0,
        offset: np.ndarray | float = 0.0,
        ends: tuple[float | None, float | None] = (None, None),
    ) -> Value:
        """Emits ``out = min(high, max(low, source * factor + offset))`` of real numbers."""
        m, b, shift = fixed_point(
            np.broadcast_to(source.scale * factor / kind.scale, source.channels),
            np.broadcast_to(np.float64(offset) / kind.scale, source.channels),
        )
        self.tensors[out + ".multiplier"], self.tensors[out + ".bias"] = (
            m.astype(np.int32),
            b.astype(np.int32),
        )
        entry = {"op": "requantize", "in": [source.name], "out": out, "tensor": out, "shift": shift}
        limits = numpy_reader.Integers(*kind).limits
        for field, end, limit in zip(("low", "high"), ends, limits, strict=True):
            q = limit if end is None else int(np.clip(np.rint(end / kind.scale), *limits))
            if q != limit:
                entry[field] = q
        return self._emit(
            {**entry, **kind._asdict()},
            Value(out, kind.type, kind.zero, np.asarray(kind.scale), source.channels),
        )

    def _eight_bits(self, name: str) -> Value:
        value = self.values[name]
        if value.type in ("u8", "i8"):
            return value
        return self.values.get(name + ".8") or self._requantize(
            value, name + ".8", self._kind(name, narrow=True)
        )

    def _small(self, name: str) -> Value:
        """The value in at most 16 bits and with one scale."""
        value = self.values[name]
        if value.type != "i32":
            return value
        return self.values.get(name + ".16") or self._requantize(value, name + ".16", self._kind(name))

    def _keep_type(self, operation: Operation) -> None:
        x, more = self._small(operation["in"][0]), {}
        if operation["op"] == "pad":
            limits = numpy_reader.Integers(*x.kind).limits
            more["value"] = int(np.clip(np.rint(operation["value"] / x.scale), *limits))
        channels = operation["channels"] if operation["op"] == "pad_channels" else x.channels
        value = dataclasses.replace(x, name=operation["out"], channels=channels)
        self._emit({**operation, "in": [x.name], **more}, value)

    def _conv(self, operation: Operation) -> None:
        x, name = self._eight_bits(operation["in"][0]), operation["tensor"]
        kernel, scale, entry = self._given[name], x.scale, {**operation, "in": [x.name]}
        if operation.get("weights") == "float32":
            largest = np.maximum(np.abs(kernel).max((1, 2, 3)), 1e-30) / np.float64(_WEIGHTS)
            kernel = np.rint(kernel / largest[:, None, None, None]).astype(np.int8)
            scale = x.scale * largest
            entry["weights"] = "int8"
        self.tensors[name] = kernel
        value = Value(operation["out"], "i32", 0, scale, operation["channels"][1])
        self._emit({**entry, "scale": scale.tolist()}, value)

    def _add(self, operation: Operation) -> None:
        inputs = [self.values[name] for name in operation["in"]]
        inputs = [self._small(x.name) if x.scale.ndim else x for x in inputs]
        kind = self._kind(operation["out"])
        factors = np.array([float(x.scale) for x in inputs]) / kind.scale
        m, _, shift = fixed_point(factors, np.zeros(2), MAX_MULTIPLIER)
        entry = {"op": "add", "in": [x.name for x in inputs], "out": operation["out"]}
        if m.tolist() != [1, 1]:
            entry["multipliers"] = m.tolist()
        if shift:
            entry["shift"] = shift
        self._emit({**entry, **kind._asdict()}, self._value(operation["out"], kind, inputs[0].channels))

    def _product(self, operation: Operation) -> None:
        first, second = (self._small(name) for name in operation["in"])
        kind = self._kind(operation["out"])
        m, _, shift = fixed_point(np.array([first.scale * second.scale / kind.scale]), np.zeros(1))
        entry = {"op": "product", "in": [first.name, second.name], "out": operation["out"]}
        entry |= {"multiplier": max(1, int(m[0])), "shift": shift}
        self._emit({**entry, **kind._asdict()}, self._value(operation["out"], kind, first.channels))

    def _concat(self, operation: Operation) -> None:
        name, kind = operation["out"], self._kind(operation["out"])
        inputs = [self.values[source] for source in operation["in"]]
        alike = [
            x if x.type != "i32" and x.kind == kind else self._requantize(x, f"{name}.{index}", kind)
            for index, x in enumerate(inputs)
        ]
        value = self._value(name, kind, sum(x.channels for x in inputs))
        self._emit({"op": "concat", "in": [x.name for x in alike], "out": name}, value)

    def _elementwise(self, operation: Operation) -> None:
        x, name = self._eight_bits(operation["in"][0]), operation["out"]
        kind = self._kind(name)
        real = (np.arange(256) + LIMITS[x.type][0] - x.zero) * x.scale
        y = numpy_reader.compute(operation, [real.astype(np.float32).reshape(1, 1, 1, -1)], {}).reshape(-1)
        stored = np.clip(np.rint(y.astype(np.float64) / kind.scale) + kind.zero, *LIMITS[kind.type])
        self.tensors[name] = stored.astype(numpy_reader.ALL_DTYPES[kind.type.upper()])
        entry = {"op": "table", "in": [x.name], "out": name, "tensor": name}
        self._emit({**entry, **kind._asdict()}, self._value(name, kind, x.channels))

    def _global_average(self, operation: Operation) -> None:
        x = self._small(operation["in"][0])
        entry = {**operation, "in": [x.name]}
        pixels = math.prod(self._shapes[operation["in"][0]][:2])
        self._emit(
            {**entry, "scale": float(x.scale) / pixels}, self._value(operation["out"], x.kind, x.channels)
        )

    @staticmethod
    def _value(name: str, kind: Kind, channels: int) -> Value:
        return Value(name, kind.type, kind.zero, np.asarray(kind.scale), channels)


class Loss(NamedTuple):
    """How far a value of the integer network is from the float32 network's, over some images.

    Attributes:
      name: of the value.
      type: of its integers.
      error: root of the mean square of the difference, relative to that of the value.
    """

    name: str
    type: str
    error: float


def quantize(packed: PackedModel, images: np.ndarray, rule: str = "mse") -> PackedModel:
    """A packed model with activations of 8 bits.

    Args:
      packed: with activations in float32.
      images: uint8 ``[N, H, W, C]``, some hundred training images.
      rule: see `choose_limits`.

    Raises:
      UserError: it is an integer network already, an unknown rule, or no images.
    """
    if numpy_reader.is_integer(packed.metadata):
        raise UserError("this model has 8-bit activations already")
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r} of calibration: choose one of {', '.join(RULES)}")
    if not len(images):
        raise UserError("no images to calibrate on")
    ranges = calibrate(packed.operations, packed.tensors, images)
    network = Quantizer(packed, ranges, rule)
    metadata = {**packed.metadata, "version": 2, "requires": ["int8"], "operations": network.operations}
    metadata["requires"] = numpy_reader.features(metadata)
    metadata["sha256"] = numpy_reader.checksum(metadata, network.tensors)
    convolutions = [op for op in network.operations if op["op"] == "conv"]
    kernels = {op["tensor"] for op in convolutions if "weights" in op}
    bits = {op["tensor"] for op in convolutions} - kernels
    result = dataclasses.replace(
        packed,
        metadata=metadata,
        bits={name: network.tensors[name] for name in packed.bits if name in bits},
        affines={},
        kernels={name: network.tensors[name] for name in packed.kernels},
        integers={name: x for name, x in network.tensors.items() if name not in bits | kernels},
        golden_logits=np.zeros(metadata["num_classes"], np.int32),
        checksum=None,
        coded={},
    )
    logits = numpy_reader.Model(metadata, result.tensors).raw_logits(packed.golden_image[None])[0]
    return dataclasses.replace(result, golden_logits=logits)


def losses(packed: PackedModel, integer: PackedModel, images: np.ndarray) -> list[Loss]:
    """What rounding has changed in each value, on images uint8 ``[N, H, W, C]``."""
    kinds = numpy_reader.integers_of(integer.metadata, integer.value_shapes)
    squares: dict[str, np.ndarray] = {}
    for first in range(0, len(images), CHUNK):
        some = images[first : first + CHUNK]
        whole = {"image": some.astype(np.int32)}
        for operation in integer.operations:
            inputs = [whole[name] for name in operation["in"]]
            kind = kinds[operation["in"][0]], kinds[operation["out"]]
            whole[operation["out"]] = numpy_reader.compute_integers(operation, inputs, integer.tensors, *kind)
        for name, real in values_of(packed.operations, packed.tensors, some):
            if name in whole and kinds[name].type != "i32":
                difference = whole[name] * np.asarray(kinds[name].scale) - real
                sums = np.array([np.square(difference).sum(), np.square(real, dtype=np.float64).sum()])
                squares[name] = squares.get(name, 0) + sums
    return [Loss(name, kinds[name].type, math.sqrt(a / b) if b else 0.0) for name, (a, b) in squares.items()]
