"""One way to open a model, whatever it is stored as: images in, logits out."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from binwrn_jax.deploy.predictor import JaxPredictor, LayerRow
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, Predictor
from binwrn_jax.nn.rules import get_rule, he_scale, is_one_bit
from binwrn_jax.store.model import load_model

RUNTIMES = ("auto", "numpy", "native")


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
        from binwrn_jax.deploy.numpy_runtime import open_numpy

        return open_numpy(path)
    if runtime == "native":
        from binwrn_jax.deploy.native import open_native

        return open_native(path)
    from binwrn_jax.deploy.jax_runtime import open_packed

    return open_packed(path)


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
        from binwrn_jax.deploy.layers import layers as packed_layers

        return packed_layers(path)
    if kind == "onnx":
        from binwrn_jax.deploy.layers import layers_of
        from binwrn_jax.deploy.onnx_file import read_onnx

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
