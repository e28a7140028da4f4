"""Writing model files that are proven equal to the trained network before they get their name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from binwrn_jax.deploy.formats import Format, get_format
from binwrn_jax.deploy.packed import PackedModel, pack
from binwrn_jax.deploy.predictor import JaxPredictor
from binwrn_jax.errors import UserError
from binwrn_jax.store.model import Model
from binwrn_jax.system.files import replace_files, replace_folder

# Largest difference of two logits, relative to the largest logit. All readers compute in float32 but sum in
# different orders, which makes a difference of about 1e-6 in the networks of the paper.
TOLERANCE = 1e-4


def compare(reference: np.ndarray, logits: np.ndarray) -> tuple[float, int]:
    """How far the logits of a reader are from those of the trained network.

    Args:
      reference: float32 ``[N, classes]``.
      logits: the same shape.

    Returns:
      The largest difference relative to the largest reference logit, and the number of images with
      another prediction. An image counts as such only where the two best logits of the reference are
      further apart than the tolerance: a tie is no prediction.
    """
    largest = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    error = float(np.abs(reference.astype(np.float64) - logits).max()) / largest
    if reference.shape[1] == 1:
        return error, 0  # one class is always predicted
    second, best = np.partition(reference, -2, axis=1)[:, -2:].T
    differ = (reference.argmax(1) != logits.argmax(1)) & (best - second > 2 * TOLERANCE * largest)
    return error, int(differ.sum())


def exact_arithmetic() -> contextlib.AbstractContextManager[Any]:
    """JAX on the CPU: GPUs and TPUs multiply float32 with fewer bits, which would hide real differences."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves out the CPU
        return jax.default_matmul_precision("highest")


def write_verified(
    known: Format, packed: PackedModel, path: Path, images: np.ndarray, reference: np.ndarray
) -> list[str]:
    """Writes a file under another name, reads it back, compares, and only then gives it its name.

    Args:
      known: format of the file.
      packed: the model.
      path: of the file or folder; an older one there stays until the new one is proven.
      images: uint8 ``[N, H, W, C]``.
      reference: their logits by the trained network, float32 ``[N, classes]``.

    Returns:
      A line for each reader of the format.

    Raises:
      UserError: the format is not written here, a reader's predictions or logits differ, or the path cannot
        be written.
    """
    write, lines = known.write, []
    proofs = known.proofs or ({known.name: known.open} if known.open else {})
    if write is None or not proofs:
        raise UserError(f"files of the format {known.name} cannot be written")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no such folder")
    if path.is_dir() and not known.mark:
        raise UserError(f"cannot write {path}: it is a folder")

    def write_and_compare(folder: Path) -> None:
        unverified = folder if known.mark else folder / path.name
        write(packed, unverified)
        for name, reader in proofs.items():
            with exact_arithmetic():
                logits = reader(unverified)(images)
            error, different = compare(reference, logits)
            if different or not error <= TOLERANCE:
                raise UserError(
                    f"{path} is not written: read back by {name}, {different} of {len(images)} predictions "
                    f"differ from the trained network's and logits by {error:.1e} (tolerance {TOLERANCE:g})"
                )
            lines.append(
                f"{name}: {len(images)} predictions identical to the trained network's, logits within "
                f"{error:.1e} of the largest (tolerance {TOLERANCE:g})"
            )

    replace = replace_folder if known.mark else replace_files
    replace(path, write_and_compare)
    return lines


def reference_of(model: Model, images: np.ndarray) -> np.ndarray:
    """Logits ``[N, classes]`` of uint8 images ``[N, H, W, C]``, computed in float32 as in all files."""
    with exact_arithmetic():
        return JaxPredictor(model, dtype="float32")(images)


def pack_model(folder: Path, path: Path, images: np.ndarray) -> tuple[PackedModel, list[str]]:
    """Packs what a model folder holds into a verified file; the end of each 1-bit training run.

    Args:
      folder: of the model.
      path: of the packed file.
      images: uint8 ``[N, H, W, C]`` to compare on, the first one becomes the golden image.

    Returns:
      The packed model and a line for each reader.

    Raises:
      UserError: nothing to pack, or it does not agree with the trained network.
    """
    model = Model.load(folder)
    packed = pack(model, images[0])
    return packed, write_verified(get_format("packed"), packed, path, images, reference_of(model, images))
