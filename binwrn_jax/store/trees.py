"""Variables of any network as nested dictionaries of arrays, which is what a model folder holds."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.nn.binarize import path_of

Tree = Any


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is stored: keys of random numbers and functions are not."""
    return (
        hasattr(leaf, "shape")
        and hasattr(leaf, "dtype")
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    )


def as_dictionaries(tree: Tree) -> dict[str, Any]:
    """The arrays of a tree by the words of their paths; nested dictionaries of arrays stay as they are.

    Raises:
      UserError: two arrays have the same path, or one lies on the path of another.
    """
    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _is_number(leaf):
            continue
        *folders, last = path_of(path).split("/")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
        if not isinstance(place, dict) or last in place:
            raise UserError(f"two variables have the path {path_of(path)}: their names must differ")
        place[last] = leaf
    return result


def with_arrays(tree: Tree, stored: dict[str, Any]) -> Tree:
    """A tree like ``tree`` with the arrays of `as_dictionaries`; what was not stored stays as it is."""

    def choose(path: Any, leaf: Any) -> Any:
        if not _is_number(leaf):
            return leaf
        found: Any = stored
        for word in path_of(path).split("/"):
            found = found[word]
        return found

    return jax.tree_util.tree_map_with_path(choose, tree)


def variables_of(network: Any, image_shape: tuple[int, ...]) -> Tree | None:
    """The variables of a network, as arrays or their shapes.

    Returns:
      What Flax Linen's ``init`` gives for images, None where it takes something else; the state of a Flax NNX
      module; any other tree, such as an Equinox module, is its own variables.
    """
    if isinstance(network, nn.Module):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        try:
            return jax.eval_shape(network.init, rngs, jax.ShapeDtypeStruct((1, *image_shape), np.uint8))
        except UserError:
            raise
        except Exception:
            return None
    nnx = _nnx()
    return nnx.state(network) if isinstance(network, nnx.Module) else network


def call(network: Any, variables: Tree, images: Any) -> jax.Array:
    """Logits of images at inference, with the variables given.

    Raises:
      UserError: nobody but its author can say how this network is called.
    """
    if isinstance(network, nn.Module):
        return jnp.asarray(network.apply(jax.tree.map(jnp.asarray, variables), images))
    nnx = _nnx()
    if isinstance(network, nnx.Module):
        whole = nnx.merge(nnx.graphdef(network), variables)
        whole.eval()
        return jnp.asarray(whole(images))
    if callable(variables):  # an Equinox module takes one image
        return jnp.asarray(jax.vmap(variables)(images))
    raise UserError(
        "this network cannot be called with images alone: use its variables as you did in training"
    )


def _nnx() -> Any:
    from flax import nnx  # takes a while, and only networks of its own need it

    return nnx
