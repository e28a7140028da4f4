"""The needs of a run on a machine: whether it fits, how fast it can be, what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from binwrn_jax.graph import cost
from binwrn_jax.nn.registry import configured_network, network_name
from binwrn_jax.parallel.hardware import peak
from binwrn_jax.preflight.compile import (
    CompiledStep,
    changed,
    compile_step,
    data_size,
    fitting_batch,
    fitting_parts,
    size_of,
    state_shapes,
    train_images,
)
from binwrn_jax.preflight.roofline import activations_travel, by_kind, roofline
from binwrn_jax.preflight.targets import OutOfMemory, Target, versions
from binwrn_jax.training.config import dataset_info

# Verdicts. The middle one is for programs whose memory is known from below only.
FITS, MAY_FIT, DOES_NOT_FIT = "fits", "may fit", "does not fit"


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a report.

    Attributes:
      topology: as the user gave it.
      platform: ``'tpu'``, ``'cuda'`` or ``'cpu'``.
      compiled_for: the platform that the program was compiled for.
      missing: why that is another one; '' where it is not.
      device_kind: JAX's name of the device.
      devices: JAX devices that the run uses.
      chips: what is paid for.
      hosts: machines.
      slices: of a TPU.
      versions: of the compilers.
    """

    topology: str
    platform: str
    compiled_for: str
    missing: str
    device_kind: str
    devices: int
    chips: int
    hosts: int
    slices: int
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Run:
    """The run of a report.

    Attributes:
      dataset: its name.
      network: its size.
      weights: its weight rule.
      dtype: of the activations.
      batch_size: images of one update.
      ghost_size: images that batch norm normalises together; 0: all.
      accumulate: micro-batches of one update.
      epochs: of the whole run.
      train_images: of one epoch.
    """

    dataset: str
    network: str
    weights: str
    dtype: str
    batch_size: int
    ghost_size: int
    accumulate: int
    epochs: int
    train_images: int

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * (self.train_images // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Bounds from published peaks: nothing is faster.

    Attributes:
      peak_flops: operations per second of one device.
      compute_seconds: per step, likewise the next two.
      memory_seconds: 0 where the program is compiled for other devices.
      links_seconds: for the collectives.
      step_seconds: the largest of the three.
      bound: which one it is.
      images_per_s: over all devices.
      host_images_per_s: that each host has to decode; 0 where the data lie on the devices.
      hours: of the whole run.
      chip_hours: the same times the chips.
      cost: the same times the price; None without one.
    """

    peak_flops: float
    compute_seconds: float
    memory_seconds: float
    links_seconds: float
    step_seconds: float
    bound: str
    images_per_s: float
    host_images_per_s: float
    hours: float
    chip_hours: float
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled step: that of the run, or of what fits instead.

    Attributes:
      batch_size: of it.
      accumulate: micro-batches of it.
      memory: bytes on one device by kind.
      flops: operations of the convolutions per step, over all devices, computed from the network.
      compiler_flops: the compiler's count of all operations; 0 where it has none.
      bytes: read and written in device memory per step, over all devices, counted from the program's text.
      collectives: entries of ``kind``, ``count`` and ``bytes``.
      activations_travel: whether activations go from device to device.
      compile_seconds: that the compilation took.
      speed: None where the peaks of the devices are not known.
    """

    batch_size: int
    accumulate: int
    memory: dict[str, int]
    flops: float
    compiler_flops: float
    bytes: int
    collectives: list[dict[str, Any]]
    activations_travel: bool
    compile_seconds: float
    speed: Speed | None


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `preflight`; `to_dict` is JSON (bytes, seconds, images, chip-hours).

    Attributes:
      verdict: `FITS`, `MAY_FIT` or `DOES_NOT_FIT`.
      machine: see `Machine`.
      run: see `Run`.
      needed: bytes of each device that the run takes; at least, where the verdict is `MAY_FIT`.
      capacity: bytes of each device that a program can have; None where that is not known.
      data_on_device: bytes of the training set, part of the above.
      largest_batch: the largest batch that fits; None where none does or it is not known.
      largest_batch_compiled: whether that was compiled, and not just computed from the run's.
      micro_batches: of a run that does not fit the number with which it does; None where there is none.
      step: None where nothing fits.
    """

    verdict: str
    machine: Machine
    run: Run
    needed: int
    capacity: int | None
    data_on_device: int
    largest_batch: int | None
    largest_batch_compiled: bool
    micro_batches: int | None
    step: Step | None

    @property
    def fits(self) -> bool:
        """Whether it fits, or may."""
        return self.verdict != DOES_NOT_FIT

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "steps": self.run.steps}


def preflight(
    config: ConfigDict,
    target: Target,
    price: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compiles the run's step for a target, judges and counts.

    Args:
      config: a checked configuration.
      target: from `binwrn_jax.preflight.targets.open_target`.
      price: of a chip-hour, in any currency.
      tell: gets a line before each step that takes long.

    Raises:
      UserError: see `compile_step`.
    """
    machine, run = _machine(config, target), _run(config)

    def compiled(**fields: int) -> CompiledStep:
        parts = "".join(f", {name} {value}" for name, value in fields.items())
        tell(f"compiling the step for {target.name}{parts}")
        return compile_step(changed(config, **fields), target)

    data, unit = data_size(config), _unit(config, machine.devices)
    fixed = size_of(state_shapes(config)) + data
    try:
        program = compiled()
    except OutOfMemory as failure:
        return _too_large(config, target, price, failure, compiled)
    capacity = target.usable_memory()
    peak_memory = program.memory.peak
    largest = None
    if capacity and not target.missing:
        share = (capacity - fixed) / max(peak_memory - fixed, 1)
        largest = min(int(config.batch_size * share), run.train_images) // unit * unit
        largest = max(largest, config.batch_size)
    return Report(
        verdict=FITS if target.memory_is_whole else MAY_FIT,
        machine=machine,
        run=run,
        needed=peak_memory,
        capacity=capacity,
        data_on_device=data,
        largest_batch=largest,
        largest_batch_compiled=False,
        micro_batches=None,
        step=_step(config, machine, run, program, price),
    )


def _too_large(
    config: ConfigDict,
    target: Target,
    price: float | None,
    failure: OutOfMemory,
    compiled: Callable[..., CompiledStep],
) -> Report:
    """The report of a run that does not fit: about what does instead."""
    machine, run, data = _machine(config, target), _run(config), data_size(config)
    fixed = size_of(state_shapes(config)) + data
    unit = _unit(config, machine.devices)
    smaller = parts = None
    if fixed < failure.limit:
        smaller = fitting_batch(
            config.batch_size, unit, failure, fixed, lambda batch: compiled(batch_size=batch)
        )
    if smaller:
        at_once = smaller[0] // config.accumulate
        parts = fitting_parts(config, machine.devices, at_once, lambda count: compiled(accumulate=count))
    step = None
    if parts:
        step = _step(changed(config, accumulate=parts[0]), machine, run, parts[1], price)
    elif smaller:
        fitting = changed(config, batch_size=smaller[0])
        step = _step(fitting, machine, _run(fitting), smaller[1], price)
    return Report(
        verdict=DOES_NOT_FIT,
        machine=machine,
        run=run,
        needed=failure.used,
        capacity=failure.limit,
        data_on_device=data,
        largest_batch=smaller[0] if smaller else None,
        largest_batch_compiled=smaller is not None,
        micro_batches=parts[0] if parts else None,
        step=step,
    )


def _unit(config: ConfigDict, devices: int) -> int:
    """What a batch has to be a multiple of: whole ghost groups, and as many images for each device."""
    return math.lcm(devices, config.model.ghost_size or 1) * config.accumulate


def _machine(config: ConfigDict, target: Target) -> Machine:
    count = config.devices or len(target.devices)
    top = peak(target.device_kind)
    return Machine(
        topology=target.name,
        platform=target.platform,
        compiled_for="cpu" if target.missing else target.platform,
        missing=target.missing,
        device_kind=target.device_kind,
        devices=count,
        chips=-(-count // top.devices_per_chip) if top else 1,
        hosts=max(1, math.ceil(target.hosts * count / len(target.devices))),
        slices=target.slices,
        versions=versions(target),
    )


def _run(config: ConfigDict) -> Run:
    info = dataset_info(config)
    return Run(
        dataset=info.name,
        network=network_name(config.model),
        weights=config.model.weights,
        dtype=config.model.dtype,
        batch_size=config.batch_size,
        ghost_size=config.model.ghost_size,
        accumulate=config.accumulate,
        epochs=config.epochs,
        train_images=train_images(config),
    )


def _step(config: ConfigDict, machine: Machine, run: Run, program: CompiledStep, price: float | None) -> Step:
    info = dataset_info(config)
    network = configured_network(config.model, info.num_classes)
    flops = run.batch_size * cost.training_flops(network, info.image_shape)
    memory = dataclasses.asdict(program.memory)
    return Step(
        batch_size=run.batch_size,
        accumulate=config.accumulate,
        memory={**memory, "peak": program.memory.peak},
        flops=flops,
        compiler_flops=program.flops * machine.devices,
        bytes=program.bytes * machine.devices,
        collectives=by_kind(program.collectives),
        activations_travel=activations_travel(program.collectives),
        compile_seconds=program.seconds,
        speed=_speed(machine, run, program, flops, price, info.streamed),
    )


def _speed(
    machine: Machine, run: Run, program: CompiledStep, flops: float, price: float | None, streamed: bool
) -> Speed | None:
    top = peak(machine.device_kind)
    if top is None:
        return None
    # The CPU's program says little about the bytes that another device moves.
    moved = program.bytes if machine.compiled_for == machine.platform else 0.0
    bounds = roofline(flops / machine.devices, moved, program.collectives, machine.devices, top, run.dtype)
    rate = run.batch_size / bounds.step
    hours = run.steps * bounds.step / 3600
    chip_hours = hours * machine.chips
    return Speed(
        peak_flops=top.flops(run.dtype),
        compute_seconds=bounds.compute,
        memory_seconds=bounds.memory,
        links_seconds=bounds.links,
        step_seconds=bounds.step,
        bound=bounds.bound,
        images_per_s=rate,
        host_images_per_s=rate / machine.hosts if streamed else 0.0,
        hours=hours,
        chip_hours=chip_hours,
        cost=None if price is None else chip_hours * price,
    )
