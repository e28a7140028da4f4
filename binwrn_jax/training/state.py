"""The state that training carries from step to step, and the random keys derived from the step."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Independent random streams of one seed. A key depends on (seed, stream, position) alone, so a
# resumed run draws what an uninterrupted one would have drawn.
INIT_STREAM, TRAIN_STREAM, MOMENTS_STREAM = 0, 1, 2
# Added to the key of a step for what a network itself draws.
DROPOUT = 2_000_000


class TrainState(struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: updates done, int32 scalar.
      params: latent kernels ``conv{i}/kernel`` ``[F, F, C_in, C_out]`` and BN ``scale``,
        ``offset`` ``[C]`` where learned, float32.
      batch_stats: running BN moments ``mean``, ``var`` ``[C]``, float32.
      opt_state: of the optax transformation.
      epoch_loss: sum of the batches' mean losses in the current epoch, float32 scalar.
      epoch_errors: wrong training predictions in the current epoch, int32 scalar.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    epoch_loss: Float[Array, ""]
    epoch_errors: Int[Array, ""]

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that ``network.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def stream_key(
    seed: int, stream: int, position: jax.typing.ArrayLike, impl: str = "threefry2x32"
) -> PRNGKeyArray:
    """The PRNG key of one position (a step) of one stream of a seed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl=impl), stream), position)


def network_keys(key: PRNGKeyArray) -> dict[str, PRNGKeyArray]:
    """What a network in training may draw random numbers from, as Flax takes it: dropout has its own key."""
    return {"dropout": jax.random.fold_in(key, DROPOUT)}


def init_state(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int = 0,
) -> TrainState:
    """Fresh state: He-initialised latent kernels, unit BN, zero momentum.

    Args:
      network: of `binwrn_jax.nn`.
      optimizer: see `binwrn_jax.training.optimizer.sgd`.
      image_shape: ``(H, W, C)``.
      seed: any non-negative int.
    """

    # Jitted as one program: eagerly, each layer would compile a handful of its own. XLA needs seconds
    # for every threefry draw of another shape, so the one-off initial weights come from its own generator.
    @jax.jit
    def init() -> TrainState:
        key = stream_key(seed, INIT_STREAM, 0, impl="rbg")
        variables = network.init(key, jnp.zeros((1, *image_shape), jnp.uint8))
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            epoch_loss=jnp.zeros([], jnp.float32),
            epoch_errors=jnp.zeros([], jnp.int32),
        )

    return init()
