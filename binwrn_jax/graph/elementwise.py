"""Rules for equations that compute each number by itself: arithmetic, limits, sums, products, functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from binwrn_jax.graph.axes import Inexpressible, channels, images
from binwrn_jax.graph.builder import Builder, Known, Operand, Rule, Value

FUNCTIONS = (
    *(
        "logistic",
        "tanh",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "abs",
        "sign",
        "sqrt",
        "rsqrt",
    ),
    *("square", "integer_pow", "pow", "ge", "gt", "le", "lt", "eq", "ne", "and", "or", "not"),
    *("cbrt", "floor", "ceil", "round", "sin", "cos", "atan2"),
)


def _unchanged(build: Builder, x: Value) -> Operand:
    return x


def _convert(build: Builder, x: Value) -> Operand:
    dtype = build.equation.dtype
    if not (np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"):
        raise Inexpressible(f"a conversion of activations to {dtype.name}")
    return x


def _check_dtype(build: Builder) -> None:
    dtype = build.equation.dtype
    if np.issubdtype(dtype, np.integer):
        raise Inexpressible(f"arithmetic in {dtype.name}: convert the images to floats first")


def _by_channel(build: Builder, x: Value, constant: Known) -> np.ndarray:
    return channels(constant.array, x.axes, build.sizes(x))


def primitive(build: Builder, operands: Sequence[Operand]) -> Value:
    """Adds an equation as it is, to be recognised as part of a function of one number, or else refused."""
    values, axes = build.aligned([x for x in operands if isinstance(x, Value)])
    arguments: list[int | float] = []
    rest = iter(range(len(values)))
    for operand in operands:
        if isinstance(operand, Known):
            numbers = np.unique(np.asarray(operand.array, np.float64))
            if numbers.size != 1:
                raise Inexpressible("a constant that is no single number")
            arguments.append(float(numbers[0]))
        else:
            arguments.append(next(rest))
    equation = build.equation
    attributes: dict[str, Any] = {
        "primitive": equation.name,
        "arguments": tuple(arguments),
        "params": equation.params,
    }
    return Value(build.emit("primitive", values, build.shapes[values[0].name], **attributes), axes)


def _function(build: Builder, *operands: Operand) -> Operand:
    return primitive(build, operands)


def _add(build: Builder, x: Operand, y: Operand) -> Operand:
    _check_dtype(build)
    if isinstance(x, Known):
        x, y = y, x
    assert isinstance(x, Value)
    if isinstance(y, Known):
        return build.affine(x, offset=_by_channel(build, x, y), source=y.source)
    (x, y), axes = build.aligned([x, y])
    return Value(build.emit("add", [x, y], build.shapes[x.name]), axes)


def _subtract(build: Builder, x: Operand, y: Operand) -> Operand:
    _check_dtype(build)
    if isinstance(x, Value) and isinstance(y, Known):
        return build.affine(x, offset=-_by_channel(build, x, y), source=y.source)
    if isinstance(x, Known) and isinstance(y, Value):
        return build.affine(y, scale=-1.0, offset=_by_channel(build, y, x), source=x.source)
    assert isinstance(x, Value) and isinstance(y, Value)
    return _add(build, x, build.affine(y, scale=-1.0))


def _negate(build: Builder, x: Value) -> Operand:
    _check_dtype(build)
    return build.affine(x, scale=-1.0)


def _multiply(build: Builder, x: Operand, y: Operand) -> Operand:
    _check_dtype(build)
    if isinstance(x, Known):
        x, y = y, x
    assert isinstance(x, Value)
    if isinstance(y, Known):
        with np.errstate(divide="ignore"):
            pooled = _average(build, x, 1 / np.asarray(y.array, np.float64))
        return pooled or build.affine(x, scale=_by_channel(build, x, y), source=y.source)
    (x, y), axes = build.aligned([x, y], one_pixel=True)
    if np.prod(build.shapes[x.name]) < np.prod(build.shapes[y.name]):
        x, y = y, x
    return Value(build.emit("multiply", [x, y], build.shapes[x.name]), axes)


def _divide(build: Builder, x: Operand, y: Operand) -> Operand:
    _check_dtype(build)
    if isinstance(x, Value) and isinstance(y, Known):
        pooled = _average(build, x, y.array)
        if pooled:
            return pooled
        with np.errstate(divide="ignore", invalid="ignore"):
            return build.affine(x, scale=1 / _by_channel(build, x, y), source=y.source)
    return primitive(build, [x, y])


def _average(build: Builder, x: Value, counts: np.ndarray) -> Value | None:
    """The average pool that a sum over windows is, divided by the number of pixels inside the image."""
    total = build.producer(x)
    if total is None or total.kind != "window_sum" or np.size(counts) == 1:
        return None
    source = total.inputs[0]
    height, width, _ = build.shapes[source]
    inside = np.pad(np.ones((height, width)), total.attributes["pads"])
    windows = np.lib.stride_tricks.sliding_window_view(inside, total.attributes["window"])
    down, across = total.attributes["stride"]
    expected = windows[::down, ::across].sum((2, 3))[None, :, :, None]
    found = images(counts, x.axes, build.sizes(x))
    if not np.allclose(np.broadcast_to(found, np.broadcast_shapes(found.shape, expected.shape)), expected):
        return None
    name = build.emit(
        "average_pool", [Value(source, ())], build.shapes[x.name], None, (), **dict(total.attributes)
    )
    return Value(name, x.axes)


def _limit(build: Builder, x: Operand, y: Operand, upper: bool) -> Operand:
    """``max(x, y)``, or ``min`` with an upper limit."""
    if isinstance(x, Known):
        x, y = y, x
    assert isinstance(x, Value)
    if isinstance(y, Value):
        return primitive(build, [x, y])
    _check_dtype(build)
    limits = _by_channel(build, x, y)
    if (limits == limits[0]).all():
        limit = float(limits[0])
        return build.affine(x, high=limit) if upper else build.affine(x, low=limit)
    # A limit for each channel: max(x, c) = max(x - c, 0) + c.
    rest = build.affine(x, offset=-limits, source=y.source, **({"high": 0.0} if upper else {"low": 0.0}))
    return build.affine(rest, offset=limits, source=y.source)


def _clamp(build: Builder, low: Operand, x: Operand, high: Operand) -> Operand:
    if not isinstance(x, Value) or isinstance(low, Value) or isinstance(high, Value):
        raise Inexpressible("limits that are computed from the image")
    return _limit(build, _limit(build, x, low, upper=False), high, upper=True)


def _select(build: Builder, which: Operand, *cases: Operand) -> Operand:
    if isinstance(which, Known):
        chosen = np.unique(which.array)
        if chosen.size == 1:
            return cases[int(chosen[0])]
        raise Inexpressible("a choice that differs between pixels or channels, such as a dropout mask")
    return primitive(build, [which, *cases])


RULES: dict[str, Rule] = {
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(
        ("copy", "copy_p", "stop_gradient", "reduce_precision", "sharding_constraint"), _unchanged
    ),
    "convert_element_type": _convert,
    "add": _add,
    "add_any": _add,
    "sub": _subtract,
    "neg": _negate,
    "mul": _multiply,
    "div": _divide,
    "max": partial(_limit, upper=False),
    "min": partial(_limit, upper=True),
    "clamp": _clamp,
    "select_n": _select,
}
