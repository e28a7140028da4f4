"""A run's training step, compiled from shapes alone: nothing runs and no data need be at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from binwrn_jax.data.on_device import StoredImages
from binwrn_jax.data.splits import split_size
from binwrn_jax.nn.operations import portable
from binwrn_jax.parallel import sharding
from binwrn_jax.preflight.collectives import Collective, collectives
from binwrn_jax.preflight.targets import OutOfMemory, Target
from binwrn_jax.preflight.traffic import moved_bytes
from binwrn_jax.training import config as configs
from binwrn_jax.training.resolve import ResolvedRun, resolve
from binwrn_jax.training.state import TrainState, init_state
from binwrn_jax.training.step import jit_train_step


def train_images(config: ConfigDict) -> int:
    """Images of one training epoch, by the catalogue: no data need be on disk.

    Raises:
      UserError: there is no such split.
    """
    info = configs.dataset_info(config)
    return split_size(info.name, info.splits, config.data.train_split or info.train_split)


def state_shapes(config: ConfigDict) -> TrainState:
    """The state of a run as shapes."""
    run = resolved(config)
    return jax.eval_shape(lambda: init_state(run.network, run.optimizer, run.dataset.image_shape))


def resolved(config: ConfigDict) -> ResolvedRun:
    """What follows from a configuration; a data set smaller than a batch counts as one batch."""
    return resolve(config, configs.dataset_info(config), max(train_images(config), config.batch_size))


def input_shapes(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What the step of a run takes besides the state, as shapes, see `binwrn_jax.data.batch.fetch`."""
    info = configs.dataset_info(config)
    split = sharding.BatchSplit(mesh, config.batch_size)
    if info.streamed:
        return {
            "images": jax.ShapeDtypeStruct((split.padded, *info.image_shape), np.uint8),
            "labels": jax.ShapeDtypeStruct((split.padded,), np.int32),
            "split": split,
        }
    stored = train_images(config)
    rows: Any = jax.ShapeDtypeStruct((stored, math.prod(info.image_shape)), np.uint8)
    return {
        "images": StoredImages(rows, info.image_shape),
        "labels": jax.ShapeDtypeStruct((stored,), np.int32),
        "indices": jax.ShapeDtypeStruct((split.size,), np.int32),
        "split": split,
    }


def size_of(shapes: Any) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def data_size(config: ConfigDict) -> int:
    """Bytes of the training set on each device; 0 where images are streamed from the host."""
    info = configs.dataset_info(config)
    label = np.dtype(np.int32).itemsize
    return 0 if info.streamed else train_images(config) * (math.prod(info.image_shape) + label)


def changed(config: ConfigDict, **fields: Any) -> ConfigDict:
    """A copy with other values of some fields."""
    copy = ConfigDict(config.to_dict())
    copy.update_from_flattened_dict(fields)
    return copy


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a program takes of one device.

    Attributes:
      arguments: state and data.
      outputs: results that do not take the place of arguments.
      temporaries: activations and gradients.
      code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """All together."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The training step for one target, and what its program says of itself, for one device.

    Attributes:
      memory: see `Memory`.
      flops: the compiler's count, per step; 0 where it has none.
      bytes: read and written in device memory per step, see `binwrn_jax.preflight.traffic`.
      collectives: the communications per step.
      seconds: that the compilation took.
    """

    memory: Memory
    flops: float
    bytes: int
    collectives: list[Collective]
    seconds: float


def compile_step(config: ConfigDict, target: Target) -> CompiledStep:
    """Compiles the step that the run of ``config`` would execute, for shapes alone.

    Raises:
      UserError: the batch does not divide into ghost groups or micro-batches.
      OutOfMemory: the program does not fit the devices.
    """
    mesh = sharding.make_mesh(config.devices, target.devices)
    sharding.check_batch(config.batch_size, config.model.ghost_size, config.accumulate)
    step = jit_train_step(resolved(config), mesh)
    state, inputs = state_shapes(config), input_shapes(config, mesh)
    # This machine's own convolutions are not those of another one.
    with contextlib.nullcontext() if target.platform == "cpu" else portable():
        lowered = step.lower(state, inputs)
    began = time.monotonic()
    program = target.compile(lowered, size_of((state, inputs)))
    compiled = _read(program, config.accumulate, time.monotonic() - began)
    limit = target.usable_memory() if target.platform != "tpu" else None  # libtpu's compiler says so itself
    # Of a program for other devices than these, only the arguments are certain.
    needed = compiled.memory.arguments if target.missing else compiled.memory.peak
    if limit is not None and needed > limit:
        raise OutOfMemory(needed, limit)
    return compiled


def _read(program: jax.stages.Compiled, repeats: int, seconds: float) -> CompiledStep:
    found = program.memory_analysis()
    text = program.as_text()
    assert found is not None and text is not None  # all three compilers have both
    counts = program.cost_analysis() or {}
    # XLA counts the operations of a loop's body once: that of the micro-batches is nearly all there is.
    return CompiledStep(
        Memory(
            found.argument_size_in_bytes,
            found.output_size_in_bytes - found.alias_size_in_bytes,
            found.temp_size_in_bytes,
            found.generated_code_size_in_bytes,
        ),
        repeats * counts.get("flops", 0.0),
        moved_bytes(text, rounds=repeats),
        collectives(text, rounds=repeats),
        seconds,
    )


def fitting_batch(
    batch: int,
    unit: int,
    failure: OutOfMemory,
    fixed: int,
    compile_batch: Callable[[int], CompiledStep],
) -> tuple[int, CompiledStep] | None:
    """A smaller global batch that fits, about the largest, found by compiling.

    The first guess is linear: what does not depend on the batch stays, the rest shrinks with it. A guess
    that fits is taken; one that does not is followed by a smaller one.

    Args:
      batch: global batch that did not fit.
      unit: what a global batch has to be a multiple of.
      failure: what the compiler said of it.
      fixed: bytes that do not depend on the batch.
      compile_batch: compiles a batch, or raises `OutOfMemory`.

    Returns:
      The batch and what ``compile_batch`` returned; None where not even ``unit`` fits.
    """
    while batch > unit:
        share = (failure.limit - fixed) / max(failure.used - fixed, 1)
        guess = int(batch * share) // unit * unit
        batch = min(max(guess, unit), (batch - 1) // unit * unit)
        try:
            return batch, compile_batch(batch)
        except OutOfMemory as error:
            failure = error
    return None


def fitting_parts(
    config: ConfigDict, devices: int, fits: int, compile_parts: Callable[[int], CompiledStep]
) -> tuple[int, CompiledStep] | None:
    """The fewest micro-batches in which the whole batch fits, found by compiling.

    Args:
      config: of the run that did not fit; without ghost groups there are no micro-batches.
      devices: how many share the batch.
      fits: images that fit at once, over all devices.
      compile_parts: compiles the batch in so many micro-batches, or raises `OutOfMemory`.

    Returns:
      Their number and what ``compile_parts`` returned; None where there is no such number.
    """
    if not config.model.ghost_size:
        return None
    unit = math.lcm(config.model.ghost_size, devices)
    for parts in range(config.accumulate + 1, config.batch_size // unit + 1):
        size, rest = divmod(config.batch_size, parts)
        if rest or size % unit or size > fits:
            continue
        with contextlib.suppress(OutOfMemory):
            return parts, compile_parts(parts)
    return None
