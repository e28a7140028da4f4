"""Functions of one number that a graph has by name, and a way to find them among arithmetic.

A network computes GELU, for example, by eight equations, which differ between libraries and versions. Where
each number of a value depends on one number of an earlier value, that function is compared on a grid with
those of this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from binwrn_jax.graph.operations import Graph, Operation, Shape, without_unused

Function = Callable[[np.ndarray], np.ndarray]

_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


# The definitions of the names, in float64; runtimes follow them.
FUNCTIONS: dict[str, Function] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}

GRID = np.linspace(-12, 12, 961)
AT_ONE = int(np.argmin(np.abs(GRID - 1)))
TOLERANCE = 3e-6  # of constants that are rounded to float32
MOST_BASES = 16  # earlier values that are tried for each one

_BY_PRIMITIVE: dict[str, Callable[..., Any]] = {
    "logistic": sigmoid,
    "erf": _erf,
    "erfc": _erfc,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "select_n": lambda which, *cases: np.choose(np.asarray(which, int), cases),
    **{name: getattr(np, name) for name in ("tanh", "exp", "exp2", "expm1", "log", "log1p", "abs", "sign")},
    **{name: getattr(np, name) for name in ("sqrt", "cbrt", "floor", "ceil", "square", "sin", "cos")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
}

_KNOWN = {name: function(GRID) for name, function in FUNCTIONS.items()}


class Curve(NamedTuple):
    """A value on the grid, as a function of an earlier one; whether it is only multiply-adds and limits."""

    values: np.ndarray
    plain: bool


Curves = dict[str, Curve]  # by the earlier value, the latest first


def recognise(operations: Sequence[Operation], shapes: dict[str, Shape], output: str) -> list[Operation]:
    """The operations with all functions by name, and the sums over windows as average pools.

    Remaining operations of kind ``primitive`` belong to no function of this module.
    """
    result: list[Operation] = []
    curves: dict[str, Curves] = {}
    for operation in operations:
        curves[operation.output] = own = _curves(operation, curves)
        result.extend(_expressed(_named(operation, own, shapes), shapes))
    return list(without_unused(Graph(tuple(result), shapes, output)).operations)


def _curves(operation: Operation, curves: dict[str, Curves]) -> Curves:
    """A value on the grid, as a function of itself and of each earlier value on which it depends."""
    own: Curves = {operation.output: Curve(GRID, True)}
    inputs = [curves.get(name, {name: Curve(GRID, True)}) for name in operation.inputs]
    function = _function_of(operation)
    if function is None:
        return own
    for base in [b for b in inputs[0] if all(b in other for other in inputs)][:MOST_BASES]:
        given = [values[base] for values in inputs]
        plain = operation.kind == "affine" and all(curve.plain for curve in given)
        with np.errstate(all="ignore"):
            own[base] = Curve(np.asarray(function(*(curve.values for curve in given))), plain)
    return own


def _function_of(operation: Operation) -> Callable[..., np.ndarray] | None:
    """An operation as a function of numbers, None where it is none."""
    if operation.kind == "add":
        return np.add
    if operation.kind == "multiply":
        return np.multiply
    if operation.kind == "affine":
        scale, offset = (operation.tensors[key] for key in ("scale", "offset"))
        if not ((scale == scale[0]).all() and (offset == offset[0]).all()):
            return None
        limits = [operation.attributes[key] for key in ("min", "max")]
        low, high = (np.inf * sign if x is None else x for x, sign in zip(limits, (-1, 1), strict=True))
        return lambda x: np.clip(x * scale[0] + offset[0], low, high)
    if operation.kind == "function":
        return FUNCTIONS.get(operation.attributes["function"])
    if operation.kind != "primitive":
        return None
    primitive, arguments = operation.attributes["primitive"], operation.attributes["arguments"]
    if primitive == "integer_pow":
        exponent = operation.attributes["params"]["y"]
        return lambda x: x ** float(exponent)
    function = _BY_PRIMITIVE.get(primitive)
    if function is None:
        return None
    return lambda *values: function(*(values[a] if isinstance(a, int) else a for a in arguments))


def _named(operation: Operation, own: Curves, shapes: dict[str, Shape]) -> Operation:
    """The function by name that an operation completes, or else the operation."""
    for base, curve in reversed(own.items()):
        if curve.plain or curve.values.dtype == bool or not np.isfinite(curve.values).all():
            continue
        name = operation.output
        for known, values in _KNOWN.items():
            if _same(curve.values, values):
                return Operation("function", (base,), name, {"function": known}, where=operation.where)
        slope = -float(curve.values[len(GRID) - 1 - AT_ONE])
        if _same(curve.values, np.where(GRID < 0, slope * GRID, GRID)):
            if slope == 0:  # a ReLU
                return _affine(base, name, shapes[name][2], low=0.0)
            attributes = {"function": "leaky_relu", "slope": slope}
            return Operation("function", (base,), name, attributes, where=operation.where)
    return operation


def _affine(x: str, name: str, depth: int, scale: float = 1.0, low: float | None = None) -> Operation:
    tensors = {"scale": np.full(depth, scale), "offset": np.zeros(depth)}
    return Operation("affine", (x,), name, {"min": low, "max": None}, tensors)


def _same(curve: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(curve - expected) <= TOLERANCE * (1 + np.abs(expected))).all())


def _expressed(operation: Operation, shapes: dict[str, Shape]) -> Iterable[Operation]:
    """A sum over windows as an average pool that counts its padding; a square as a product."""
    primitive = operation.attributes.get("primitive")
    squares = primitive == "square" or (
        primitive == "integer_pow" and operation.attributes["params"]["y"] == 2
    )
    if squares:
        yield Operation("multiply", operation.inputs * 2, operation.output, where=operation.where)
        return
    if operation.kind != "window_sum":
        yield operation
        return
    (x,), name = operation.inputs, operation.output
    attributes = dict(operation.attributes)
    height, width, depth = shapes[x]
    if attributes["pads"] != ((0, 0), (0, 0)):
        (top, bottom), (left, right) = attributes["pads"]
        padded = f"{name}.padded"
        shapes[padded] = (height + top + bottom, width + left + right, depth)
        yield Operation(
            "pad", (x,), padded, {"pads": attributes["pads"], "value": 0.0}, where=operation.where
        )
        x, attributes["pads"] = padded, ((0, 0), (0, 0))
    mean = f"{name}.mean"
    shapes[mean] = shapes[name]
    yield Operation("average_pool", (x,), mean, attributes, where=operation.where)
    yield _affine(mean, name, depth, scale=float(math.prod(attributes["window"])))
