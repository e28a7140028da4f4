"""What a run will need on machines that are not rented yet: its training step compiled for their topology.

libtpu compiles for any TPU topology on a machine without one. Nothing runs: memory, collectives and bytes are
read from the compiled program, times are bounds from the published peaks of the chips.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from binwrn_jax.data.catalog import lookup
from binwrn_jax.data.dataset import DatasetInfo
from binwrn_jax.data.on_device import StoredImages
from binwrn_jax.data.splits import split_size
from binwrn_jax.errors import UserError
from binwrn_jax.graph import cost
from binwrn_jax.nn.operations import portable
from binwrn_jax.nn.registry import create_network
from binwrn_jax.parallel import sharding
from binwrn_jax.parallel.hardware import Peak, peak
from binwrn_jax.preflight.collectives import Collective, collectives
from binwrn_jax.training import config as configs
from binwrn_jax.training.state import TrainState, init_state
from binwrn_jax.training.step import jit_train_step

# Options of `get_topology_desc` by version. On v4 the two cores of a chip are one JAX device (megacore), as
# on a real v4 machine; libtpu's own default for a bare topology is two devices.
TPU_OPTIONS: dict[str, dict[str, Any]] = {
    "v2": {},
    "v3": {},
    "v4": {"chip_config_name": "megacore"},
    "v5e": {},
    "v5p": {},
    "v6e": {},
    "tpu7x": {},
}
# Slices of one host that is not the usual 2x2 chips.
ONE_HOST = {
    "v5e": {"1x1": [1, 1, 1], "2x4": [2, 4, 1]},
    "v6e": {"1x1": [1, 1, 1], "2x4": [2, 4, 1]},
}
TPU_EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v6e:4x4, v4:2x2x1, v4:4x4x4, v5p:2x2x4, v3:4x4, tpu7x:2x2x1"
GPUS = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "a100-40": "NVIDIA A100-SXM4-40GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
    "l4": "NVIDIA L4",
    "l40s": "NVIDIA L40S",
    "a10g": "NVIDIA A10G",
    "4090": "NVIDIA GeForce RTX 4090",
}
GPUS_PER_HOST = 8
MAX_CPU_DEVICES = 256

# With 0, the compiler's default, the 18-2.5 step takes some fifteen minutes on two cores.
QUICK = -1.0


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as given, ``'v5e:4x4'``, or ``'2 x v5e:4x4'`` for slices.
      platform: ``'tpu'``, ``'cuda'`` (compiled for the CPU) or ``'cpu'``.
      devices: JAX devices.
      kinds: device kinds whose peaks apply; none for the CPU.
      hosts: machines they are in.
      slices: of a TPU, with a network between them.
    """

    name: str
    platform: str
    devices: list[jax.Device]
    kinds: tuple[str, ...]
    hosts: int
    slices: int = 1


