"""Networks by the fields of a configuration or of a model's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from binwrn_jax.errors import UserError
from binwrn_jax.nn.wide_resnet import WideResNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def default_fields() -> dict[str, Any]:
    """The fields of the paper's network 20-4; a new one at each call."""
    return {
        "depth": 20,
        "width": 4.0,
        "weights": "1bit",
        "plain": False,
        "padding": "symmetric",
        "input_relu": True,
        "norm": "batch",
        "affine": False,
        "ghost_size": 0,
        "temperature": 1.0,
        "dtype": "float32",
    }


def get_dtype(name: str) -> Any:
    """The dtype of activations of that name.

    Raises:
      UserError: there is none.
    """
    if name not in DTYPES:
        raise UserError(f"unknown model.dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def create_network(fields: Mapping[str, Any] | ConfigDict, num_classes: int) -> WideResNet:
    """The network that the ``model`` fields describe.

    Raises:
      UserError: unknown dtype.
    """
    return WideResNet(num_classes=num_classes, **{**fields, "dtype": get_dtype(fields["dtype"])})
