"""One bit per weight for the parameters of any JAX network: a tree transform for use inside the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from binwrn_jax.errors import UserError
from binwrn_jax.nn.rules import Rule, get_rule, he_scale

Tree = Any
Mask = Callable[[Tree], Tree] | Tree
Scale = float | Callable[[tuple[int, ...]], float]


def path_of(path: Sequence[Any]) -> str:
    """A path in a tree as words with slashes, such as ``'params/Conv_0/kernel'``.

    The box that Flax NNX puts around each array is left out.
    """
    words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if len(words) > 1 and words[-1] == "value" and hasattr(path[-1], "name"):
        words.pop()
    return "/".join(words)


def by_path(predicate: Callable[[str], bool]) -> Callable[[Tree], Tree]:
    """A mask, as optax takes them: True at the leaves whose path fulfils the predicate.

    Args:
      predicate: of paths such as ``'Conv_0/kernel'``.

    >>> by_path(lambda path: path.endswith("kernel"))({"a": {"kernel": 1, "bias": 2}})
    {'a': {'bias': False, 'kernel': True}}
    """
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(predicate(path_of(path))), tree)


def binarize(
    params: Tree,
    mask: Mask | None = None,
    *,
    rule: str | Rule = "1bit",
    scale: Scale | None = None,
    layout: str = "HWIO",
) -> Tree:
    """The parameters with the chosen latent kernels replaced by the kernels that the network uses (Eq. 1).

    Use it inside the loss, so that gradients reach the latent kernels:
    ``network.apply({"params": binarize(params, by_path(is_kernel))}, images)``.

    Args:
      params: any tree of arrays (Flax Linen, NNX state, Equinox, dictionaries), or one kernel.
      mask: which leaves are latent kernels, in optax's convention: a tree of booleans, which may be a prefix
        of ``params``, or a function of ``params`` that returns one, see `by_path`. One kernel needs none.
      rule: key of `binwrn_jax.nn.rules.RULES`, or a function ``rule(kernel, scale)`` of kernels whose last
      axis
        is that of the output channels.
      scale: s of Eq. 1, or a function that gives it from such a kernel's shape; None for He's,
        ``sqrt(2 / fan-in)``.
      layout: letters of a kernel's axes, ``'O'`` first or last among them: ``'HWIO'`` in Flax, ``'OIHW'`` in
        Equinox. The fan-in is the number of weights of one output, also of dense kernels (``[I, O]`` or ``[O,
        I]``).

    Returns:
      A tree like ``params``; the other leaves are the same objects.

    Raises:
      UserError: a tree without a mask, a mask that chooses nothing, or a leaf that is no kernel.

    >>> w = jnp.array([[0.3, -0.2], [-1.0, 0.0]])
    >>> binarize({"kernel": w, "bias": w[0]}, by_path(lambda path: path == "kernel"))["kernel"].tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    if layout[:1] != "O" and layout[-1:] != "O":
        raise UserError(f"layout {layout!r} must begin or end with O, the output channels: 'HWIO' or 'OIHW'")
    function = get_rule(rule) if isinstance(rule, str) else rule
    size = he_scale if scale is None else scale

    def one(leaf: Any) -> Any:
        kernel = jnp.moveaxis(leaf, 0, -1) if layout[0] == "O" else leaf
        s = size(kernel.shape) if callable(size) else size
        used = function(kernel, s)
        return jnp.moveaxis(used, -1, 0) if layout[0] == "O" else used

    if mask is not None:
        return _replace_chosen(params, mask, one)
    if not hasattr(params, "ndim"):
        raise UserError("binarize needs a mask for a tree: binwrn_jax.by_path(lambda path: ...), for example")
    return one(params)


def _replace_chosen(params: Tree, mask: Mask, function: Callable[[Any], Any]) -> Tree:
    """The tree with ``function`` of each leaf that the mask chooses, see `binarize`."""
    # A tree of booleans may be callable, as Equinox modules are.
    is_function = callable(mask) and jax.tree_util.all_leaves([mask])
    chosen = mask(params) if is_function else mask
    found = 0

    def apply(flag: Any, part: Tree) -> Tree:
        nonlocal found
        if not flag:
            return part
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            found += 1
            if getattr(leaf, "ndim", 0) < 2:
                raise UserError(
                    f"the mask chooses {path_of(path) or 'a leaf'}, which is no kernel: it has one axis"
                )
        return jax.tree.map(function, part)

    result = jax.tree.map(apply, chosen, params)
    if not found:
        raise UserError("the mask chooses no leaf: nothing would be binarised")
    return result
