"""The convolutions of packed models, for ``binwrn inspect``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from binwrn_jax.deploy.packed import PackedModel, read_packed
from binwrn_jax.deploy.predictor import LayerRow
from binwrn_jax.nn.rules import he_scale


def layers(path: str | Path) -> list[LayerRow]:
    """The convolutions of a packed file in order of use, for ``binwrn inspect``.

    Raises:
      UserError: see `read_packed`.
    """
    return layers_of(read_packed(path))


def layers_of(packed: PackedModel) -> list[LayerRow]:
    """The convolutions of a packed model in order of use."""
    network = packed.metadata.get("network") or {}
    rows = []
    for operation in packed.operations:
        if operation["op"] == "conv":
            signs = packed.signs(operation["tensor"])
            one_scale = network.get("weights") == "1bit"
            rows.append(
                LayerRow(
                    name=operation["tensor"],
                    shape=signs.shape,
                    scale=he_scale(signs.shape, plain=bool(network.get("plain"))) if one_scale else None,
                    plus_share=float((signs > 0).mean()),
                    values=len(np.unique(signs)),
                    bits=signs.size,
                    bytes=packed.coded.get(operation["tensor"], -(-signs.size // 8)),
                )
            )
    return rows
