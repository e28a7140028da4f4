"""What a batch is: the arrays that a step takes."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Int, Shaped

Inputs = dict[str, Any]  # see `fetch`


def fetch(inputs: Inputs) -> tuple[Shaped[jax.Array, "B ..."], Int[jax.Array, " B"]]:
    """Images uint8 ``[B, H, W, C]`` and labels int32 ``[B]`` of a batch.

    ``inputs`` has either these as ``images`` and ``labels``, or a whole data set of N under these
    names with ``indices`` int32 ``[B]`` into it (data that lives on the device); and, where several devices
    may share the batch, ``split``, a `binwrn_jax.parallel.sharding.BatchSplit`.
    """
    images, labels = inputs["images"], inputs["labels"]
    if "indices" in inputs:
        images, labels = images[inputs["indices"]], labels[inputs["indices"]]
    split = inputs.get("split")
    return (images, labels) if split is None else (split(images), split(labels))
