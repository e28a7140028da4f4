"""One way to open a model, whatever it is stored as: images in, logits out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.binarize import get_rule, he_scale, is_one_bit
from binwrn_jax.checkpoints import load_model
from binwrn_jax.config import build_model
from binwrn_jax.data.sources import Arrays
from binwrn_jax.errors import UserError
from binwrn_jax.evaluate import summarise
from binwrn_jax.losses import average_crops, metric_sums

RUNTIMES = ("auto", "numpy", "native")
BATCH_SIZE = 100


class Predictor(Protocol):
    """Anything that turns images into logits.

    Attributes:
      description: at least ``num_classes``, ``image_shape`` ``[H, W, C]``, ``class_names`` (may be
        empty) and ``dataset`` (None where unknown).
    """

    description: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, C]``, values 0..255 and any N, to float32 logits ``[N, num_classes]``."""
        ...


class JaxPredictor:
    """A model folder, run by JAX on the default device.

    Any number of images is cut into batches of ``batch_size``; a smaller rest is padded to the next
    power of two, so that few shapes are compiled and one image does not cost a whole batch.

    Args:
      variables: ``params`` and ``batch_stats``, see `binwrn_jax.checkpoints.load_model`.
      description: of the model, with the fields of ``model.json``.
      dtype: of the activations, ``'float32'`` or ``'bfloat16'``; None for the model's own.
      batch_size: images per run of the network.
    """

    def __init__(
        self,
        variables: dict[str, Any],
        description: dict[str, Any],
        *,
        dtype: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.description = description
        fields = {**description["model"], **({"dtype": dtype} if dtype else {})}
        model = build_model(fields, description["num_classes"])
        self._variables = jax.device_put(variables)
        self._batch_size = batch_size
        self._apply: Callable[[Any, np.ndarray], jax.Array] = jax.jit(model.apply)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Predictor`."""
        return in_batches(
            partial(self._apply, self._variables), images, self.description["num_classes"], self._batch_size
        )


def in_batches(
    network: Callable[[np.ndarray], jax.Array], images: np.ndarray, num_classes: int, batch_size: int
) -> np.ndarray:
    """Runs a jitted network on any number of images, see `JaxPredictor`; float32 ``[N, num_classes]``."""
    logits = np.empty((len(images), num_classes), np.float32)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        count = len(batch)
        size = min(1 << (count - 1).bit_length(), batch_size)
        padded = np.pad(batch, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        logits[start : start + count] = network(padded)[:count]
    return logits


def open_model(
    path: str | Path, *, runtime: str = "auto", dtype: str | None = None, batch_size: int = BATCH_SIZE
) -> Predictor:
    """Opens a model of any kind; what a file is, its content tells and not its name.

    Args:
      path: a workdir of train.py, a model folder (trained or imported), or a packed, ONNX or
        StableHLO file.
      runtime: ``'auto'`` for the runtime that belongs to the kind of model; for a packed file also
        ``'numpy'``, the executable definition of the format, or ``'native'``, see docs/native.md.
      dtype: of the activations of a model folder, ``'float32'`` or ``'bfloat16'``; None: as it was
        trained. The files have theirs fixed.
      batch_size: images per run of the network, for a model folder.

    Raises:
      UserError: nothing there, nothing that can be run, or options that do not go with it.
    """
    path = Path(path)
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    kind = kind_of(path)
    if runtime != "auto" and kind != "packed":
        raise UserError(f"{path}: runtime {runtime!r} reads packed files only: `binwrn export` makes one")
    if dtype and kind != "folder":
        raise UserError(f"{path}: a {kind} file has its dtype fixed: give a model folder, or no --dtype")
    if kind == "folder":
        variables, description = load_model(path)
        return JaxPredictor(variables, description, dtype=dtype, batch_size=batch_size)
    if kind == "onnx":
        from binwrn_jax.deploy.onnx_file import open_onnx

        return open_onnx(path)
    if kind == "stablehlo":
        from binwrn_jax.deploy.stablehlo import open_stablehlo

        return open_stablehlo(path)
    if runtime == "numpy":
        from binwrn_jax.deploy.packed import open_numpy

        return open_numpy(path)
    if runtime == "native":
        from binwrn_jax.deploy.native import open_native

        return open_native(path)
    from binwrn_jax.deploy.packed import open_packed

    return open_packed(path)


class Images(Protocol):
    """Labelled images in order, of any source: `ArrayImages` or `binwrn_jax.data.pipeline.StreamedImages`."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """At most ``batch_size`` images at a time, uint8 ``[B, H, W, C]`` or, with several crops of each,
        ``[B, crops, H, W, C]``, and their labels int32 ``[B]``."""
        ...


class ArrayImages:
    """`Images` in memory."""

    def __init__(self, data: Arrays) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Images`."""
        for start in range(0, len(self), batch_size):
            yield self._data.images[start : start + batch_size], self._data.labels[start : start + batch_size]


def measure(
    predictor: Predictor,
    data: Images,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The exact error of a model on a data set, by the same sums for every runtime.

    Args:
      predictor: see `open_model`.
      data: images and labels of the model's shape and classes. Over several crops of an image the softmax is
        averaged (section 3.3), and what counts as its logits are those of the average.
      batch_size: images per call of the predictor, fewer where they have several crops.
      progress: is told how far it has come, a line after each batch.

    Returns:
      ``(result, logits, labels)``: what `binwrn_jax.evaluate.summarise` gives, with ``seconds`` for all and
      ``images_per_s`` of the whole batches after the first one, which compiles (of all where there is
      no other); logits float32 ``[N, classes]``; labels int32 ``[N]``.
    """
    size, done = len(data), 0
    sums_of, average = jax.jit(metric_sums), jax.jit(average_crops, static_argnums=1)
    total: dict[str, np.ndarray] | None = None
    logits, all_labels, timings = [], [], []
    for images, labels in data.batches(batch_size):
        before = time.monotonic()
        answer = predictor(images.reshape(-1, *images.shape[-3:]))
        if images.ndim == 5:
            answer = np.asarray(average(answer, images.shape[1]))
        logits.append(answer)
        all_labels.append(labels)
        timings.append((len(labels), time.monotonic() - before))
        sums = jax.device_get(sums_of(answer, labels, np.ones(len(labels), bool)))
        sums = {name: np.asarray(value, np.result_type(value, np.int64)) for name, value in sums.items()}
        total = sums if total is None else {name: total[name] + sums[name] for name in sums}
        done += len(labels)
        progress(f"{done}/{size} images, error so far {100 * (1 - total['correct'] / done):.2f} %")
    if total is None:
        raise UserError("there are no images to evaluate")
    rated = [timing for timing in timings[1:] if timing[0] == timings[0][0]] or timings
    result = {
        **summarise(total),
        "images_per_s": sum(count for count, _ in rated) / sum(seconds for _, seconds in rated),
        "seconds": sum(seconds for _, seconds in timings),
    }
    return result, np.concatenate(logits), np.concatenate(all_labels)


def kind_of(path: Path) -> str:
    """``'folder'``, ``'packed'``, ``'onnx'`` or ``'stablehlo'``.

    Raises:
      UserError: nothing there, or a file of none of these kinds.
    """
    if not path.is_file():
        return "folder"  # or nothing at all: `load_model` says what is wrong
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    # safetensors: the length of a JSON header, then the header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "packed"
    # ONNX: a protobuf whose field 1 is the (small) version of the format, followed by another of its fields.
    if start[:1] == b"\x08" and 0 < int.from_bytes(start[1:2]) < 128 and start[2:3] in b'\x12\x1a":BJr':
        return "onnx"
    if start.startswith(b"binwrn-stablehlo "):
        return "stablehlo"
    if start.startswith(b"MATLAB"):
        raise UserError(f"{path} is a MATLAB file: `binwrn import {path} --output DIR` makes a model of it")
    raise UserError(
        f"{path} is no model: expected a packed (safetensors), ONNX or StableHLO file, or a folder"
    )


class LayerRow(NamedTuple):
    """One convolution as ``binwrn inspect`` lists it."""

    name: str
    shape: tuple[int, int, int, int]  # (F, F, C_in, C_out)
    scale: float | None  # s of Eq. 1; None where the rule has no constant scale
    plus_share: float | None  # share of +1 among the bits, 0..1; None for 32-bit weights
    values: int  # distinct values that the convolution uses
    bits: int  # to store the weights, scales not counted
    bytes: int  # bits / 8, rounded up


def layers(path: str | Path) -> list[LayerRow]:
    """The convolutions of a model in order of use.

    Args:
      path: as for `open_model`; a folder, a packed or an ONNX file.

    Raises:
      UserError: nothing there, or of a kind whose layers are not listed.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "folder":
        return _folder_layers(path)
    if kind == "packed":
        from binwrn_jax.deploy.packed import layers as packed_layers

        return packed_layers(path)
    if kind == "onnx":
        from binwrn_jax.deploy.onnx_file import read_onnx
        from binwrn_jax.deploy.packed import layers_of

        return layers_of(read_onnx(path))
    raise UserError(f"{path}: the layers of a {kind} file are not listed: inspect what it was exported from")


def _folder_layers(path: Path) -> list[LayerRow]:
    variables, description = load_model(path)
    weights, plain = description["model"]["weights"], description["model"]["plain"]
    params = variables["params"]
    names = sorted((name for name in params if "kernel" in params[name]), key=lambda name: int(name[4:]))
    rows = []
    for name in names:
        latent = jnp.asarray(params[name]["kernel"])
        scale = he_scale(latent.shape, plain=plain)
        effective = np.asarray(get_rule(weights)(latent, scale))
        one_bit = is_one_bit(weights)
        bits = effective.size * (1 if one_bit else 32)
        rows.append(
            LayerRow(
                name=name,
                shape=effective.shape,
                scale=scale if weights == "1bit" else None,
                plus_share=float((effective > 0).mean()) if one_bit else None,
                values=len(np.unique(effective)),
                bits=bits,
                bytes=-(-bits // 8),
            )
        )
    return rows
