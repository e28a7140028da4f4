"""Networks by the fields of a configuration or of a model's description, and networks of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from binwrn_jax.errors import UserError, printable
from binwrn_jax.nn.wide_resnet import WideResNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
WIDE_RESNET = "wide_resnet"


def default_fields() -> dict[str, Any]:
    """The fields of the paper's network 20-4 but for its ``type``; a new one at each call."""
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


def is_own(fields: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether the ``model`` fields name a network that is none of this package."""
    return bool(fields.get("type", WIDE_RESNET) != WIDE_RESNET)


def stored_fields(fields: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The fields as descriptions and files have them: without a ``type`` that says nothing new."""
    plain = dict(fields.to_dict() if isinstance(fields, ConfigDict) else fields)
    if not is_own(plain):
        plain.pop("type", None)
    return plain


def network_name(fields: Mapping[str, Any] | ConfigDict) -> str:
    """What a person calls the network: ``20-4``, or ``PACKAGE:FUNCTION``."""
    return str(fields["type"]) if is_own(fields) else f"{fields['depth']}-{fields['width']:g}"


def create_network(fields: Mapping[str, Any] | ConfigDict, num_classes: int) -> WideResNet:
    """The network of this package that the ``model`` fields describe; no code is imported.

    Raises:
      UserError: unknown dtype, or a network of the user's own, whose code no file may bring along.
    """
    if is_own(fields):
        name = printable(str(fields["type"]))[:100]
        raise UserError(
            f"its network is {name}, and no code is imported because a file names it: give it yourself, by "
            f"--network {name} or network=..."
        )
    return WideResNet(
        num_classes=num_classes, **{**stored_fields(fields), "dtype": get_dtype(fields["dtype"])}
    )


def configured_network(fields: Mapping[str, Any] | ConfigDict, num_classes: int) -> nn.Module:
    """The network that the ``model`` fields of a user's configuration describe, which may be the user's own.

    Raises:
      UserError: see `create_network` and `import_network`.
    """
    if is_own(fields):
        return import_network(str(fields["type"]), fields, num_classes)
    return create_network(fields, num_classes)


def import_network(name: str, fields: Mapping[str, Any] | ConfigDict, num_classes: int) -> nn.Module:
    """A network that a function of the user's gives. Only for names that the user gave, never for a file's.

    Args:
      name: ``PACKAGE:FUNCTION``; the module is looked for where Python does, then in the current folder.
      fields: of the configuration's ``model``. The function gets them, and ``num_classes``, as one
        configuration: ``def create(config): return Network(config.num_classes, width=config.width)``.
      num_classes: length of its logits.

    Returns:
      A Flax Linen module whose ``__call__(images, train=False)`` gives the logits of uint8 ``[N, H, W, C]``.

    Raises:
      UserError: there is no such function, it fails, or it gives no such module.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(
            f"model.type {name!r} is no network: use {WIDE_RESNET}, or your own as PACKAGE:FUNCTION"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a program that was installed does not look there
    try:
        create = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module does
        raise UserError(f"the network {name} cannot be imported ({_one_line(error)})") from error
    plain = fields.to_dict() if isinstance(fields, ConfigDict) else dict(fields)
    try:
        network = create(ConfigDict({**plain, "num_classes": num_classes}))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the function {name} fails ({_one_line(error)})") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"the function {name} returns {type(network).__name__}: it must return a flax.linen.Module"
        )
    return network


def check_network(network: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuses a network of the user's own that training could not call; shapes are computed, nothing else.

    Raises:
      UserError: it takes other arguments, has variables that training does not keep, or gives no logits.
    """
    name = type(network).__name__
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    try:
        variables = jax.eval_shape(network.init, rngs, images)
        logits, _ = jax.eval_shape(
            lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs),
            variables,
            images,
        )
        at_inference = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, images)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network {name} cannot be called with (images, train=...) on uint8 {list(images.shape)} "
            f"({_one_line(error)})"
        ) from error
    others = set(variables) - {"params", "batch_stats"}
    if others:
        raise UserError(
            f"the network {name} has the variables {', '.join(sorted(others))}: params and batch_stats alone "
            "are trained and saved"
        )
    if not jax.tree.leaves(variables.get("params", {})):
        raise UserError(f"the network {name} has no parameters: there is nothing to train")
    for result in (logits, at_inference):
        if getattr(result, "shape", None) != (2, num_classes):
            raise UserError(
                f"the network {name} gives {getattr(result, 'shape', type(result).__name__)} of 2 images: "
                f"logits are [2, {num_classes}]"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
