"""One bit per weight: Eq. 1 of the paper, and the rules that it is compared with.

Every rule is a pure function ``rule(w, scale) -> w_hat`` from the latent float32 kernel
``w`` of shape ``[F, F, C_in, C_out]``, the one that SGD updates, to the kernel that the
convolution uses in the forward and in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from binwrn_jax.errors import UserError

Kernel = Float[Array, "*window Cout"]  # [F, F, C_in, C_out] of a convolution, [C_in, C_out] of a dense layer
Rule = Callable[[Kernel, float], Kernel]


def he_scale(shape: tuple[int, ...], *, plain: bool = False) -> float:
    """The constant scale s of a layer, which is also the standard deviation of its initial weights.

    ``s = sqrt(2 / (F^2 C_in))`` (Eq. 1, He et al. 2015a); plain networks, the ones without
    skip connections, use ``2 / sqrt(F^2 C_in)`` (appendix B).

    Args:
      shape: kernel shape ``(F, F, C_in, C_out)``; of a dense layer ``(C_in, C_out)``, of a grouped
        convolution with the channels of one group in the place of C_in.
      plain: whether the network has no skip connections.

    >>> he_scale((3, 3, 2, 64))
    0.3333333333333333
    """
    fan_in = math.prod(shape[:-1])
    return 2.0 / math.sqrt(fan_in) if plain else math.sqrt(2.0 / fan_in)


@jax.custom_vjp
def sign(w: Float[Array, ...]) -> Float[Array, ...]:
    """-1 where ``w < 0``, +1 elsewhere (so ``sign(0) = +1``); its gradient is the identity.

    Any shape and float dtype, which the result shares.

    >>> sign(jnp.array([-0.5, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    return jnp.where(w < 0, -1, 1).astype(w.dtype)


sign.defvjp(lambda w: (sign(w), None), lambda _, g: (g,))


@jax.custom_vjp
def _binarize(w: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.where(w < 0, -scale, scale)


# d W_hat / d W is taken as the identity: straight through the sign *and* the scale (section
# 2.1.1). Written as `scale * sign(w)` the chain rule would shrink the gradient by `scale`; written
# as `w + stop_gradient(w_hat - w)` rounding would give more than two values.
_binarize.defvjp(
    lambda w, scale: (_binarize(w, scale), scale),
    lambda scale, g: (g, jnp.zeros_like(scale)),
)


def one_bit(w: Kernel, scale: float | None = None) -> Kernel:
    """Eq. 1: ``W_hat = s sign(W)``, exactly two values, gradient straight through to ``W``.

    Args:
      w: latent kernel ``[F, F, C_in, C_out]``, float.
      scale: the layer's constant s; `he_scale` of the shape where None.

    Returns:
      The kernel of the same shape and dtype, all entries ``-s`` or ``+s``; zero counts as
      positive. The cotangent of ``w`` is exactly that of the result.

    >>> w = jnp.array([-0.3, 0.0, 1.2]).reshape(1, 1, 1, 3)
    >>> one_bit(w, 0.5).ravel().tolist()
    [-0.5, 0.5, 0.5]
    >>> jax.grad(lambda w: (3 * one_bit(w, 0.5)).sum())(w).ravel().tolist()
    [3.0, 3.0, 3.0]
    """
    s = he_scale(w.shape) if scale is None else scale
    return _binarize(w, jnp.asarray(s, w.dtype))


def full_precision(w: Kernel, scale: float | None = None) -> Kernel:
    """The 32-bit twin: ``W_hat = W``."""
    del scale
    return w


def binary_connect(w: Kernel, scale: float | None = None) -> Kernel:
    """BinaryConnect (Courbariaux et al. 2015): ``W_hat = sign(W)``, no scale, straight through.

    Clip the latent weights to [-1, 1] after each update: see `clips_latent`.
    """
    del scale
    return sign(w)


def _bwn(by_channel: bool) -> Rule:
    def mean(x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=tuple(range(x.ndim - by_channel)), keepdims=True)

    @jax.custom_vjp
    def rule(w: jax.Array) -> jax.Array:
        return mean(jnp.abs(w)) * sign(w)

    def backward(w: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        # Product rule: alpha times the straight-through sign (zero outside [-1, 1]), plus the
        # extra term that comes from alpha = mean|W| depending on every weight of its group.
        signs = sign(w)
        alpha = mean(jnp.abs(w))
        through_sign = alpha * g * (jnp.abs(w) <= 1)
        through_alpha = signs * mean(g * signs)
        return (through_sign + through_alpha,)

    rule.defvjp(lambda w: (rule(w), w), backward)

    def without_scale(w: Kernel, scale: float | None = None) -> Kernel:
        del scale
        return rule(w)

    return without_scale


bwn_channel = _bwn(by_channel=True)
bwn_channel.__doc__ = """BWN (Rastegari et al. 2016): ``mean|W| sign(W)``, one mean per output channel."""
bwn_layer = _bwn(by_channel=False)
bwn_layer.__doc__ = """BWN with a single ``mean|W|`` for the layer (section 5.2 finds it as good)."""

RULES: dict[str, Rule] = {
    "1bit": one_bit,
    "32bit": full_precision,
    "bwn": bwn_channel,
    "bwn_layer": bwn_layer,
    "binaryconnect": binary_connect,
}


def get_rule(name: str) -> Rule:
    """The rule called ``name`` (a key of `RULES`).

    Raises:
      UserError: there is no such rule.
    """
    if name not in RULES:
        raise UserError(f"unknown weights {name!r}: choose one of {', '.join(RULES)}")
    return RULES[name]


def is_one_bit(name: str) -> bool:
    """Whether a rule gives two values per scale group (all but ``32bit``)."""
    return name != "32bit"


def clips_latent(name: str) -> bool:
    """Whether the latent weights of a rule are clipped to [-1, 1] after each update."""
    return name == "binaryconnect"
