"""The convolutions of models, for ``binwrn inspect``."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from binwrn_jax.deploy.packed import PackedModel
from binwrn_jax.deploy.predictor import LayerRow
from binwrn_jax.nn.rules import get_rule, he_scale, is_one_bit
from binwrn_jax.store.model import Model


def layers_of(packed: PackedModel) -> list[LayerRow]:
    """The convolutions of a packed model in order of use."""
    network = packed.metadata.get("network") or {}
    rows = []
    for operation in packed.operations:
        if operation["op"] == "conv":
            name = operation["tensor"]
            shape = packed.kernel_shape(name)
            size = math.prod(shape)
            if name in packed.kernels:
                kernel = packed.kernels[name]
                rows.append(
                    LayerRow(name, shape, None, None, len(np.unique(kernel)), 32 * size, kernel.nbytes)
                )
                continue
            plus = packed.count_plus(name)
            one_scale = network.get("weights") == "1bit"
            rows.append(
                LayerRow(
                    name=name,
                    shape=shape,
                    scale=he_scale(shape, plain=bool(network.get("plain"))) if one_scale else None,
                    plus_share=plus / size,
                    values=2 if 0 < plus < size else 1,
                    bits=size,
                    bytes=packed.coded.get(name, -(-size // 8)),
                )
            )
    return rows


def layers_of_model(model: Model) -> list[LayerRow]:
    """The convolutions of a trained network of this package in order of use."""
    variables, fields = model.variables, model.description.model
    assert fields is not None
    weights, plain = fields["weights"], fields["plain"]
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
