"""Cross-entropy and the sums from which every reported metric is divided out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

ECE_BINS = 15

Sums = dict[str, jax.Array]


def cross_entropy(logits: Float[Array, "N classes"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Softmax cross-entropy of each example in nats, float32 ``[N]``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def average_crops(logits: Float[Array, "rows classes"], crops: int) -> Float[Array, "N classes"]:
    """Logarithm of the softmax averaged over the crops of each image (section 3.3).

    Args:
      logits: ``[N * crops, classes]``, the crops of an image one after the other.
      crops: of each image.

    Returns:
      float32 ``[N, classes]``, logits of the average: their softmax is the average.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(-1, crops, logits.shape[-1])
    return jax.nn.logsumexp(logs, axis=1) - jnp.log(float(crops))


def metric_sums(logits: Float[Array, "N classes"], labels: Int[Array, " N"], mask: Bool[Array, " N"]) -> Sums:
    """Sums over the examples where ``mask`` is True, to be added over batches and divided on the host.

    Args:
      logits: ``[N, classes]``.
      labels: ``[N]``, in [0, classes).
      mask: ``[N]``, False at the padding of a last batch.

    Returns:
      ``n``, ``correct``, ``top5_correct``: int32 scalars. An example is correct if no class has a
      larger logit than its own, ties broken towards the lower index, as argmax does. ``loss``:
      float32 sum in nats. ``bin_n``, ``bin_correct`` (int32) and ``bin_confidence`` (float32), each
      ``[15]``: calibration by equal bins of the largest softmax value (Guo et al. 2017).
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = (logits > own) | ((logits == own) & (jnp.arange(classes)[None, :] < labels[:, None]))
    # A NaN compares False with everything and would count as correct: such logits are all wrong.
    finite = jnp.isfinite(logits).all(-1)
    rank = jnp.where(finite, before.sum(-1), classes)
    correct = (rank == 0) & mask
    confidence = jnp.where(mask & finite, jax.nn.softmax(logits).max(-1), 0.0)
    bins = jnp.clip(jnp.ceil(confidence * ECE_BINS).astype(jnp.int32) - 1, 0, ECE_BINS - 1)

    def by_bin(values: jax.Array) -> jax.Array:
        return jnp.zeros(ECE_BINS, values.dtype).at[bins].add(values)

    return {
        "n": mask.sum(dtype=jnp.int32),
        "correct": correct.sum(dtype=jnp.int32),
        "top5_correct": ((rank < 5) & mask).sum(dtype=jnp.int32),
        "loss": jnp.where(mask, cross_entropy(logits, labels), 0.0).sum(),
        "bin_n": by_bin(mask.astype(jnp.int32)),
        "bin_correct": by_bin(correct.astype(jnp.int32)),
        "bin_confidence": by_bin(confidence),
    }
