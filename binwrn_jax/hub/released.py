"""The networks that the paper's author released, as models of this project.

Three layouts of MATLAB 5 files exist: that of the Keras version, and those of the MATLAB version for
residual and for plain networks. Which one a file has, and which network it holds, is taken from its
content alone. The conventions that the trained weights depend on come with the layout:

======================  =======  ==========  ==========================================
layout                  padding  input ReLU  batch-norm moments
======================  =======  ==========  ==========================================
Keras                   same     no          mean, variance
MATLAB                  symmetric  yes       mean, standard deviation ``sqrt(var + 1e-5)``
MATLAB, plain           symmetric  yes       the same
======================  =======  ==========  ==========================================
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.open import open_dataset
from binwrn_jax.errors import UserError, require
from binwrn_jax.nn.layers import BN_EPSILON
from binwrn_jax.nn.registry import create_network, default_fields
from binwrn_jax.nn.rules import he_scale
from binwrn_jax.store.model import MODEL_FILE, save_model

# No file says how large its images are, and the networks take any size. All that the author released
# take 32x32.
ASSUMED_SIZE = (32, 32)

# Keys of the MATLAB layouts: weights, scales, BN gains, BN offsets, BN moments.
MATLAB_KEYS = {
    "matlab": ("BinaryWeights", "LayerWeights", "BNG", "BNB", "Moments"),
    "matlab-plain": ("BooleanSingleBitWeights", "LayerScales", "BN_Scales", "BN_Offsets", "BN_Moments"),
}
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


def read_released(path: Path) -> Released:
    """Reads a file of the paper's author and checks its values; the shapes are checked by `to_model`.

    Args:
      path: a MATLAB 5 file of one of the three layouts.

    Raises:
      UserError: there is no such file, it is no MATLAB file, it is damaged, it lacks keys, or it holds
        values that no such network has.
    """
    content = _load_mat(path)
    with _named(path):
        if any(KERAS_CONV.fullmatch(key) or KERAS_NORM.fullmatch(key) for key in content):
            return _read_keras(content)
        for layout, keys in MATLAB_KEYS.items():
            if any(key in content for key in keys):
                return _read_matlab(content, layout)
        raise UserError(
            f"no released network: it has the keys {_some(content)}, "
            "and neither conv2d (Keras) nor BinaryWeights or BooleanSingleBitWeights (MATLAB)"
        )


def to_model(released: Released, dataset: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model that a file describes, as `binwrn_jax.store.model.save_model` takes it.

    The bits become latent weights of magnitude s (Eq. 1; appendix B for plain networks), so that the
    binarised network is the author's and training can go on.

    Args:
      released: see `read_released`.
      dataset: what the network was trained on; no file says it.

    Returns:
      ``(variables, description)``: float32 ``params`` and ``batch_stats``, and the fields of
      ``model.json``. Where no data set is named, ``image_shape`` has 32x32 with
      ``image_size_assumed`` true.

    Raises:
      UserError: the shapes form no wide ResNet, or not one for the data set.
    """
    bits, norms = released.bits, released.norms
    depth, channels, classes = len(bits), bits[0].shape[2], bits[-1].shape[3]
    learned = any((norm.gain != 1).any() or (norm.offset != 0).any() for norm in norms[1:])
    fields = {
        **default_fields(),
        "depth": depth,
        "width": bits[0].shape[3] / 16,
        "plain": released.plain,
        "padding": "same" if released.layout == "keras" else "symmetric",
        "input_relu": released.layout != "keras",
        "affine": learned,
    }
    if dataset:
        spec = lookup(dataset)
        if (spec.num_classes, spec.image_shape[2]) != (classes, channels):
            raise UserError(
                f"the network has {channels} input channels and {classes} classes, but {dataset} has "
                f"{spec.image_shape[2]} and {spec.num_classes}: name another --dataset, or none"
            )
    size = lookup(dataset).image_shape[:2] if dataset else ASSUMED_SIZE

    model = create_network(fields, classes)
    image = np.zeros((1, *size, channels), np.uint8)
    try:
        expected = jax.eval_shape(model.init, jax.random.key(0), image)
    except UserError as error:
        raise UserError(f"{depth} convolutions of these shapes form no wide ResNet: {error}") from None
    params: dict[str, Any] = {}
    for index, bit in enumerate(bits):
        name = f"conv{index}"
        shape = expected["params"][name]["kernel"].shape
        if bit.shape != shape:
            raise UserError(
                f"the shapes form no wide ResNet: convolution {index + 1} of {depth} is {bit.shape}, "
                f"where a network {depth}-{fields['width']:g} for {classes} classes has {shape}"
            )
        scale = np.float32(he_scale(shape, plain=released.plain))
        params[name] = {"kernel": np.where(bit, scale, -scale)}
    stats: dict[str, Any] = {}
    for index, norm in enumerate(norms):
        name = f"bn{index}"
        (size_expected,) = expected["batch_stats"][name]["mean"].shape
        if len(norm.mean) != size_expected:
            raise UserError(
                f"the shapes form no wide ResNet: batch norm {index + 1} of {len(norms)} has "
                f"{len(norm.mean)} channels, not {size_expected}"
            )
        stats[name] = {"mean": norm.mean, "var": norm.var}
        if index == 0 or learned:
            params[name] = {"scale": norm.gain, "offset": norm.offset}

    description = {
        "model": fields,
        "num_classes": classes,
        "image_shape": [*size, channels],
        "image_size_assumed": dataset is None,
        "dataset": dataset,
        "class_names": list(open_dataset(dataset).info.class_names) if dataset else [],
        "epoch": len(released.accuracy) or None,
        "test": None,  # nothing measured here yet
        "recorded": {"accuracy_by_epoch": released.accuracy} if released.accuracy else None,
        "source": {"layout": released.layout, "bn_epsilon": BN_EPSILON},
    }
    return {"params": params, "batch_stats": stats}, description


