"""The table of file formats, and one way to open a model whatever it is stored as: images in, logits out."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binwrn_jax.deploy.c_source.program import open_c, summary_of_c, write_c
from binwrn_jax.deploy.jax_runtime import open_packed
from binwrn_jax.deploy.layers import layers_of, layers_of_model
from binwrn_jax.deploy.native import open_native
from binwrn_jax.deploy.numpy_runtime import open_numpy
from binwrn_jax.deploy.onnx_file import open_onnx, read_onnx, write_onnx
from binwrn_jax.deploy.packed import PackedModel, read_packed, write_packed
from binwrn_jax.deploy.predictor import JaxPredictor, LayerRow
from binwrn_jax.deploy.stablehlo import open_stablehlo, write_stablehlo
from binwrn_jax.deploy.web import MARK, open_web, summary_of_web, write_web
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE, Predictor
from binwrn_jax.hub.huggingface import resolve
from binwrn_jax.hub.pretrained import is_pretrained, load_pretrained, suggestion
from binwrn_jax.nn.registry import is_own
from binwrn_jax.store.model import Model, read_description

Opener = Callable[[Path], Predictor]
Reader = Callable[[Path], PackedModel]
Writer = Callable[[PackedModel, Path], None]

RUNTIMES = ("auto", "numpy", "native")
START = 4096  # bytes of a file by which it is recognised
PLUGINS = "binwrn_jax.formats"  # entry points: objects of the class `Format`

log = logging.getLogger(__name__)


def _size(path: Path, packed: PackedModel) -> str:
    size, ideal = path.stat().st_size, packed.ideal_bytes
    ratio = size / max(ideal, 1)  # there may be no convolution
    return f"{size:,} bytes, {ratio:.4f} x the {ideal:,} bytes of its bits"


@dataclass(frozen=True)
class Format:
    """A format of model files. A new one is a module and a row of `FORMATS`, or an entry point.

    Attributes:
      name: of ``binwrn export --format``.
      suffix: of the files' names, with the dot.
      recognises: tells a file of this format from others by its first `START` bytes and its size.
      write: writes a packed model to a path; companions of the file go beside it. `binwrn_jax.deploy.export`
        proves each file before it gets its name.
      open: a file as a predictor; None where it cannot be run by itself.
      read: the packed model that a file was made from, bit for bit; None where it does not hold it.
      proofs: by name, what must open a new file and give the network's logits.
      runtimes: other openers, by their name in `RUNTIMES`.
      made_here: tells whether a file of this format is one that ``binwrn export`` wrote and may replace.
      companions: suffixes of the files that ``write`` writes beside.
      summary: says of a written file what a user wants to read of it.
      integers: whether it holds networks with 8-bit activations.
      extra: of this package, which brings what the format needs; '' for none.
      mark: of a format that is a folder and no file, the path of a file that each such folder has; else ''.
    """

    name: str
    suffix: str
    recognises: Callable[[bytes, int], bool]
    write: Writer | None = None
    open: Opener | None = None
    read: Reader | None = None
    proofs: Mapping[str, Opener] = field(default_factory=dict)
    runtimes: Mapping[str, Opener] = field(default_factory=dict)
    made_here: Callable[[bytes], bool] = lambda start: True
    companions: tuple[str, ...] = ()
    summary: Callable[[Path, PackedModel], str] = _size
    integers: bool = False
    extra: str = ""
    mark: str = ""


def _is_packed(start: bytes, size: int) -> bool:
    """safetensors: the length of a JSON header, then the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _is_onnx(start: bytes, size: int) -> bool:
    """A protobuf whose field 1 is the (small) version of the format, followed by another of its fields."""
    return start[:1] == b"\x08" and 0 < int.from_bytes(start[1:2]) < 128 and start[2:3] in b'\x12\x1a":BJr'


FORMATS = (
    Format(
        "packed",
        ".safetensors",
        _is_packed,
        write=write_packed,
        open=open_packed,
        read=read_packed,
        proofs={"JAX": open_packed, "NumPy": open_numpy},
        runtimes={"numpy": open_numpy, "native": open_native},
        integers=True,
        made_here=lambda start: start[8:].startswith(b'{"__metadata__":{"binwrn'),
    ),
    Format(
        "onnx",
        ".onnx",
        _is_onnx,
        write=write_onnx,
        open=open_onnx,
        read=read_onnx,
        proofs={"onnxruntime": open_onnx},
        made_here=lambda start: b"binwrn-jax" in start[:64],
        extra="deploy",
    ),
    Format(
        "stablehlo",
        ".stablehlo",
        lambda start, size: start.startswith(b"binwrn-stablehlo "),
        write=write_stablehlo,
        open=open_stablehlo,
        proofs={"StableHLO": open_stablehlo},
        extra="deploy",
    ),
    Format(
        "c",
        ".c",
        lambda start, size: start.startswith(b"/* Written by binwrn export --format c."),
        write=write_c,
        proofs={"compiled here": open_c},
        companions=(".h",),
        summary=lambda path, packed: summary_of_c(path),
    ),
    Format(
        "web",
        "",
        lambda start, size: False,  # a folder
        write=write_web,
        proofs={"WebAssembly": open_web},
        summary=lambda path, packed: summary_of_web(path),
        extra="web",
        mark=MARK,
        integers=True,
    ),
)


