"""Rules for equations that join pixels: convolutions, matrix products, pools, means."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from binwrn_jax.graph.axes import Axis, Inexpressible, shape_of
from binwrn_jax.graph.builder import POINTWISE, Builder, Known, Operand, Rule, Value

PER_IMAGE = "a sum over the channels, as in norms by the statistics of each image: use batch norm"
SOFTMAX = "a maximum over the channels: give the logits, not their softmax"
OF_BATCH = "it joins several images: batch norm must use its running moments, as at inference"


def _convolution(build: Builder, x: Operand, kernel: Operand) -> Operand:
    if isinstance(kernel, Value) or isinstance(x, Known):
        raise Inexpressible("a convolution with a kernel that is computed from the image")
    params = build.equation.params
    numbers = params["dimension_numbers"]
    if len(numbers.lhs_spec) != 4:
        raise Inexpressible(
            f"a convolution over {len(numbers.lhs_spec) - 2} axes instead of rows and columns"
        )
    if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
        raise Inexpressible("a transposed convolution")
    x = build.settled(x)
    batch, features, *pixels = (build.letters(x)[i] for i in numbers.lhs_spec)
    turned = pixels[0] == "W" or pixels[1] == "H"  # the network has columns first
    if batch != "N" or features not in ("C", None) or not set(pixels) <= {"H", "W", None}:
        raise Inexpressible("a convolution over something else than rows and columns")
    order = (3, 2) if turned else (2, 3)
    spec = numbers.rhs_spec
    weights = kernel.array.transpose(spec[order[0]], spec[order[1]], spec[1], spec[0]).astype(np.float32)
    out = build.equation.shape
    shape = (*(out[numbers.out_spec[i]] for i in order), out[numbers.out_spec[1]])

    def pair(name: str) -> tuple[Any, Any]:
        first, second = params[name]
        return (second, first) if turned else (first, second)

    pads = tuple((int(low), int(high)) for low, high in pair("padding"))
    if min(map(min, pads)) < 0:
        raise Inexpressible("a convolution that cuts its image (negative padding)")
    stride, dilation = (tuple(map(int, pair(key))) for key in ("window_strides", "rhs_dilation"))

    name = build.emit(
        "conv",
        [x],
        shape,
        {"kernel": weights},
        kernel.source,
        stride=stride,
        pads=pads,
        groups=int(params["feature_group_count"]),
        dilation=dilation,
    )
    letters = [""] * 4
    for place, letter in zip(numbers.out_spec, ("N", "C", *("WH" if turned else "HW")), strict=True):
        letters[place] = letter
    return build.image(name, "".join(letters))


def _matrix_product(build: Builder, x: Operand, y: Operand) -> Operand:
    (left, right), (batch_left, batch_right) = build.equation.params["dimension_numbers"]
    swapped = isinstance(x, Known)
    if swapped:
        x, y, left, right = y, x, right, left
    if not isinstance(x, Value) or isinstance(y, Value):
        raise Inexpressible("a product of two activations over several channels, as in attention")
    if batch_left or batch_right:
        raise Inexpressible("a matrix product with a batch of matrices")
    x = build.settled(x)
    sizes = build.sizes(x)
    contracted = [atom for axis in left for atom in x.axes[axis]]
    free = tuple(axis for i, axis in enumerate(x.axes) if i not in left)
    columns = [i for i in range(y.array.ndim) if i not in right]
    if len(columns) > 1:
        raise Inexpressible("a product with more than one axis of features")
    if "N" in contracted or any(isinstance(atom, int) for atom in contracted):
        raise Inexpressible(OF_BATCH)
    matrix = y.array.transpose(*right, *columns).reshape(*(sizes[str(atom)] for atom in contracted), -1)
    inside = [str(atom) for atom in contracted]
    one_row = not inside and len(x.axes) > 2 and len(left) == 1
    along = [str(build.named(x)[left[0]])] if one_row else inside
    if along in (["H"], ["W"]) and columns:
        factor = _bilinear_factor(matrix.reshape(-1, matrix.shape[-1]))
        if factor is not None:
            name = build.resized(x, (factor, 1) if along == ["H"] else (1, factor), "bilinear")
            enlarged: Axis = (along[0],)
            return Value(name, (enlarged, *free) if swapped else (*free, enlarged))
    if sizes["C"] > 1 and "C" not in inside:
        raise Inexpressible("a matrix product along pixels but not along channels")
    for letter in "HWC":
        if letter not in inside:
            inside.append(letter)
            matrix = np.expand_dims(matrix, -2)
    kernel = matrix.transpose(*(inside.index(letter) for letter in "HWC"), -1).astype(np.float32)
    height, width, _ = build.shapes[x.name]
    shape = (height - kernel.shape[0] + 1, width - kernel.shape[1] + 1, kernel.shape[3])
    name = build.emit("conv", [x], shape, {"kernel": kernel}, y.source, **POINTWISE)
    new: tuple[Axis, ...] = (("C",),) if shape[2] > 1 else ((),)
    if not columns:
        new = ()
    return Value(name, (*new, *free) if swapped else (*free, *new))


def _bilinear_factor(matrix: np.ndarray) -> int | None:
    """The whole factor by which a matrix ``[old, new]`` enlarges rows bilinearly, None if it does not."""
    old, new = matrix.shape
    if new % old or new == old:
        return None
    place = (np.arange(new) + 0.5) * old / new - 0.5  # half-pixel centres
    first = np.floor(place).astype(int)
    expected = np.zeros((old, new))
    for index, weight in ((first, 1 - place + first), (first + 1, place - first)):
        np.add.at(expected, (np.clip(index, 0, old - 1), np.arange(new)), weight)
    return new // old if np.allclose(matrix, expected, rtol=0, atol=1e-6) else None


def _reduce(build: Builder, x: Value, kind: str) -> Operand:
    """A sum or a maximum over rows and columns."""
    x = build.settled(x)
    reduced = [axis % len(x.axes) for axis in build.equation.params["axes"]]
    atoms = {atom for axis in reduced for atom in x.axes[axis]}
    sizes = build.sizes(x)
    if "N" in atoms:
        raise Inexpressible(OF_BATCH)
    if not atoms <= {"H", "W"}:
        raise Inexpressible(PER_IMAGE if kind == "sum" else SOFTMAX)
    height, width, depth = build.shapes[x.name]
    axes = tuple(axis for i, axis in enumerate(x.axes) if i not in reduced)
    window = (height if "H" in atoms else 1, width if "W" in atoms else 1)
    if kind == "max":
        shape = (height // window[0], width // window[1], depth)
        if not atoms:
            return Value(x.name, axes)
        return Value(build.emit("max_pool", [x], shape, **_whole(window)), axes)
    if window == (height, width) and len(reduced) > (1 if sizes["H"] == sizes["W"] == 1 else 0):
        mean = Value(build.emit("global_average", [x], (1, 1, depth)), axes)
    elif atoms:
        shape = (height // window[0], width // window[1], depth)
        mean = Value(build.emit("average_pool", [x], shape, **_whole(window)), axes)
    else:
        return Value(x.name, axes)
    return build.affine(mean, scale=float(math.prod(window)))


def _whole(window: tuple[int, int]) -> dict[str, Any]:
    return {"window": window, "stride": (1, 1), "pads": ((0, 0), (0, 0))}


def _pool(build: Builder, x: Value, kind: str) -> Operand:
    """``reduce_window_max`` and ``reduce_window_sum``."""
    x = build.settled(x)
    params = build.equation.params
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        raise Inexpressible("a pool with dilation")
    letters = build.named(x)
    window, stride, pads = {"H": 1, "W": 1}, {"H": 1, "W": 1}, {"H": (0, 0), "W": (0, 0)}
    for axis, letter in enumerate(letters):
        size, step, pad = (params[k][axis] for k in ("window_dimensions", "window_strides", "padding"))
        if size == step == 1 and tuple(pad) == (0, 0):
            continue
        if letter not in window:
            raise Inexpressible("a pool over something else than rows and columns")
        if max(pad) >= size or min(pad) < 0:
            raise Inexpressible("a pool with windows that lie in the padding, or with less than no padding")
        window[letter], stride[letter], pads[letter] = int(size), int(step), (int(pad[0]), int(pad[1]))
    out = build.equation.shape
    sizes = {**build.sizes(x), **{letter: out[i] for i, letter in enumerate(letters) if letter}}
    fields: dict[str, dict[str, Any]] = {"window": window, "stride": stride, "pads": pads}
    attributes: dict[str, Any] = {key: (value["H"], value["W"]) for key, value in fields.items()}
    name = build.emit(kind, [x], (sizes["H"], sizes["W"], sizes["C"]), **attributes)
    result = build.relettered(name, letters)
    assert shape_of(result.axes, build.sizes(result)) == out
    return result


RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "dot_general": _matrix_product,
    "reduce_sum": partial(_reduce, kind="sum"),
    "reduce_max": partial(_reduce, kind="max"),
    "reduce_window_max": partial(_pool, kind="max_pool"),
    "reduce_window_sum": partial(_pool, kind="window_sum"),
}
