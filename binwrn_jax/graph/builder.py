"""Builds a graph: values with the axes of their arrays, and operations that bring them to one layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from binwrn_jax.graph.axes import Atom, Axes, Axis, Inexpressible, Sizes, axes_of, size
from binwrn_jax.graph.equations import Equation
from binwrn_jax.graph.operations import INPUT, Operation, Shape


@dataclasses.dataclass(frozen=True)
class Value:
    """An array that depends on the images: the name of a value of the graph, and its axes."""

    name: str
    axes: Axes


@dataclasses.dataclass(frozen=True)
class Known:
    """An array that depends on parameters only, and the paths of those."""

    array: np.ndarray
    source: tuple[str, ...] = ()


Operand = Value | Known
Rule = Callable[..., Operand]


class Builder:
    """Operations, one after another.

    Args:
      batch: number of images in the trace.
      image_shape: ``(H, W, C)`` of the input.

    Attributes:
      operations: so far.
      shapes: ``(H, W, C)`` of each value.
      equations: where each value comes from.
      equation: the one that is being translated.
    """

    equation: Equation

    def __init__(self, batch: int, image_shape: Shape) -> None:
        self.operations: list[Operation] = []
        self.shapes: dict[str, Shape] = {INPUT: image_shape}
        self.equations: dict[str, Equation] = {}
        self._batch = batch

    def sizes(self, value: Value) -> Sizes:
        """Lengths of the axes N, H, W and C."""
        return dict(zip("NHWC", (self._batch, *self.shapes[value.name]), strict=True))

    def emit(
        self,
        kind: str,
        inputs: Sequence[Value],
        shape: Shape,
        tensors: dict[str, np.ndarray] | None = None,
        source: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Adds an operation; returns the name of its result."""
        name = f"v{len(self.operations)}"
        names = tuple(value.name for value in inputs)
        where = self.equation.location
        self.operations.append(Operation(kind, names, name, attributes, tensors or {}, tuple(source), where))
        self.shapes[name] = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.equations[name] = self.equation
        return name

    def image(self, name: str, letters: str) -> Value:
        """A value as an array whose axes have these letters, such as ``'NCHW'``."""
        return Value(name, axes_of(letters, self.sizes(Value(name, ()))))

    def affine(
        self,
        x: Value,
        scale: Any = 1.0,
        offset: Any = 0.0,
        source: Sequence[str] = (),
        low: float | None = None,
        high: float | None = None,
    ) -> Value:
        """Adds ``clip(x scale + offset, low, high)`` by channel."""
        shape = self.shapes[x.name]
        tensors = {
            key: np.broadcast_to(np.asarray(value, np.float64), shape[2:])
            for key, value in (("scale", scale), ("offset", offset))
        }
        return Value(self.emit("affine", [x], shape, tensors, source, min=low, max=high), x.axes)

    def producer(self, value: Value) -> Operation | None:
        """The operation that makes a value; None for the input."""
        return next((op for op in self.operations if op.output == value.name), None)

    def settled(self, x: Value) -> Value:
        """The value with repeated rows and columns written out, so that each axis has one letter or none."""
        factors = {"H": 1, "W": 1}
        axes: list[Axis] = []
        left = iter([letter for letter in "HWC" if not any(letter in axis for axis in x.axes)])
        for axis in x.axes:
            repeats = [atom for atom in axis if isinstance(atom, int)]
            letters = [atom for atom in axis if isinstance(atom, str)]
            tiled = bool(letters) and axis[0] != letters[0]
            if not letters and len(x.axes) == 4:  # an axis of length 1
                letters = [letter for letter in (next(left, None),) if letter]
            if not repeats or not letters or letters == ["C"]:
                axes.append(axis)
                continue
            if tiled or letters[0] not in ("H", "W") or len(letters) > 1:
                raise Inexpressible("repeats of something else than rows and columns")
            factors[letters[0]] *= int(np.prod(repeats))
            axes.append((letters[0],))
        if max(factors.values()) == 1:
            return x
        return Value(self.resized(x, (factors["H"], factors["W"])), tuple(axes))

    def resized(self, x: Value, factors: tuple[int, int], method: str = "nearest") -> str:
        """Adds an operation that repeats or interpolates rows and columns; returns the name of its result."""
        height, width, depth = self.shapes[x.name]
        shape = (height * factors[0], width * factors[1], depth)
        return self.emit("resize", [x], shape, factors=factors, method=method)

    def letters(self, x: Value) -> list[str | None]:
        """The letter of each axis of a settled value, None for an axis of length 1.

        Raises:
          Inexpressible: axes are flattened or repeat.
        """
        found: list[str | None] = []
        for axis in x.axes:
            if len(axis) > 1 or (axis and isinstance(axis[0], int)):
                raise Inexpressible("an operation on flattened or repeated axes")
            found.append(str(axis[0]) if axis else None)
        return found

    def named(self, x: Value) -> list[str | None]:
        """As `letters`; those of axes of length 1 are the letters that are left, in the order H, W, C."""
        found = self.letters(x)
        rest = iter([letter for letter in "HWC" if letter not in found])
        return [next(rest, None) if letter is None else letter for letter in found]

    def relettered(self, name: str, letters: Sequence[str | None]) -> Value:
        """A value as an array whose axes have these letters, None where there is none to have."""
        sizes = self.sizes(Value(name, ()))
        return Value(name, tuple((letter,) if letter and sizes[letter] > 1 else () for letter in letters))

    def aligned(self, values: Sequence[Value], one_pixel: bool = False) -> tuple[list[Value], Axes]:
        """The operands of one operation, broadcast to one shape and layout.

        Args:
          values: their arrays have the same shape.
          one_pixel: leave values of 1 x 1 pixel as they are.

        Raises:
          Inexpressible: their layouts differ.
        """
        axes = list(values[0].axes)
        for value in values[1:]:
            axes = [a if _is_real(a) or not _is_real(b) else b for a, b in zip(axes, value.axes, strict=True)]
        target: dict[Atom, int] = {}
        for value in values:
            for letter, length in self.sizes(value).items():
                target[letter] = max(length, target.get(letter, 1))
        return [self._spread(value, tuple(axes), target, one_pixel) for value in values], tuple(axes)

    def _spread(self, x: Value, axes: Axes, target: dict[Atom, int], one_pixel: bool) -> Value:
        """The value broadcast along the axes in which it only repeats."""
        missing: set[Atom] = set()
        for own, wanted in zip(x.axes, axes, strict=True):
            if own != wanted:
                if _is_real(own) or any(
                    size(atom, self.sizes(x)) > 1 for atom in wanted if isinstance(atom, str)
                ):
                    raise Inexpressible("two layouts that do not match")
                missing.update(wanted)
        if "C" in missing:
            # One channel, copied to all: a convolution with weights of 1.
            shape = (*self.shapes[x.name][:2], target["C"])
            kernel = np.ones((1, 1, 1, target["C"]), np.float32)
            x = Value(self.emit("conv", [x], shape, {"kernel": kernel}, **POINTWISE), axes)
        height, width, _ = self.shapes[x.name]
        pixels = tuple(target[c] if c in missing else 1 for c in "HW")
        if pixels != (1, 1) and not (one_pixel and (height, width) == (1, 1)):
            x = Value(self.resized(x, (pixels[0], pixels[1])), axes)
        return Value(x.name, axes)


POINTWISE: dict[str, Any] = {"stride": (1, 1), "pads": ((0, 0), (0, 0)), "groups": 1, "dilation": (1, 1)}


def _is_real(axis: Axis) -> bool:
    return any(isinstance(atom, str) for atom in axis)