def import_released(path: Path, output: Path, dataset: str | None = None) -> dict[str, Any]:
    """Makes a model folder of a released file; returns the content of its ``model.json``.

    Args:
      path: see `read_released`.
      output: folder to create; an imported or trained model there is replaced.
      dataset: see `to_model`.

    Raises:
      UserError: see `read_released` and `to_model`; or ``output`` holds something else.
    """
    released = read_released(path)
    with _named(path):
        variables, description = to_model(released, dataset)
    description["source"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: choose another --output")
    # `save_model` replaces the whole folder: only a model may be lost.
    foreign = (
        sorted({p.name for p in output.iterdir()} - {MODEL_FILE, "variables"}) if output.exists() else []
    )
    if foreign:
        raise UserError(
            f"{output} holds {foreign[0]!r}, which is no part of a model: choose another --output"
        )
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        save_model(output, variables, description)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"cannot write {output} ({error.strerror}): choose another --output") from error
    return description


class _named:
    """Puts the file's name before the message of a `UserError` that passes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self._path}: {error}") from error.__cause__


def _load_mat(path: Path) -> dict[str, Any]:
    matlab = require("scipy.io", "reading MATLAB files")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # SciPy warns of what it cannot read, and goes on without it
            return matlab.loadmat(str(path), appendmat=False)
    except NotImplementedError:
        raise UserError(f"{path} is a MATLAB 7.3 file: save it with the option -v7 and try again") from None
    except Exception as error:  # ValueError, TypeError, OSError, zlib.error, ...: it depends on the place
        with open(path, "rb") as file:
            matlab = file.read(6) == b"MATLAB"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        what = "a damaged or truncated MATLAB file" if matlab else "no MATLAB 5 file"
        raise UserError(f"{path} is {what} ({reason}): fetch it again") from error


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


def _bits(value: np.ndarray, key: str) -> np.ndarray:
    if value.ndim != 4 or value.dtype.kind not in "buif":
        raise UserError(
            f"{key} is {value.dtype} of shape {value.shape}, no kernel (F, F, C_in, C_out) of bits"
        )
    if not np.isin(value, (0, 1)).all():
        raise UserError(f"{key} has values other than 0 and 1: these are no 1-bit weights")
    return value.astype(bool)


def _float32(value: np.ndarray, key: str) -> np.ndarray:
    if value.dtype.kind not in "buif" or not np.isfinite(value).all():
        raise UserError(f"{key} has values that are no finite numbers")
    return value.astype(np.float32)


def _some(content: Iterable[str]) -> str:
    keys = sorted(key for key in content if not key.startswith("__"))
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "") or "(none)"
