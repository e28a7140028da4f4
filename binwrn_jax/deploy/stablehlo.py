"""StableHLO files: the network as one portable program for CPU, CUDA and TPU, by `jax.export`.

A file is three parts: the line ``binwrn-stablehlo 1``; a line of JSON with the packed file's metadata
(``binwrn``), the ``jax_version`` and the ``program_sha256``; and the bytes of
`jax.export.Exported.serialize`. The weights are constants of the program, booleans that it stores at
one bit each.

JAX promises to read such programs for about six months: they are a convenience, and the packed file
is what to keep.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from binwrn_jax.data.arrays import check_images
from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.jax_runtime import LoadedModel
from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.deploy.predictor import in_batches
from binwrn_jax.errors import UserError, require
from binwrn_jax.evaluation import BATCH_SIZE
from binwrn_jax.nn.operations import portable
from binwrn_jax.system.files import replace_file

FIRST_LINE = b"binwrn-stablehlo 1"
PLATFORMS = ("cpu", "cuda", "tpu")
LOCATIONS = "jax_traceback_in_locations_limit"  # of JAX: frames of the caller that a program names


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Programs do not say from which file and line each operation comes: these are paths of this machine."""
    before = getattr(jax.config, LOCATIONS)
    jax.config.update(LOCATIONS, 0)
    try:
        yield
    finally:
        jax.config.update(LOCATIONS, before)


def write_stablehlo(packed: PackedModel, path: str | Path) -> None:
    """Writes a packed network as a StableHLO file, atomically.

    The program takes uint8 images ``[batch, H, W, C]``, any batch, and gives float32 logits
    ``[batch, num_classes]``.

    Raises:
      UserError: the package flatbuffers is not installed, or the path cannot be written.
    """
    require("flatbuffers", "writing StableHLO files")
    model = LoadedModel(packed)  # its kernels are replaced below

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        # XLA turns the constants into floats when it compiles. It would not do so with the bits in
        # bytes: it would unpack them at each call.
        kernels = {
            name: jnp.where(jnp.asarray(packed.signs(name) > 0), jnp.float32(1), jnp.float32(-1))
            for name in packed.bits
        }
        return model.apply({**model.weights, **kernels}, images)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *packed.metadata["input"]["shape"]), jnp.uint8)
    with portable(), _without_locations():
        program = bytes(jax.export.export(logits, platforms=PLATFORMS)(images).serialize())
    metadata = {
        "binwrn": packed.metadata,
        "jax_version": jax.__version__,
        "program_sha256": hashlib.sha256(program).hexdigest(),
    }
    try:
        replace_file(Path(path), b"\n".join([FIRST_LINE, json.dumps(metadata).encode(), program]))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


class StablehloPredictor:
    """A program on JAX's default device.

    Attributes:
      description: the metadata of the file, with ``image_shape``.
    """

    def __init__(self, program: jax.export.Exported, description: dict[str, Any]) -> None:
        self.description = description
        self._run = jax.jit(program.call)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits, float32 ``[N, num_classes]``, of uint8 images ``[N, H, W, C]``, any N."""
        images = check_images(images, self.description["image_shape"])
        return in_batches(self._run, images, self.description["num_classes"], BATCH_SIZE)


def open_stablehlo(path: str | Path) -> StablehloPredictor:
    """Opens a file of `write_stablehlo`.

    The checksum tells damage from use; it is no protection from a stranger: a StableHLO file is a
    program.

    Raises:
      UserError: no such file; not of this project; damaged; made by a JAX too new or too old for the
        one here, or not for the device here.
    """
    require("flatbuffers", "reading StableHLO files")
    try:
        parts = Path(path).read_bytes().split(b"\n", 2)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    if len(parts) != 3 or parts[0] != FIRST_LINE:
        raise UserError(
            f"{path} is no StableHLO file of `binwrn export` that this version reads: export it again"
        )
    try:
        header = numpy_reader.parse_json(parts[1].decode(), "the second line")
        if hashlib.sha256(parts[2]).hexdigest() != header["program_sha256"]:
            raise ValueError("damaged: the program does not have the checksum stated")
        program = jax.export.deserialize(bytearray(parts[2]))
        metadata = header["binwrn"]
        numpy_reader.check_description(metadata)
        shape, classes = metadata["input"]["shape"], metadata["num_classes"]
        ((image,), (logits,)) = program.in_avals, program.out_avals
        if (image.shape[1:], image.dtype) != (tuple(shape), np.uint8):
            raise ValueError(f"the program takes {image}, not images of {shape}")
        if (logits.shape[1:], logits.dtype) != ((classes,), np.float32):
            raise ValueError(f"the program gives {logits}, not {classes} logits")
        # Reads the program for the device here, without compiling it.
        jax.jit(program.call).lower(jax.ShapeDtypeStruct((1, *shape), np.uint8))
    except Exception as error:  # jax.export and the parsers below it have no common error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(
            f"{path} cannot be used with JAX {jax.__version__} on {jax.default_backend()} ({reason}): "
            "export it again with this JAX from the model or the packed file"
        ) from error
    return StablehloPredictor(program, {**metadata, "image_shape": shape, "dataset": metadata.get("dataset")})
