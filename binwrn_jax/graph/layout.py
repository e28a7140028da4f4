"""Rules for equations that move numbers: changes of layout, padding, joining, strides, resizing."""

from __future__ import annotations

import numpy as np

from binwrn_jax.graph.axes import Inexpressible, broadcast, reshaped
from binwrn_jax.graph.builder import Builder, Operand, Rule, Value


def _reshape(build: Builder, x: Value) -> Operand:
    return Value(x.name, reshaped(x.axes, build.sizes(x), build.equation.shape))


def _squeeze(build: Builder, x: Value) -> Operand:
    dropped = {axis % len(x.axes) for axis in build.equation.params["dimensions"]}
    return Value(x.name, tuple(axis for i, axis in enumerate(x.axes) if i not in dropped))


def _transpose(build: Builder, x: Value) -> Operand:
    return Value(x.name, tuple(x.axes[i] for i in build.equation.params["permutation"]))


def _broadcast(build: Builder, x: Value) -> Operand:
    equation = build.equation
    return Value(
        x.name, broadcast(x.axes, build.sizes(x), equation.shape, equation.params["broadcast_dimensions"])
    )


def _pad(build: Builder, x: Value, constant: Operand) -> Operand:
    if isinstance(constant, Value):
        raise Inexpressible("padding with computed numbers")
    x = build.settled(x)
    value = float(constant.array)
    height, width, depth = build.shapes[x.name]
    before: dict[str, tuple[int, int]] = {}
    letters = build.named(x)
    for letter, (low, high, interior) in zip(letters, build.equation.params["padding_config"], strict=True):
        low, high = int(low), int(high)
        if (low, high, interior) == (0, 0, 0):
            continue
        if interior or min(low, high) < 0 or letter not in ("H", "W", "C"):
            raise Inexpressible("padding that is not around the image or after the channels")
        before[letter] = (low, high)
    if "C" in before:
        low, high = before.pop("C")
        if low or value:
            raise Inexpressible("channels padded with something else than zeros behind them")
        name = build.emit("pad_channels", [x], (height, width, depth + high), channels=depth + high)
        x = build.relettered(name, letters)
    if not before:
        return x
    rows, columns = before.get("H", (0, 0)), before.get("W", (0, 0))
    shape = (height + sum(rows), width + sum(columns), build.shapes[x.name][2])
    return build.relettered(build.emit("pad", [x], shape, pads=(rows, columns), value=value), letters)


def _concatenate(build: Builder, *operands: Operand) -> Operand:
    values = [build.settled(x) for x in operands if isinstance(x, Value)]
    place = build.equation.params["dimension"]
    if len(values) < len(operands):
        raise Inexpressible("constants joined to activations")
    along = {axis for value in values for axis in [value.axes[place]] if axis} or {("C",)}
    rest = {value.axes[:place] + value.axes[place + 1 :] for value in values}
    if along != {("C",)} or len(rest) != 1:
        raise Inexpressible("values joined along something else than their channels")
    height, width, _ = build.shapes[values[0].name]
    depth = sum(build.shapes[value.name][2] for value in values)
    axes = values[0].axes
    axes = (*axes[:place], ("C",), *axes[place + 1 :])
    return Value(build.emit("concatenate", values, (height, width, depth)), axes)


def _slice(build: Builder, x: Value) -> Operand:
    x = build.settled(x)
    params = build.equation.params
    strides = params["strides"] or (1,) * len(x.axes)
    steps = {"H": 1, "W": 1}
    rows = zip(
        build.letters(x), params["start_indices"], params["limit_indices"], strides, x.axes, strict=True
    )
    sizes = build.sizes(x)
    for letter, start, limit, stride, _ in rows:
        length = sizes[letter] if letter else 1
        if (start, limit, stride) == (0, length, 1):
            continue
        if letter not in steps or start or -(-limit // stride) != -(-length // stride):
            raise Inexpressible(
                "a part of the pixels or channels; only each n-th row and column can be taken"
            )
        steps[letter] = stride
    return _every(build, x, (steps["H"], steps["W"]))


def _every(build: Builder, x: Value, steps: tuple[int, int]) -> Value:
    """Every n-th row and column, from the first on: a pool whose windows are single pixels."""
    if steps == (1, 1):
        return x
    height, width, depth = build.shapes[x.name]
    shape = (-(-height // steps[0]), -(-width // steps[1]), depth)
    pads = ((0, 0), (0, 0))
    sizes = {"H": shape[0], "W": shape[1]}
    axes = tuple(() if axis in (("H",), ("W",)) and sizes[str(axis[0])] == 1 else axis for axis in x.axes)
    return Value(build.emit("max_pool", [x], shape, window=(1, 1), stride=steps, pads=pads), axes)


def _gather(build: Builder, x: Value, indices: Operand) -> Operand:
    """Rows or columns by constant indices: each as often as the others, or each n-th."""
    x = build.settled(x)
    numbers = build.equation.params["dimension_numbers"]
    if isinstance(indices, Value) or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        raise Inexpressible("indexing that is not along rows or columns alone")
    (axis,) = numbers.start_index_map
    letters, length = build.named(x), build.sizes(x)
    letter = letters[axis]
    chosen = np.asarray(indices.array).reshape(-1)
    whole = tuple(size for i, size in enumerate(build.equation.params["slice_sizes"]) if i != axis)
    kept = tuple(size for i, size in enumerate(build.equation.avals[0].shape) if i != axis)
    others = tuple(i for i in range(len(x.axes)) if i != axis)
    if letter not in ("H", "W") or whole != kept or numbers.collapsed_slice_dims != (axis,):
        raise Inexpressible("indexing that is not along rows or columns alone")
    if numbers.offset_dims != others:
        raise Inexpressible("indexing that moves axes")
    factor = len(chosen) // length[letter]
    if factor and np.array_equal(chosen, np.repeat(np.arange(length[letter]), factor)):
        name = build.resized(x, (factor, 1) if letter == "H" else (1, factor))
        return build.relettered(name, letters)
    stride = int(chosen[1] - chosen[0]) if len(chosen) > 1 else length[letter]
    if stride > 0 and np.array_equal(chosen, np.arange(0, length[letter], stride)):
        return _every(build, x, (stride, 1) if letter == "H" else (1, stride))
    raise Inexpressible("resizing by something else than a whole factor, to the nearest pixel")


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "expand_dims": _broadcast,
    "broadcast_in_dim": _broadcast,
    "pad": _pad,
    "concatenate": _concatenate,
    "slice": _slice,
    "gather": _gather,
}