class OutOfMemory(Exception):
    """The program needs ``used`` bytes on each device, of which ``limit`` can be had."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(f"{used} of {limit} bytes")
        self.used, self.limit = used, limit


def set_environment() -> None:
    """Keeps JAX off any accelerator of this machine and libtpu from looking for one."""
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        # What libtpu would otherwise complain of not finding.
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
    )
    jax.config.update("jax_platforms", "cpu")  # it may have been imported already


def topology(name: str, slices: int = 1) -> Topology:
    """The devices that a name such as ``v5e:4x4``, ``cuda:h100x8``, ``cuda`` or ``cpu:8`` stands for.

    Args:
      name: of the devices, for a TPU those of one slice.
      slices: how many of a TPU.

    Raises:
      UserError: there is no such; or libtpu is not installed.
    """
    known = (
        f"TPUs such as {TPU_EXAMPLES}; cuda, cuda:NAME or cuda:NAMExN with NAME one of {', '.join(GPUS)}; "
        "cpu or cpu:N"
    )
    version, _, shape = name.partition(":")
    if slices < 1 or (slices > 1 and version in ("cpu", "cuda")):
        raise UserError(f"slices {slices}: at least 1, and several of a TPU only")
    if version == "cpu" and re.fullmatch(r"|[1-9]\d*", shape):
        return Topology(name, "cpu", _cpu_devices(int(shape or 1)), (), 1)
    if version == "cuda":
        match = re.fullmatch(r"(.+?)(?:x([1-9]\d*))?", shape) if shape else None
        if shape and (match is None or match[1] not in GPUS):
            raise UserError(f"unknown topology {name!r}: use {known}")
        kinds = (GPUS[match[1]],) if match else (GPUS["a100"], GPUS["h100"])
        count = int(match[2] or 1) if match else 1
        return Topology(name, "cuda", _cpu_devices(count), kinds, -(-count // GPUS_PER_HOST))
    if version not in TPU_OPTIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(f"unknown topology {name!r}: use {known}")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError("compiling for a TPU needs libtpu: pip install '.[tpu]'")

    from jax.experimental import topologies

    options = dict(TPU_OPTIONS[version])
    if shape in ONE_HOST.get(version, {}):
        options["chips_per_host_bounds"] = ONE_HOST[version][shape]
    if slices > 1:
        options["num_slices"] = slices
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise UserError(f"no topology {name!r} ({reason}): use one such as {TPU_EXAMPLES}") from None
    hosts = len({device.process_index for device in devices})
    name = f"{slices} x {name}" if slices > 1 else name
    return Topology(name, "tpu", devices, (devices[0].device_kind,), hosts, slices)


def _cpu_devices(count: int) -> list[jax.Device]:
    if count > MAX_CPU_DEVICES:
        raise UserError(f"{count} devices wanted: at most {MAX_CPU_DEVICES} can be made of one CPU")
    with contextlib.suppress(RuntimeError):  # JAX has counted its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if count > len(devices):
        raise UserError(f"{count} devices wanted, but this process has {len(devices)} of the CPU")
    return devices[:count]


def train_images(spec: DatasetInfo, split: str) -> int:
    """Images in a training split, without any data on disk.

    Raises:
      UserError: no such split.
    """
    return split_size(spec.name, spec.splits, split)


def state_shapes(config: ConfigDict) -> TrainState:
    """The state of a run as shapes."""
    spec = lookup(config.data.name)
    model = create_network(config.model, spec.num_classes)
    optimizer = configs.build_optimizer(config, steps_per_epoch=1)
    return jax.eval_shape(lambda: init_state(model, optimizer, spec.image_shape))


def input_shapes(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What the step of a run takes besides the state, as shapes, see `binwrn_jax.data.batch.fetch`."""
    spec = lookup(config.data.name)
    split = sharding.BatchSplit(mesh, config.batch_size)
    if spec.streamed:
        return {
            "images": jax.ShapeDtypeStruct((split.padded, *spec.image_shape), np.uint8),
            "labels": jax.ShapeDtypeStruct((split.padded,), np.int32),
            "split": split,
        }
    stored = train_images(spec, config.data.train_split or spec.train_split)
    rows = jax.ShapeDtypeStruct((stored, math.prod(spec.image_shape)), np.uint8)
    return {
        "images": StoredImages(rows, spec.image_shape),
        "labels": jax.ShapeDtypeStruct((stored,), np.int32),
        "indices": jax.ShapeDtypeStruct((split.size,), np.int32),
        "split": split,
    }


def size_of(shapes: Any) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


class Compiled(NamedTuple):
    """The training step for one topology, and what its program says of itself, for one device.

    Attributes:
      memory: bytes of ``arguments`` (state and data), ``outputs`` (but for donated arguments),
        ``temporaries`` (activations), ``code``; ``peak`` is their sum.
      flops: the compiler's count, per step.
      bytes: read and written in device memory, the compiler's count, per step.
      collectives: the communications per step.
      seconds: that the compilation took.
    """

    memory: dict[str, int]
    flops: float
    bytes: float
    collectives: list[Collective]
    seconds: float


