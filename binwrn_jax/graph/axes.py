"""Which axes of a traced array are the images, rows, columns and channels of a value.

A value of the graph is ``[N, H, W, C]``, whatever layout the network's arrays have. The axes of such an array
are a tuple with one entry for each of its axes: the letters that it runs over, from the slowest to the
fastest, or a number where it repeats. ``(('N',), ('C',), ('H',), ('W',))`` is NCHW; ``(('N',), ('H', 'W',
'C'))`` is flattened; ``('H', 2)`` has each row twice; an axis of length 1 is ``()``. So a change of layout
changes the axes and needs no operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Shaped

Atom = str | int
Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]
Sizes = Mapping[str, int]


class Inexpressible(Exception):
    """An equation has no counterpart in a graph; the message says why."""


def axes_of(letters: Iterable[str], sizes: Sizes) -> Axes:
    """The axes of an array with one letter for each; those of length 1 need no letter.

    >>> axes_of("NHWC", {"N": 2, "H": 1, "W": 8, "C": 3})
    (('N',), (), ('W',), ('C',))
    """
    return tuple((letter,) if sizes[letter] > 1 else () for letter in letters)


def size(atom: Atom, sizes: Sizes) -> int:
    """The length of a part of an axis."""
    return atom if isinstance(atom, int) else sizes[atom]


def shape_of(axes: Axes, sizes: Sizes) -> tuple[int, ...]:
    """The shape of an array with these axes."""
    return tuple(math.prod(size(atom, sizes) for atom in axis) for axis in axes)


def reshaped(axes: Axes, sizes: Sizes, shape: Sequence[int]) -> Axes:
    """The axes after a reshape.

    Raises:
      Inexpressible: an axis would be cut, channels into groups for example.

    >>> reshaped((("N",), ("C",), ("H",), ("W",)), {"N": 2, "C": 3, "H": 4, "W": 5}, (2, 60))
    (('N',), ('C', 'H', 'W'))
    """
    atoms = [atom for axis in axes for atom in axis]
    result = []
    for length in shape:
        group: list[Atom] = []
        while math.prod(size(atom, sizes) for atom in group) < length and atoms:
            group.append(atoms.pop(0))
        if math.prod(size(atom, sizes) for atom in group) != length:
            before, after = shape_of(axes, sizes), tuple(shape)
            raise Inexpressible(f"a reshape from {before} to {after}, which cuts an axis into parts")
        result.append(tuple(group))
    return tuple(result)


def broadcast(axes: Axes, sizes: Sizes, shape: Sequence[int], dimensions: Sequence[int]) -> Axes:
    """The axes after ``broadcast_in_dim``: axis i becomes axis ``dimensions[i]``, others repeat."""
    lengths = shape_of(axes, sizes)
    result: list[Axis] = [(length,) if length > 1 else () for length in shape]
    for axis, length, place in zip(axes, lengths, dimensions, strict=True):
        if length == shape[place]:
            result[place] = axis
    return tuple(result)


def channels(constant: np.ndarray, axes: Axes, sizes: Sizes) -> Float64[np.ndarray, " C"]:
    """A constant combined with an array with ``axes``, by channel: float64 ``[C]``.

    Raises:
      Inexpressible: it differs between pixels or images.
    """
    full = images(constant, axes, sizes)
    for axis in range(3):
        if full.shape[axis] > 1:
            first = full[(slice(None),) * axis + (slice(0, 1),)]
            if not (full == first).all() and not (np.isnan(full).all() and np.isnan(first).all()):
                raise Inexpressible("a constant that differs between pixels")
            full = first
    return np.broadcast_to(full[0, 0, 0], (sizes["C"],)).astype(np.float64)


def images(constant: np.ndarray, axes: Axes, sizes: Sizes) -> Shaped[np.ndarray, "N H W C"]:
    """A constant combined with an array with ``axes``: ``[N, H, W, C]``, of length 1 where it does not vary.

    Raises:
      Inexpressible: it differs along an axis that repeats.
    """
    constant = np.asarray(constant)
    constant = constant.reshape((1,) * (len(axes) - constant.ndim) + constant.shape)
    # A broadcast view says so by its strides.
    same = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in constant.strides)
    constant = constant[same]
    atoms: list[Atom] = []
    lengths: list[int] = []
    for axis, length in zip(axes, constant.shape, strict=True):
        atoms += axis
        lengths += [size(atom, sizes) if length > 1 else 1 for atom in axis]
    parts = constant.reshape(lengths)
    order = []
    for letter in "NHWC":
        if letter in atoms:
            order.append(atoms.index(letter))
        else:
            atoms, parts = [*atoms, letter], parts[..., None]
            order.append(len(atoms) - 1)
    repeats = [i for i, atom in enumerate(atoms) if isinstance(atom, int)]
    if any(parts.shape[i] > 1 for i in repeats):
        raise Inexpressible("a constant that differs between repeated pixels")
    return parts.transpose(*order, *repeats).reshape([parts.shape[i] for i in order])
