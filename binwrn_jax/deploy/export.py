"""Writing model files that are proven equal to the trained network before they get their name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.formats import Format, get_format
from binwrn_jax.deploy.graph_runtime import run
from binwrn_jax.deploy.packed import PackedModel, pack
from binwrn_jax.deploy.predictor import JaxPredictor, in_batches
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import BATCH_SIZE
from binwrn_jax.graph.operations import Graph
from binwrn_jax.graph.simplify import simplify
from binwrn_jax.graph.trace import activation_dtypes, split, trace
from binwrn_jax.nn.operations import portable
from binwrn_jax.nn.wide_resnet import WideResNet
from binwrn_jax.store.model import Model
from binwrn_jax.system.files import replace_files, replace_folder

# Largest difference of two logits, relative to the largest logit. All readers compute in float32 but sum in
# different orders, which makes a difference of about 1e-6 in the networks of the paper.
TOLERANCE = 1e-4
LOW_PRECISION_TOLERANCE = 0.05  # of logits in bfloat16, which has 8 bits


def compare(
    reference: Float[np.ndarray, "N classes"], logits: Float[np.ndarray, "N classes"]
) -> tuple[float, int]:
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
    known: Format,
    packed: PackedModel,
    path: Path,
    images: UInt8[np.ndarray, "N H W C"],
    reference: Float[np.ndarray, "N classes"],
) -> list[str]:
    """Writes a file under another name, reads it back, compares, and only then gives it its name.

    Args:
      known: format of the file.
      packed: the model.
      path: of the file or folder; an older one there stays until the new one is proven.
      images: uint8 ``[N, H, W, C]``.
      reference: their logits by the trained network, float32 ``[N, classes]``; of an integer network those
        of NumPy's reader, to which all others must be equal.

    Returns:
      A line for each reader of the format.

    Raises:
      UserError: the format is not written here, a reader's predictions or logits differ, or the path cannot
        be written.
    """
    write, lines = known.write, []
    integer = numpy_reader.is_integer(packed.metadata)
    if integer and not known.integers:
        raise UserError(f"8-bit activations cannot be written to files of the format {known.name} yet")
    tolerance, whose = (0.0, "NumPy's") if integer else (TOLERANCE, "the trained network's")
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
            if different or not error <= tolerance:
                raise UserError(
                    f"{path} is not written: read back by {name}, {different} of {len(images)} predictions "
                    f"differ from {whose} and logits by {error:.1e} (tolerance {tolerance:g})"
                )
            lines.append(
                f"{name}: {len(images)} predictions identical to {whose}, logits within "
                f"{error:.1e} of the largest (tolerance {tolerance:g})"
            )

    replace = replace_folder if known.mark else replace_files
    replace(path, write_and_compare)
    return lines


def reference_of(
    model: Model, images: UInt8[np.ndarray, "N H W C"]
) -> tuple[Float[np.ndarray, "N classes"], tuple[str, ...]]:
    """Logits ``[N, classes]`` of uint8 images ``[N, H, W, C]``, computed in float32 as in all files.

    Returns:
      The logits, and lines about them for the user.
    """
    if isinstance(model.network, WideResNet):
        with exact_arithmetic():
            return JaxPredictor(model, dtype="float32")(images), ()
    shape = model.description.image_shape
    graph = lambda: simplify(trace(model.apply, model.variables, shape))  # noqa: E731
    return reference_logits(model.apply, model.variables, graph, images)


def reference_logits(
    apply: Callable[[Any, Any], Any], variables: Any, graph: Callable[[], Graph], images: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The logits that a file of any network must give, and lines about them for the user.

    They are the network's own, unless it computes with fewer bits than float32: then those of its graph.

    Args:
      apply: ``apply(variables, images)``, the network at inference.
      variables: any tree.
      graph: gives the network's graph.
      images: uint8 ``[N, H, W, C]``.

    Raises:
      UserError: in float32 the network is another one.
    """
    leaves, _, function = split(apply, variables)
    with exact_arithmetic(), portable():
        logits = jax.jit(function)

        def network(batch: np.ndarray) -> jax.Array:
            return logits(leaves, batch).astype(jnp.float32)

        classes = logits.eval_shape(leaves, images[:1]).shape[-1]
        own = in_batches(network, images, classes, BATCH_SIZE)
        dtypes = activation_dtypes(apply, variables, images.shape[1:])
        low = [dtype for dtype in dtypes if dtype in ("bfloat16", "float16")]
        if not low:
            return own, ()
        found = graph()
        tensors = {op.output: {k: jnp.asarray(v) for k, v in op.tensors.items()} for op in found.operations}
        exact = in_batches(jax.jit(lambda batch: run(found, tensors, batch)), images, classes, BATCH_SIZE)
    error, _ = compare(exact, own)
    if not error <= LOW_PRECISION_TOLERANCE:
        raise UserError(
            f"the network computes in {low[0]}; in float32 its logits differ by {error:.1e} of the largest "
            f"(tolerance {LOW_PRECISION_TOLERANCE:g}): give an apply in float32"
        )
    return exact, (
        f"the network computes in {low[0]} and the file in float32: their logits differ by {error:.1e} of "
        f"the largest (tolerance {LOW_PRECISION_TOLERANCE:g})",
    )


def pack_model(
    folder: Path, path: Path, images: np.ndarray, network: Any = None
) -> tuple[PackedModel, list[str]]:
    """Packs what a model folder holds into a verified file; the end of each 1-bit training run.

    Args:
      folder: of the model.
      path: of the packed file.
      images: uint8 ``[N, H, W, C]`` to compare on, the first one becomes the golden image.
      network: of a model whose network is none of this package, see `Model.load`.

    Returns:
      The packed model and a line for each reader.

    Raises:
      UserError: nothing to pack, or it does not agree with the trained network.
    """
    model = Model.load(folder, network=network)
    packed = pack(model, images[0])
    reference, notes = reference_of(model, images)
    return packed, [*notes, *write_verified(get_format("packed"), packed, path, images, reference)]