@functools.cache
def all_formats() -> tuple[Format, ...]:
    """`FORMATS` and those of other packages; one that cannot be loaded is named on the log and left out."""
    found = list(FORMATS)
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        try:
            plugin = entry.load()
            if not isinstance(plugin, Format) or any(plugin.name == known.name for known in found):
                raise TypeError("no binwrn_jax.deploy.formats.Format, or its name is taken")
            found.append(plugin)
        except Exception as error:
            log.warning("left out: the format %s (%s: %s)", entry.value, type(error).__name__, error)
    return tuple(found)


def get_format(name: str) -> Format:
    """The format of a name.

    Raises:
      UserError: there is none.
    """
    for known in all_formats():
        if known.name == name:
            return known
    raise UserError(f"unknown format {name!r}: choose one of {', '.join(f.name for f in all_formats())}")


def format_of(path: str | Path) -> Format | None:
    """The format of a file, by its content and not by its name; None for a folder or a pretrained name.

    Raises:
      UserError: nothing there, or a file of no known format.
    """
    path = resolve(path)
    if path.is_dir() or is_pretrained(path):
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(START)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        hint = suggestion(path)
        raise UserError(f"no model at {path}: there is no such file or folder{hint}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for known in all_formats():
        if known.recognises(start, size):
            return known
    if start.startswith(b"MATLAB"):
        raise UserError(f"{path} is a MATLAB file: `binwrn import {path} --output DIR` makes a model of it")
    raise UserError(
        f"{path} is no model: expected a folder, or a file in one of the formats "
        + ", ".join(known.name for known in all_formats())
    )


def open_model(
    path: str | Path,
    *,
    runtime: str = "auto",
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
    network: Any = None,
) -> Predictor:
    """Opens a model of any kind; what a file is, its content tells and not its name.

    Args:
      path: a workdir of train.py, a model folder (trained or imported), a packed, ONNX or StableHLO
        file, a packed file of the Hugging Face hub, ``hf:OWNER/NAME``, or the name of a pretrained network,
        see `binwrn_jax.hub.pretrained.PRETRAINED`.
      runtime: ``'auto'`` for the runtime that belongs to the kind of model; for a packed file also
        ``'numpy'``, the executable definition of the format, or ``'native'``, see docs/native.md.
      dtype: of the activations of a model folder, ``'float32'`` or ``'bfloat16'``; None: as it was
        trained. The files have theirs fixed.
      batch_size: images per run of the network, for a model folder.
      network: of a model folder whose network is none of this package, see `Model.load`.

    Raises:
      UserError: nothing there, nothing that can be run, or options that do not go with it.
    """
    path = resolve(path)
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    known = format_of(path)
    if known is None:
        if runtime != "auto":
            raise UserError(f"{path}: runtime {runtime!r} reads packed files only: `binwrn export` makes one")
        return JaxPredictor(_load_model(path, network), dtype=dtype, batch_size=batch_size)
    if network is not None:
        raise UserError(f"{path}: a {known.name} file has its network in it: give no other")
    if dtype:
        raise UserError(
            f"{path}: a {known.name} file has its dtype fixed: give a model folder, or no --dtype"
        )
    opener = known.open if runtime == "auto" else known.runtimes.get(runtime)
    if opener is None and runtime != "auto":
        raise UserError(f"{path}: runtime {runtime!r} reads packed files only: `binwrn export` makes one")
    if opener is None:
        raise UserError(
            f"{path}: a {known.name} file cannot be run from here: give what it was exported from"
        )
    return opener(path)


def _load_model(path: Path, network: Any = None) -> Model:
    """A model of a folder, or a pretrained one by its name."""
    return load_pretrained(str(path)) if is_pretrained(path) else Model.load(path, network=network)


def layers(path: str | Path) -> list[LayerRow]:
    """The convolutions of a model in order of use.

    Args:
      path: as for `open_model`; a folder, a packed or an ONNX file.

    Raises:
      UserError: nothing there, or of a kind whose layers are not listed.
    """
    path = resolve(path)
    known = format_of(path)
    if known is None:
        if is_pretrained(path):
            return layers_of_model(load_pretrained(str(path)))
        fields = read_description(path).model
        if fields is None or is_own(fields):
            raise UserError(
                f"{path}: the layers of a network of your own are not listed: export it, and inspect the file"
            )
        return layers_of_model(Model.load(path))
    return layers_of(read_model_file(path, known))


def read_model_file(path: Path, known: Format) -> PackedModel:
    """The packed model in a file of a known format.

    Raises:
      UserError: the format does not hold it, or the file is damaged.
    """
    if known.read is None:
        raise UserError(
            f"{path} is a program and no longer a network ({known.name}): give the model or the packed file "
            "that it was exported from"
        )
    return known.read(path)
