"""The content of the released files: three layouts of MATLAB 5 files.

The content of a file alone tells its layout and its network. The layout determines the conventions that the
trained weights depend on:

======================  =======  ==========  ==========================================
layout                  padding  input ReLU  batch-norm moments
======================  =======  ==========  ==========================================
Keras                   same     no          mean, variance
MATLAB                  symmetric  yes       mean, standard deviation ``sqrt(var + 1e-5)``
MATLAB, plain           symmetric  yes       the same
======================  =======  ==========  ==========================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from binwrn_jax.errors import UserError
from binwrn_jax.hub.mat5 import load_mat
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.nn.rules import he_scale

# Keys of the MATLAB layouts: weights, scales, BN gains, BN offsets, BN moments.
MATLAB_KEYS = {
    "matlab": ("BinaryWeights", "LayerWeights", "BNG", "BNB", "Moments"),
    "matlab-plain": ("BooleanSingleBitWeights", "LayerScales", "BN_Scales", "BN_Offsets", "BN_Moments"),
}
MATLAB_EXTRAS = ("Stride", "Padding", "Training", "PercentCorrectTest")
KERAS_CONV = re.compile(r"conv2d(?:_(\d+))?")
KERAS_NORM = re.compile(r"batch_normalization(?:_v\d+)?(?:_(\d+))?")


class Norm(NamedTuple):
    """One batch norm, float32 ``[C]`` each; ``var`` is without epsilon."""

    gain: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Released(NamedTuple):
    """What a file holds, in order of use."""

    layout: str  # 'keras', 'matlab' or 'matlab-plain'
    plain: bool  # no skip connections
    bits: list[np.ndarray]  # bool [F, F, C_in, C_out], True is +1
    norms: list[Norm]  # one before each convolution and one after the last
    accuracy: list[float]  # percent on its test set after each epoch; empty where not recorded


def _is_read(name: str) -> bool:
    """Whether a network is made from the variable of this name."""
    keys = {*MATLAB_EXTRAS, *(key for keys in MATLAB_KEYS.values() for key in keys)}
    return name in keys or bool(KERAS_CONV.fullmatch(name) or KERAS_NORM.fullmatch(name))


def read_released(path: Path, max_memory: int | None = None) -> Released:
    """Reads a file of the paper's author and checks its values; the shapes are checked by `to_model`.

    Args:
      path: a MATLAB 5 file of one of the three layouts.
      max_memory: see `binwrn_jax.hub.mat5.load_mat`.

    Raises:
      UserError: there is no such file, it is no MATLAB file, it is damaged or too large, it lacks keys, or
        it holds values that no such network has.
    """
    content = load_mat(path, _is_read, max_memory)
    with named(path):
        if any(KERAS_CONV.fullmatch(key) or KERAS_NORM.fullmatch(key) for key in content):
            return _read_keras(content)
        for layout, keys in MATLAB_KEYS.items():
            if any(key in content for key in keys):
                return _read_matlab(content, layout)
        raise UserError(
            f"no released network: it has the keys {_some(content)}, "
            "and neither conv2d (Keras) nor BinaryWeights or BooleanSingleBitWeights (MATLAB)"
        )


class named:
    """Puts the file's name before the message of a `UserError` that passes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self._path}: {error}") from error.__cause__


def _read_keras(content: dict[str, Any]) -> Released:
    # Keras numbers its layers over the life of the process: the order counts, not where it starts.
    def in_order(pattern: re.Pattern[str]) -> list[str]:
        found = {key: match for key in content if (match := pattern.fullmatch(key))}
        return sorted(found, key=lambda key: int(found[key][1] or 0))

    convs, norms = in_order(KERAS_CONV), in_order(KERAS_NORM)
    _check_counts(len(convs), len(norms), "conv2d*", "batch_normalization*")

    def norm(key: str) -> Norm:
        value = content[key]
        if value.ndim != 2 or value.shape[0] not in (2, 4):
            raise UserError(f"{key} has the shape {value.shape}, neither (4, channels) nor (2, channels)")
        rows = _float32(value, key)
        gain, offset = rows[:2] if len(rows) == 4 else (np.ones_like(rows[0]), np.zeros_like(rows[0]))
        mean, var = rows[-2:]
        if (var < 0).any():
            raise UserError(f"{key} has a negative variance: it is damaged")
        return Norm(gain, offset, mean, var)

    def bits(key: str) -> np.ndarray:
        value = content[key]
        return _bits(value[0] if value.ndim == 5 and value.shape[0] == 1 else value, key)

    return Released("keras", False, [bits(key) for key in convs], [norm(key) for key in norms], [])


