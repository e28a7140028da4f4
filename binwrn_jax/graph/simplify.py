"""Rewrites a graph to fewer operations that give the same logits, with bits where a kernel has only signs.

A weight layer of the paper is BN -> ReLU -> conv with weights -s and +s. As s > 0, it commutes with the ReLU
and with the maximum of the variant without batch norm:

    s * max(0, x a + b) = max(0, x (s a) + s b)          s * max(-1, x) = max(-s, s x)

so that s joins the multiply-add before its convolution, whose weights then are -1 and +1. All numbers by
channel are float64 until they are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8, Real

from binwrn_jax.errors import UserError
from binwrn_jax.graph.operations import Graph, Operation, Shape, uses, with_names, without_unused


def simplify(graph: Graph) -> Graph:
    """The graph with kernels as signs where they can be, and its multiply-adds merged.

    Its last operation is a ``global_average``, as files have it, even if the logits have one pixel before it.

    Raises:
      UserError: a kernel has NaN weights.
    """
    return with_names(without_unused(_Rewriter(graph).run()))


def one_bit(
    kernel: Real[np.ndarray, "*shape C"],
) -> tuple[Int8[np.ndarray, "*shape C"], Float64[np.ndarray, " C"]] | None:
    """Signs and magnitudes of a kernel with one magnitude for each output channel; None for any other.

    Args:
      kernel: float32 ``[F_h, F_w, C_in, C_out]``.

    Returns:
      int8 of the same shape, -1 and +1 (zero counts as positive), and float64 ``[C_out]``; a magnitude may be
      zero.

    Raises:
      UserError: a weight is NaN.
    """
    if np.isnan(kernel).any():
        raise UserError("a convolution has NaN weights: the training diverged, there is nothing to pack")
    magnitudes = np.abs(kernel.reshape(-1, kernel.shape[-1]))
    first = magnitudes[0]
    if not (magnitudes == first).all() or not np.isfinite(first).all():
        return None
    return np.where(kernel < 0, np.int8(-1), np.int8(1)), first.astype(np.float64)


class _Rewriter:
    """Applies each rule until none applies."""

    def __init__(self, graph: Graph) -> None:
        self.shapes: dict[str, Shape] = dict(graph.shapes)
        self.output = graph.output
        self.operations = [part for op in graph.operations for part in self._with_bits(op)]

    def run(self) -> Graph:
        while self._one_rewrite():
            pass
        last = next(op for op in self.operations if op.output == self.output)
        if last.kind != "global_average":
            mean = f"{self.output}.mean"
            self.shapes[mean] = self.shapes[self.output]
            self.operations.append(Operation("global_average", (self.output,), mean))
            self.output = mean
        return self._graph()

    def _one_rewrite(self) -> bool:
        positions = range(len(self.operations))
        return any(map(self._rewrite, positions)) or any(map(self._swap_with_mean, positions))

    def _graph(self) -> Graph:
        return Graph(tuple(self.operations), self.shapes, self.output)

    def _with_bits(self, operation: Operation) -> list[Operation]:
        if operation.kind != "conv" or "kernel" not in operation.tensors:
            return [operation]
        found = one_bit(operation.tensors["kernel"])
        if found is None:
            return [operation]
        signs, magnitudes = found
        raw = f"{operation.output}.signs"
        self.shapes[raw] = self.shapes[operation.output]
        return [
            dataclasses.replace(operation, output=raw, tensors={"signs": signs}),
            affine(raw, operation.output, magnitudes, np.zeros(len(magnitudes)), source=operation.source),
        ]

    def _rewrite(self, position: int) -> bool:
        """Applies the first rule that fits an operation and the one before it."""
        operation = self.operations[position]
        if operation.kind == "affine" and _is_identity(operation):
            self._remove(position, operation.inputs[0])
            return True
        before = self._only_used_here(operation.inputs[0])
        if before is None:
            return False
        rules: dict[tuple[str, str], tuple[Callable[..., bool], ...]] = {
            ("conv", "affine"): (self._scale_before_convolution,),
            ("affine", "affine"): (self._merge,),
            ("pad", "conv"): (self._join_padding,),
            ("resize", "resize"): (self._join_resizes,),
        }
        found = rules.get((self.operations[before].kind, operation.kind), ())
        return any(rule(before, position) for rule in found)

    def _only_used_here(self, name: str) -> int | None:
        """The index of the operation that makes a value, if the value is used once."""
        if uses(self._graph())[name] != 1:
            return None
        return next((i for i, op in enumerate(self.operations) if op.output == name), None)

    def _remove(self, position: int, replacement: str) -> None:
        """Removes an operation; its users take another value instead."""
        name = self.operations.pop(position).output
        self.operations = [
            dataclasses.replace(op, inputs=tuple(replacement if i == name else i for i in op.inputs))
            for op in self.operations
        ]
        if self.output == name:
            self.output = replacement

    def _scale_before_convolution(self, before: int, position: int) -> bool:
        """A positive number for all channels moves to the multiply-add before the convolution."""
        conv, operation = self.operations[before], self.operations[position]
        # Only the magnitude of this kernel: the place of other numbers must not depend on their values.
        factor = _common_factor(operation) if operation.source == conv.source else None
        earlier = self._only_used_here(conv.inputs[0])
        if factor is None or earlier is None or self.operations[earlier].kind != "affine":
            return False
        self.operations[earlier] = _scaled(self.operations[earlier], factor, operation.source)
        self._remove(position, conv.output)
        return True

    def _merge(self, before: int, position: int) -> bool:
        """A multiply-add after a multiply-add."""
        merged = merge(self.operations[before], self.operations[position])
        if merged is None:
            return False
        self.operations[before] = merged
        self._remove(position, merged.output)
        return True

    def _swap_with_mean(self, position: int) -> bool:
        """A multiply-add after the mean over all pixels is one before it, where it can merge with another.

        The logits are left as the mean itself.
        """
        operation = self.operations[position]
        before = self._only_used_here(operation.inputs[0])
        if before is None or operation.kind != "affine" or _limits(operation) != (-np.inf, np.inf):
            return False
        mean = self.operations[before]
        if mean.kind != "global_average":
            return False
        earlier = self._only_used_here(mean.inputs[0])
        merges = earlier is not None and self.operations[earlier].kind in ("conv", "affine")
        if not merges and operation.output != self.output:
            return False
        name = f"{operation.output}.before"
        self.shapes[name] = self.shapes[mean.inputs[0]]
        self.operations[before] = dataclasses.replace(mean, inputs=(name,))
        self._remove(position, mean.output)
        self.operations.insert(before, dataclasses.replace(operation, inputs=mean.inputs, output=name))
        return True

    def _join_padding(self, before: int, position: int) -> bool:
        """Zeros around an image are the padding of the convolution after them."""
        pad, conv = self.operations[before], self.operations[position]
        if pad.attributes["value"] != 0:
            return False
        pairs = zip(pad.attributes["pads"], conv.attributes["pads"], strict=True)
        pads = tuple((a + c, b + d) for (a, b), (c, d) in pairs)
        if min(min(pair) for pair in pads) < 0:
            return False
        self.operations[position] = dataclasses.replace(
            conv, inputs=pad.inputs, attributes={**conv.attributes, "pads": pads}
        )
        self.operations.pop(before)
        return True

    def _join_resizes(self, before: int, position: int) -> bool:
        """Rows are enlarged and then columns: both at once."""
        first, second = (self.operations[i].attributes for i in (before, position))
        pairs = list(zip(first["factors"], second["factors"], strict=True))
        if first["method"] != second["method"] or any(min(pair) > 1 for pair in pairs):
            return False
        attributes = {**second, "factors": tuple(max(pair) for pair in pairs)}
        self.operations[position] = dataclasses.replace(
            self.operations[position], inputs=self.operations[before].inputs, attributes=attributes
        )
        self.operations.pop(before)
        return True


def affine(
    x: str,
    output: str,
    scale: np.ndarray,
    offset: np.ndarray,
    low: float | None = None,
    high: float | None = None,
    source: tuple[str, ...] = (),
) -> Operation:
    """A multiply-add by channel, with limits."""
    tensors = {"scale": scale, "offset": offset}
    return Operation("affine", (x,), output, {"min": low, "max": high}, tensors, source)


def _limits(operation: Operation) -> tuple[float, float]:
    low, high = operation.attributes["min"], operation.attributes["max"]
    return -np.inf if low is None else low, np.inf if high is None else high


def _is_identity(operation: Operation) -> bool:
    free = operation.attributes["min"] is None and operation.attributes["max"] is None
    scale, offset = operation.tensors["scale"], operation.tensors["offset"]
    return free and bool((scale == 1).all() and (offset == 0).all())


def _common_factor(operation: Operation) -> float | None:
    """The positive number that a multiply-add multiplies all channels with, if it does nothing else."""
    scale, offset = operation.tensors["scale"], operation.tensors["offset"]
    free = _limits(operation) == (-np.inf, np.inf)
    if free and (offset == 0).all() and (scale == scale[0]).all() and 0 < scale[0] < np.inf:
        return float(scale[0])
    return None


def _scaled(operation: Operation, factor: float, source: tuple[str, ...]) -> Operation:
    """A multiply-add whose result is larger by a positive factor."""

    def times(limit: float | None) -> float | None:
        return None if limit is None else limit * factor

    return affine(
        operation.inputs[0],
        operation.output,
        operation.tensors["scale"] * factor,
        operation.tensors["offset"] * factor,
        times(operation.attributes["min"]),
        times(operation.attributes["max"]),
        _joined(operation, source),
    )


def _joined(operation: Operation, source: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*operation.source, *source)))


def merge(first: Operation, second: Operation) -> Operation | None:
    """One multiply-add for two, None where its limits would differ between channels."""
    scale, offset = second.tensors["scale"], second.tensors["offset"]
    low, high = _limits(first)
    bounds = _limits(second)
    if (low, high) == (-np.inf, np.inf):
        new_low, new_high = bounds
    else:
        if not (scale > 0).all():
            return None
        ends: list[float] = []
        for limit in (low, high):
            with np.errstate(invalid="ignore"):
                moved = np.unique(limit * scale + offset)
            if len(moved) != 1 or np.isnan(moved[0]):
                return None
            ends.append(float(moved[0]))
        new_low, new_high = (float(np.clip(end, *bounds)) for end in ends)
    return affine(
        first.inputs[0],
        first.output,
        first.tensors["scale"] * scale,
        first.tensors["offset"] * scale + offset,
        _limit(new_low),
        _limit(new_high),
        _joined(first, second.source),
    )


def _limit(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def kept_floats(graph: Graph) -> dict[str, dict[str, Any]]:
    """The kernels that are not bits, by operation: their parameters, numbers of weights and of magnitudes."""
    return {
        op.output: {
            "source": op.source,
            "weights": op.tensors["kernel"].size,
            "magnitudes": len(np.unique(np.abs(op.tensors["kernel"]))),
        }
        for op in graph.operations
        if op.kind == "conv" and "kernel" in op.tensors
    }