def compile_step(config: ConfigDict, devices: list[jax.Device], effort: float = QUICK) -> Compiled:
    """Compiles the step that the run of ``config`` would execute, for shapes alone.

    Args:
      config: a checked configuration.
      devices: of `topology`.
      effort: XLA's ``exec_time_optimization_effort``, for TPUs.

    Raises:
      UserError: the batch does not divide into ghost groups or micro-batches.
      OutOfMemory: the compiler found no way to fit it.
    """
    mesh = sharding.make_mesh(config.devices, devices)
    sharding.check_batch(config.batch_size, config.model.ghost_size, config.accumulate)
    spec = lookup(config.data.name)
    images = train_images(spec, config.data.train_split or spec.train_split)
    steps_per_epoch = max(images // config.batch_size, 1)
    model = create_network(config.model, spec.num_classes)
    optimizer = configs.build_optimizer(config, steps_per_epoch)
    step = jit_train_step(config, model, optimizer, mesh, steps_per_epoch, spec.streamed)
    with portable():  # this machine's own convolutions are not those of the rented one
        lowered = step.lower(state_shapes(config), input_shapes(config, mesh))
    on_tpu = devices[0].platform == "tpu"
    began = time.monotonic()
    try:
        program = lowered.compile({"exec_time_optimization_effort": effort} if on_tpu else None)
    except jax.errors.JaxRuntimeError as error:
        arguments = size_of((state_shapes(config), input_shapes(config, mesh)))
        raise _out_of_memory(str(error), arguments) or error from None
    seconds = time.monotonic() - began
    found = program.memory_analysis()
    memory = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    memory["peak"] = sum(memory.values())
    counts = program.cost_analysis() or {}
    # XLA counts the operations of a loop's body once: that of the micro-batches is nearly all there is.
    # What is in it, `collectives` sees.
    repeats = config.accumulate
    return Compiled(
        memory,
        repeats * counts.get("flops", 0.0),
        repeats * counts.get("bytes accessed", 0.0),
        collectives(program.as_text(), rounds=repeats),
        seconds,
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_SIZE = r"([\d.]+)([KMGT]?)i?B?"


def _out_of_memory(message: str, arguments: int) -> OutOfMemory | None:
    """Reads libtpu's messages; None where the error is another.

    One counts all, the other, of programs that are hopeless from the start, all but the ``arguments``.
    """
    whole = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
    part = re.search(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    match = whole or part
    if not match:
        return None
    used, limit = (int(float(match[i]) * _UNITS[match[i + 1]]) for i in (1, 3))
    return OutOfMemory(used if whole else used + arguments, limit)


def usable_memory(device: jax.Device) -> int | None:
    """Bytes that a program can have of a TPU of `topology`, somewhat less than it has; None if not known.

    It is what the compiler says when it is asked for a terabyte.
    """
    here = jax.sharding.SingleDeviceSharding(device)
    terabyte = jax.ShapeDtypeStruct((2**40,), np.uint8)
    try:
        jax.jit(lambda x: x + 1, in_shardings=here, out_shardings=here).lower(terabyte).compile()
    except jax.errors.JaxRuntimeError as error:
        failure = _out_of_memory(str(error), 0)
        return failure and failure.limit
    return None


def fitting_batch(
    batch: int,
    unit: int,
    failure: OutOfMemory,
    fixed: int,
    compile_batch: Callable[[int], Any],
) -> tuple[int, Any] | None:
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
        batch = min(max(guess, unit), batch - unit)
        try:
            return batch, compile_batch(batch)
        except OutOfMemory as error:
            failure = error
    return None


def collective_seconds(found: Iterable[Collective], devices: int, links: float) -> float:
    """Least time of communications, each device sending ``links`` bytes per second over all its links.

    A ring all-reduce of B bytes over n devices sends 2 B (n - 1) / n from each; an all-gather (B bytes of
    result) and an all-to-all half of that; a reduce-scatter (B bytes of result) B (n - 1).
    """
    if devices < 2:
        return 0.0
    ring = (devices - 1) / devices
    factors = {"all-reduce": 2 * ring, "all-gather": ring, "all-to-all": ring, "reduce-scatter": devices - 1}
    return sum(factors.get(c.kind, 1.0) * c.times * c.bytes for c in found) / links


class Roofline(NamedTuple):
    """Least seconds per step for each of the three resources; the step takes at least the largest."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds per step at best."""
        return max(self)

    @property
    def bound(self) -> str:
        """The resource that sets it."""
        return max(self._fields, key=lambda name: getattr(self, name))


def roofline(
    flops: float, moved: float, sent: Iterable[Collective], devices: int, top: Peak, dtype: str
) -> Roofline:
    """Bounds from one device's peaks.

    Args:
      flops: operations per step on one device.
      moved: bytes per step to and from its memory; 0 where not known.
      sent: communications per step.
      devices: how many take part.
      top: the peaks.
      dtype: of the activations, which sets the peak of the matrix units.
    """
    return Roofline(
        flops / top.flops(dtype),
        moved / top.bandwidth,
        collective_seconds(sent, devices, top.links) if top.links else 0.0,
    )


def by_kind(found: Iterable[Collective]) -> list[dict[str, Any]]:
    """Counts and bytes of communications per step, one entry per kind."""
    totals: dict[str, list[int]] = {}
    for collective in found:
        entry = totals.setdefault(collective.kind, [0, 0])
        entry[0] += collective.times
        entry[1] += collective.times * collective.bytes
    return [{"kind": kind, "count": count, "bytes": total} for kind, (count, total) in sorted(totals.items())]


def activations_travel(found: Iterable[Collective]) -> bool:
    """Whether more than gradients and moments goes between devices: these are summed, images are moved."""
    found = list(found)
    moved = sum(c.times * c.bytes for c in found if c.kind != "all-reduce")
    return 2 * moved > sum(c.times * c.bytes for c in found)


def with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    """A copy with another global batch."""
    copy = ConfigDict(config.to_dict())
    copy.batch_size = batch
    return copy


def preflight(
    config: ConfigDict,
    place: Topology,
    effort: float = QUICK,
    price: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles, judges and counts; the report as JSON values (bytes, seconds, images, chip-hours).

    Args:
      config: a checked configuration.
      place: from `topology`.
      effort: see `compile_step`.
      price: of a chip-hour, in any currency.
      say: is told what takes long.

    Raises:
      UserError: see `compile_step`.
    """
    spec = lookup(config.data.name)
    count = config.devices or len(place.devices)
    images = train_images(spec, config.data.train_split or spec.train_split)
    kind = place.kinds[0] if place.kinds else None
    top = peak(kind) if kind else None
    per_chip = top.devices_per_chip if top else 1
    chips = -(-count // per_chip)
    hosts = max(1, math.ceil(place.hosts * count / len(place.devices)))
    report: dict[str, Any] = {
        "topology": place.name,
        "device_kind": kind or "cpu",
        "devices": count,
        "chips": chips,
        "hosts": hosts,
        "slices": place.slices,
        "compiled_for": "tpu" if place.platform == "tpu" else "cpu",
        "versions": _versions(place.platform),
        "dataset": spec.name,
        "network": f"{config.model.depth}-{config.model.width:g}",
        "weights": config.model.weights,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "ghost_size": config.model.ghost_size,
        "accumulate": config.accumulate,
        "effort": effort if place.platform == "tpu" else None,
    }

    def compiled(batch: int) -> Compiled:
        say(f"compiling the step of batch {batch} for {place.name}")
        program = compile_step(with_batch(config, batch), place.devices, effort)
        if place.platform != "tpu" and top and program.memory["peak"] > top.memory:
            raise OutOfMemory(program.memory["peak"], top.memory)  # libtpu's compiler says so itself
        return program

    data = (
        0
        if spec.streamed
        else size_of(input_shapes(with_batch(config, 0), sharding.make_mesh(1, place.devices)))
    )
    try:
        program = compiled(config.batch_size)
        report |= {"fits": True, "fitting_batch": None}
        capacity = top.memory if top else _memory_here()
        if place.platform == "tpu":
            capacity = usable_memory(place.devices[0]) or capacity
        report["memory"] = {**program.memory, "capacity": capacity}
    except OutOfMemory as failure:
        report |= {"fits": False, "memory": {"peak": failure.used, "capacity": failure.limit}}
        unit = math.lcm(count, config.model.ghost_size or 1) * config.accumulate
        fixed = size_of(state_shapes(config)) + data
        found = fitting_batch(config.batch_size, unit, failure, fixed, compiled)
        report["fitting_batch"] = found and found[0]
        if found is None:
            return report
        program = found[1]
    # From here on it is about the batch that fits.
    batch = report["fitting_batch"] or config.batch_size
    analytic = cost.training_flops(config.model.depth, config.model.width, spec.num_classes, spec.image_shape)
    steps = config.epochs * (images // batch)
    report |= {
        "compile_seconds": program.seconds,
        "data_on_device": data,
        "flops": {"analytic": analytic * batch, "compiler": program.flops * count},
        "bytes": program.bytes * count,
        "collectives": by_kind(program.collectives),
        "activations_travel": activations_travel(program.collectives),
        "epochs": config.epochs,
        "train_images": images,
        "steps": steps,
        "rooflines": [],
    }
    for name in place.kinds:
        top = peak(name)
        if top is None:
            continue
        # The CPU's program says little about what another device moves and sends.
        on_tpu = place.platform == "tpu"
        bounds = roofline(
            analytic * batch / count,
            program.bytes if on_tpu else 0.0,
            program.collectives,
            count,
            top,
            config.model.dtype,
        )
        rate = batch / bounds.step
        hours = steps * bounds.step / 3600
        report["rooflines"].append(
            {
                "device_kind": name,
                "peak_flops": top.flops(config.model.dtype),
                "memory_capacity": top.memory,
                **{f"{field}_seconds": value for field, value in bounds._asdict().items()},
                "step_seconds": bounds.step,
                "bound": bounds.bound,
                "images_per_s": rate,
                "host_images_per_s": rate / hosts if spec.streamed else 0.0,
                "hours": hours,
                "chip_hours": hours * chips,
                "cost": None if price is None else hours * chips * price,
            }
        )
    return report


def _versions(platform: str) -> dict[str, str]:
    names = ("jax", "jaxlib", "libtpu") if platform == "tpu" else ("jax", "jaxlib")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _memory_here() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