def _read_matlab(content: dict[str, Any], layout: str) -> Released:
    missing = [key for key in MATLAB_KEYS[layout] if key not in content]
    if missing:
        raise UserError(f"the keys {', '.join(missing)} are missing: it has {_some(content)}")
    weights_key, scales_key, gains_key, offsets_key, moments_key = MATLAB_KEYS[layout]
    weights, gains, offsets, moments = (
        _cells(content[key], key) for key in (weights_key, gains_key, offsets_key, moments_key)
    )
    for key, cells in ((gains_key, gains), (offsets_key, offsets), (moments_key, moments)):
        _check_counts(len(weights), len(cells), weights_key, key)

    plain = layout == "matlab-plain"
    if "Training" in content and "ResNet" in (content["Training"].dtype.names or ()):
        plain = not np.asarray(content["Training"]["ResNet"].item()).item()

    bits = [_bits(cell, f"{weights_key}{{{i}}}") for i, cell in enumerate(weights, start=1)]
    scales = _float32(content[scales_key], scales_key).ravel()
    wanted = np.array([he_scale(kernel.shape, plain=plain) for kernel in bits])
    if scales.shape != wanted.shape or not np.allclose(scales, wanted, rtol=1e-4, atol=0):
        formula = "2 / sqrt(F^2 C_in)" if plain else "sqrt(2 / (F^2 C_in))"
        raise UserError(f"{scales_key} are not {formula} of the {len(bits)} convolutions")
    _check_geometry(content, [kernel.shape for kernel in bits])

    norms = []
    for index, (gain, offset, moment) in enumerate(zip(gains, offsets, moments, strict=True), start=1):
        name = f"{moments_key}{{{index}}}"
        if moment.ndim != 2 or moment.shape[1] != 2 or not gain.size == offset.size == len(moment):
            raise UserError(
                f"{gains_key}{{{index}}} {gain.shape}, {offsets_key}{{{index}}} {offset.shape} and {name} "
                f"{moment.shape} do not agree: expected (C, 1), (C, 1) and (C, 2)"
            )
        mean, std = _float32(moment, name).T
        # The second column is sqrt(var + epsilon): it cannot be below sqrt(epsilon) but for rounding.
        if (std < 0.99 * math.sqrt(BN_EPSILON)).any():
            raise UserError(f"{name} has a standard deviation below sqrt({BN_EPSILON:g}): it is damaged")
        var = np.maximum(np.square(std.astype(np.float64)) - BN_EPSILON, 0)
        norms.append(
            Norm(
                _float32(gain, gains_key).ravel(),
                _float32(offset, offsets_key).ravel(),
                mean.copy(),
                var.astype(np.float32),
            )
        )
    accuracy = _float32(content.get("PercentCorrectTest", np.zeros(0)), "PercentCorrectTest").ravel()
    return Released(layout, plain, bits, norms, [round(float(value), 4) for value in accuracy])


def _check_counts(convs: int, norms: int, conv_name: str, norm_name: str) -> None:
    if norms != convs + 1 or not convs:
        raise UserError(
            f"it has {convs} convolutions ({conv_name}) and {norms} batch norms ({norm_name}): "
            "a network has one batch norm more than convolutions"
        )


def _check_geometry(content: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
    """Stride and padding are given by the shapes; where a file has them as well, they must agree."""
    third = (len(shapes) - 2) // 3
    wanted = {
        "Stride": [2 if index in (1 + third, 1 + 2 * third) else 1 for index in range(len(shapes))],
        "Padding": [(shape[0] - 1) // 2 for shape in shapes],
    }
    for key, values in wanted.items():
        if key in content and content[key].ravel().tolist() != values:
            raise UserError(f"{key} is {content[key].ravel().tolist()}, where a wide ResNet has {values}")


def _cells(value: np.ndarray, key: str) -> list[np.ndarray]:
    if value.dtype != object:
        raise UserError(f"{key} is no cell array")
    return list(value.ravel())


def _bits(value: np.ndarray, key: str) -> Bool[np.ndarray, "F F Cin Cout"]:
    if value.ndim != 4 or value.dtype.kind not in "buif":
        raise UserError(
            f"{key} is {value.dtype} of shape {value.shape}, no kernel (F, F, C_in, C_out) of bits"
        )
    if not np.isin(value, (0, 1)).all():
        raise UserError(f"{key} has values other than 0 and 1: these are no 1-bit weights")
    return value.astype(bool)


def _float32(value: np.ndarray, key: str) -> Float32[np.ndarray, " ..."]:
    if value.dtype.kind not in "buif" or not np.isfinite(value).all():
        raise UserError(f"{key} has values that are no finite numbers")
    return value.astype(np.float32)


def _some(content: Iterable[str]) -> str:
    keys = sorted(key for key in content if not key.startswith("__"))
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "") or "(none)"
