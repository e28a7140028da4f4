"""`BinaryConv` and `BinaryDense` for Flax NNX: its own layers with a weight rule before the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from binwrn_jax.nn.layers import pair
from binwrn_jax.nn.rules import Rule, get_rule, he_scale

Scale = float | Callable[[tuple[int, ...]], float]


def _with_rule(rule: str | Rule, scale: Scale) -> Callable[..., Any]:
    function = get_rule(rule) if isinstance(rule, str) else rule

    def promote(arrays: tuple[Any, ...], **dtypes: Any) -> Any:
        inputs, kernel, bias = arrays
        s = scale(kernel.shape) if callable(scale) else scale
        return promote_dtype((inputs, function(kernel, s), bias), **dtypes)

    return promote


def _initial(scale: Scale) -> Callable[..., Any]:
    def init(key: Any, shape: tuple[int, ...], *arguments: Any, **fields: Any) -> Any:
        s = scale(shape) if callable(scale) else scale
        return nnx.initializers.normal(s)(key, shape, *arguments, **fields)

    return init


class BinaryConv(nnx.Conv):
    """`flax.nnx.Conv` whose latent kernel passes through a weight rule, as `BinaryConv` of Linen.

    Args:
      in_features: C_in.
      out_features: C_out.
      kernel_size: (F_h, F_w), or one number for both.
      rule: name of a rule, or a function ``rule(kernel, scale)``.
      scale: the layer's scale s, or a function that gives it from the kernel's shape.
      kernel_init: None for He's method, with the scale as standard deviation.
      fields: all others of `flax.nnx.Conv`, ``rngs`` among them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        rule: str | Rule = "1bit",
        scale: Scale = he_scale,
        kernel_init: Callable[..., Any] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            pair(kernel_size, "kernel_size"),
            kernel_init=kernel_init or _initial(scale),
            promote_dtype=_with_rule(rule, scale),
            **fields,
        )


class BinaryDense(nnx.Linear):
    """`flax.nnx.Linear` whose latent kernel passes through a weight rule; see `BinaryConv`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rule: str | Rule = "1bit",
        scale: Scale = he_scale,
        kernel_init: Callable[..., Any] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            kernel_init=kernel_init or _initial(scale),
            promote_dtype=_with_rule(rule, scale),
            **fields,
        )
