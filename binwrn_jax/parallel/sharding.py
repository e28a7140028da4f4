"""The device mesh: the only file about the number of devices and the place of each array.

There is one axis, ``data``: batches are split along it, everything else is replicated. The same
jitted program then runs on one CPU, eight GPUs or a pod; XLA inserts the all-reduces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from binwrn_jax.errors import UserError


def make_mesh(devices: int = 0, among: Sequence[jax.Device] | None = None) -> Mesh:
    """A 1-D mesh named ``data`` over the first ``devices`` devices of all processes (0: all).

    Args:
      devices: how many.
      among: devices to choose from, of a machine that is elsewhere for example; default those that JAX sees.

    Raises:
      UserError: there are not as many devices, or several processes and some would have none.
    """
    available = list(among or jax.devices())
    count = devices or len(available)
    if count > len(available):
        raise UserError(f"{count} devices wanted, but JAX sees {len(available)} ({available[0].platform})")
    if count < len(available) and jax.process_count() > 1:
        raise UserError(f"devices {count} of {len(available)}: with several processes all are used, set 0")
    # Auto: with Explicit axes, the default since jax 0.9, vmapped and concatenating code does not trace.
    axes = (jax.sharding.AxisType.Auto,)
    chosen = available[:count]
    if len({getattr(device, "slice_index", 0) for device in chosen}) > 1:
        # jax.make_mesh finds the best order within one TPU slice and refuses several: one follows the other.
        return Mesh(np.array(chosen), ("data",), axis_types=axes)
    return jax.make_mesh((count,), ("data",), axis_types=axes, devices=chosen)


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array of which every device has the whole."""
    return NamedSharding(mesh, PartitionSpec())


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BatchSplit:
    """How the images of a batch are divided over the devices; part of each batch, without arrays.

    Only what a jitted function takes and returns must divide evenly; arrays inside it need not. The first
    devices have ``ceil(size / devices)`` images each, the next one the rest, and any further ones none.

    Attributes:
      mesh: from `make_mesh`.
      size: images of the batch.
    """

    mesh: Mesh
    size: int

    @property
    def padded(self) -> int:
        """``size`` or, where the devices do not divide it, the next multiple of their number."""
        return -(-self.size // self.mesh.size) * self.mesh.size

    @property
    def images(self) -> list[int]:
        """The number of images on each device."""
        share = self.padded // self.mesh.size
        return [min(share, max(self.size - share * index, 0)) for index in range(self.mesh.size)]

    def __call__(self, x: Shaped[jax.Array, "padded ..."]) -> Shaped[jax.Array, "{self.size} ..."]:
        """``[size, ...]``, divided, from that or from ``[padded, ...]``, inside a jitted function."""
        x = x if x.shape[0] == self.size else x[: self.size]
        return jax.lax.with_sharding_constraint(x, split(self.mesh)) if self.mesh.size > 1 else x

    def __str__(self) -> str:
        """``125 images over 8 devices: 16, 16, ... 13``."""
        first, *_, last = self.images if self.mesh.size > 1 else (self.size, self.size)
        each = f"{first}, {first}, ... {last}" if self.mesh.size > 3 else ", ".join(map(str, self.images))
        empty = self.images.count(0)
        idle = f" ({empty} without any)" if empty else ""
        return f"{self.size} images over {self.mesh.size} devices: {each}{idle}"


def inputs(mesh: Mesh, streamed: bool = False) -> NamedSharding:
    """Sharding of the arrays of a training batch, as `binwrn_jax.data.batch.fetch` takes it.

    Args:
      mesh: from `make_mesh`.
      streamed: whether the batch comes from the host, divided; else it is indices into a data set, and every
        device has the whole of both.
    """
    return split(mesh) if streamed else replicated(mesh)


def check_batch(batch_size: int, ghost_size: int = 0, accumulate: int = 1) -> None:
    """Refuses a global batch that does not divide into whole ghost groups; devices divide any batch.

    Raises:
      UserError: ``batch_size`` is no multiple of the ghost groups or the micro-batches.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    if accumulate > 1 and not ghost_size:
        raise UserError(
            f"accumulate {accumulate} without ghost groups would change the batch statistics: "
            "set model.ghost_size, to 125 for example"
        )
    unit = accumulate * ghost_size
    if not unit or not batch_size % unit:
        return
    low = batch_size // unit * unit
    near = f"{low} or {low + unit}" if low else f"{unit}"
    parts = f"{accumulate} micro-batches of whole ghost groups" if accumulate > 1 else "ghost groups"
    raise UserError(
        f"batch_size {batch_size} does not divide into {parts} of {ghost_size}: use {near}, or change "
        + ("accumulate or model.ghost_size" if accumulate > 1 else "model.ghost_size")
    )


def put(value: Any, sharding: NamedSharding) -> Any:
    """Places a tree of host arrays, the same on every process, as global arrays."""

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, value)


def local_rows(batch: BatchSplit) -> range:
    """The rows of a global batch, padded to `BatchSplit.padded`, that the devices of this process hold.

    Raises:
      UserError: they are not one piece, which `make_mesh` never gives.
    """
    index_of = split(batch.mesh).addressable_devices_indices_map((batch.padded,))
    slices = [index[0] for index in index_of.values() if index is not None]
    rows = sorted({row for part in slices for row in range(*part.indices(batch.padded))})
    if rows != list(range(rows[0], rows[-1] + 1)):
        raise UserError("the devices of this process are not neighbours in the mesh")
    return range(rows[0], rows[-1] + 1)


def from_local(tree: Any, batch: BatchSplit) -> Any:
    """Global arrays from each process's `local_rows` of them: a tree of host arrays ``[rows, ...]``."""
    sharding = split(batch.mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, (batch.padded, *x.shape[1:])), tree
    )
