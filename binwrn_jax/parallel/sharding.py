"""The device mesh: the one file that knows how many devices there are and what lies where.

There is one axis, ``data``: batches are split along it, everything else is replicated. The same
jitted program then runs on one CPU, eight GPUs or a pod; XLA inserts the all-reduces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def inputs(mesh: Mesh, streamed: bool = False) -> dict[str, NamedSharding]:
    """Shardings of a training batch, as `binwrn_jax.data.batch.fetch` takes it.

    Args:
      mesh: from `make_mesh`.
      streamed: whether the batch comes from the host; else it is indices into a data set of which every
        device has the whole.
    """
    if streamed:
        return {"images": split(mesh), "labels": split(mesh)}
    return {"images": replicated(mesh), "labels": replicated(mesh), "indices": split(mesh)}


def check_batch(mesh: Mesh, batch_size: int, ghost_size: int = 0, accumulate: int = 1) -> None:
    """Refuses a global batch that does not divide evenly.

    Raises:
      UserError: ``batch_size`` is no multiple of the devices, the ghost groups or the micro-batches.
    """
    count = mesh.size
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    if batch_size % count:
        low = batch_size // count * count
        near = f"{low} or {low + count}" if low else f"{count}"
        raise UserError(
            f"batch_size {batch_size} does not divide over {count} devices: use {near}, or fewer devices"
        )
    if ghost_size and batch_size % ghost_size:
        raise UserError(
            f"batch_size {batch_size} does not divide into ghost groups of {ghost_size}: "
            "change batch_size or model.ghost_size"
        )
    if accumulate > 1 and not ghost_size:
        raise UserError(
            f"accumulate {accumulate} without ghost groups would change the batch statistics: "
            "set model.ghost_size, to 125 for example"
        )
    if accumulate > 1 and (batch_size % (accumulate * ghost_size) or batch_size % (accumulate * count)):
        raise UserError(
            f"batch_size {batch_size} does not divide into {accumulate} micro-batches of whole ghost groups "
            f"of {ghost_size} over {count} devices: change accumulate, batch_size or model.ghost_size"
        )


def put(value: Any, sharding: NamedSharding) -> Any:
    """Places a tree of host arrays, the same on every process, as global arrays."""

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, value)


def local_rows(mesh: Mesh, batch_size: int) -> range:
    """The rows of a global batch that the devices of this process hold.

    Raises:
      UserError: they are not one piece, which `make_mesh` never gives.
    """
    index_of = split(mesh).addressable_devices_indices_map((batch_size,))
    slices = [index[0] for index in index_of.values() if index is not None]
    rows = sorted({row for part in slices for row in range(*part.indices(batch_size))})
    if rows != list(range(rows[0], rows[-1] + 1)):
        raise UserError("the devices of this process are not neighbours in the mesh")
    return range(rows[0], rows[-1] + 1)


def from_local(tree: Any, sharding: NamedSharding, batch_size: int) -> Any:
    """Global arrays from each process's `local_rows` of them: a tree of host arrays ``[rows, ...]``."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:])), tree
    )
