"""The machines that a step is compiled for: TPU slices, NVIDIA GPUs and CPUs, which may be elsewhere.

libtpu compiles for any TPU topology, and JAX's CUDA plug-in for any NVIDIA GPU that a text describes, on a
machine that has neither.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.preflight.gpus import GPUS, target_config

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
GPU_EXAMPLES = f"cuda:NAME or cuda:NAMExN with NAME one of {', '.join(GPUS)}"
GPUS_PER_HOST = 8
MOST_GPUS = 4096  # the compiler is given a description of each
MAX_CPU_DEVICES = 256

# With 0, the compiler's default, the 18-2.5 step takes some fifteen minutes on two cores.
FAST_COMPILE = -1.0

# The share of a GPU's memory that JAX takes for programs unless XLA_CLIENT_MEM_FRACTION says otherwise.
GPU_MEMORY_SHARE = 0.75
# What Python, the libraries and images on their way take of a machine's memory, apart from the program.
CPU_RESERVED = 2**30


class OutOfMemory(Exception):
    """A program needs ``used`` bytes on each device, of which ``limit`` can be had."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(f"{used} of {limit} bytes")
        self.used, self.limit = used, limit


class Target(Protocol):
    """Devices to compile for.

    Attributes:
      name: as given, ``'v5e:4x4'``, or ``'2 x v5e:4x4'`` for slices.
      platform: ``'tpu'``, ``'cuda'`` or ``'cpu'``.
      devices: JAX devices.
      device_kind: their name, by which `binwrn_jax.parallel.hardware.peak` has their peaks.
      hosts: machines they are in.
      slices: of a TPU, with a network between them.
      packages: whose versions the result depends on.
      memory_is_whole: whether the compiled program's memory is all that it takes; else it is a lower bound.
      missing: why the program is compiled for the CPU instead, and what to do; '' where it is compiled for
        these devices.
    """

    name: str
    platform: str
    devices: list[jax.Device]
    device_kind: str
    hosts: int
    slices: int
    packages: Sequence[str]
    memory_is_whole: bool
    missing: str

    def compile(self, lowered: jax.stages.Lowered, arguments: int) -> jax.stages.Compiled:
        """Compiles a program that takes ``arguments`` bytes on each device.

        Raises:
          OutOfMemory: the compiler found no way to fit it.
        """

    def usable_memory(self) -> int | None:
        """Bytes of one device's memory that a program can have; None where that is not known."""


class TpuTarget:
    """One or several slices of a TPU pod, for which libtpu compiles."""

    platform = "tpu"
    packages: Sequence[str] = ("jax", "jaxlib", "libtpu")
    memory_is_whole = True
    missing = ""

    def __init__(self, name: str, slices: int = 1, effort: float = FAST_COMPILE) -> None:
        from jax.experimental import topologies

        version, _, shape = name.partition(":")
        if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
            raise UserError("compiling for a TPU needs libtpu: pip install '.[tpu]'")
        options = dict(TPU_OPTIONS[version])
        if shape in ONE_HOST.get(version, {}):
            options["chips_per_host_bounds"] = ONE_HOST[version][shape]
        if slices > 1:
            options["num_slices"] = slices
        try:
            devices: list[Any] = topologies.get_topology_desc(name, "tpu", **options).devices
        except Exception as error:  # libtpu raises many kinds
            reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
            raise UserError(f"no topology {name!r} ({reason}): use one such as {TPU_EXAMPLES}") from None
        self.name = f"{slices} x {name}" if slices > 1 else name
        self.devices: list[jax.Device] = devices
        self.device_kind: str = devices[0].device_kind
        self.hosts = len({device.process_index for device in devices})
        self.slices = slices
        self._options: dict[str, Any] = {"exec_time_optimization_effort": effort}

    def compile(self, lowered: jax.stages.Lowered, arguments: int) -> jax.stages.Compiled:
        """See `Target`."""
        try:
            return lowered.compile(self._options)
        except jax.errors.JaxRuntimeError as error:
            raise tpu_out_of_memory(str(error), arguments) or error from None

    def usable_memory(self) -> int | None:
        """See `Target`: what the compiler says when it is asked for a terabyte."""
        here = jax.sharding.SingleDeviceSharding(self.devices[0])
        terabyte = jax.ShapeDtypeStruct((2**40,), np.uint8)
        try:
            jax.jit(lambda x: x + 1, in_shardings=here, out_shardings=here).lower(terabyte).compile()
        except jax.errors.JaxRuntimeError as error:
            failure = tpu_out_of_memory(str(error), 0)
            return failure.limit if failure else None
        return None


class CudaTarget:
    """NVIDIA GPUs of one model, eight to a host. Without JAX's CUDA plug-in the program is the CPU's."""

    platform = "cuda"
    memory_is_whole = False  # the workspace of convolutions is chosen on the GPU itself
    slices = 1

    def __init__(self, name: str, model: str, count: int) -> None:
        gpu = GPUS[model]
        self.name, self.device_kind = name, gpu.kind
        self.hosts = -(-count // GPUS_PER_HOST)
        self._memory = gpu.memory
        self.packages: Sequence[str] = ("jax", "jaxlib")
        self.missing = _why_no_cuda_compiler()
        if self.missing:
            self.devices = _cpu_devices(count)
            return
        from jax.experimental import topologies

        self.packages = ("jax", "jaxlib", "jax-cuda12-pjrt")
        shape = f"1x{self.hosts}x{count // self.hosts}"
        self.devices = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(gpu), topology=shape
        ).devices

    def compile(self, lowered: jax.stages.Lowered, arguments: int) -> jax.stages.Compiled:
        """See `Target`; how much is too much is for the caller to say."""
        del arguments
        return lowered.compile()

    def usable_memory(self) -> int | None:
        """See `Target`: the share that JAX's allocator takes."""
        given = os.environ.get("XLA_CLIENT_MEM_FRACTION") or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        try:
            share = float(given or GPU_MEMORY_SHARE)
        except ValueError:
            raise UserError(f"XLA_CLIENT_MEM_FRACTION is {given!r}: it must be a number up to 1") from None
        return int(self._memory * share)


class CpuTarget:
    """Devices that JAX makes of this machine's processor; they share its memory."""

    platform = "cpu"
    device_kind = "cpu"
    hosts = slices = 1
    packages: Sequence[str] = ("jax", "jaxlib")
    memory_is_whole = True
    missing = ""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.devices = name, _cpu_devices(count)

    def compile(self, lowered: jax.stages.Lowered, arguments: int) -> jax.stages.Compiled:
        """See `Target`."""
        del arguments
        return lowered.compile()

    def usable_memory(self) -> int | None:
        """See `Target`."""
        return max(machine_memory() - CPU_RESERVED, 0) // len(self.devices)


def open_target(name: str, slices: int = 1, effort: float = FAST_COMPILE) -> Target:
    """The devices that a name such as ``v5e:4x4``, ``cuda:h100x8``, ``cpu`` or ``cpu:8`` stands for.

    Args:
      name: of the devices, for a TPU those of one slice.
      slices: how many of a TPU.
      effort: XLA's ``exec_time_optimization_effort``, for TPUs.

    Raises:
      UserError: there is no such; or libtpu is not installed.
    """
    with _quiet_loading():
        return _open(name, slices, effort)


def _open(name: str, slices: int, effort: float) -> Target:
    version, _, shape = name.partition(":")
    if slices < 1 or (slices > 1 and version in ("cpu", "cuda")):
        raise UserError(f"slices {slices}: at least 1, and several of a TPU only")
    if version == "cpu" and re.fullmatch(r"|[1-9]\d*", shape):
        return CpuTarget(name, int(shape or 1))
    gpu = re.fullmatch(r"(.+?)(?:x([1-9]\d*))?", shape) if version == "cuda" else None
    if gpu and gpu[1] in GPUS:
        count = int(gpu[2] or 1)
        if count > MOST_GPUS:
            raise UserError(f"{name!r}: at most {MOST_GPUS:,} GPUs")
        if count > GPUS_PER_HOST and count % GPUS_PER_HOST:
            raise UserError(
                f"{name!r}: more than {GPUS_PER_HOST} GPUs are whole hosts of {GPUS_PER_HOST}, "
                f"such as cuda:{gpu[1]}x{-(-count // GPUS_PER_HOST) * GPUS_PER_HOST}"
            )
        return CudaTarget(name, gpu[1], count)
    if version in TPU_OPTIONS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
        return TpuTarget(name, slices, effort)
    raise UserError(
        f"unknown topology {name!r}: use TPUs such as {TPU_EXAMPLES}; {GPU_EXAMPLES}; cpu or cpu:N"
    )


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


def versions(target: Target) -> dict[str, str]:
    """Installed versions of the packages that the result depends on."""
    found = {}
    for name in target.packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container that this is, has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # 'max' is no number: there is no limit
            memory = min(memory, int(Path(path).read_text()))
    return memory


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


def tpu_out_of_memory(message: str, arguments: int) -> OutOfMemory | None:
    """Reads libtpu's messages; None where the error is another.

    One counts all; the other, of programs that are hopeless from the start, all but the ``arguments``.
    """
    whole = re.search(rf"Used {_SIZE} of {_SIZE} hbm", message)
    part = re.search(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    match = whole or part
    if not match:
        return None
    used, limit = (int(float(match[i]) * _UNITS[match[i + 1]]) for i in (1, 3))
    return OutOfMemory(used if whole else used + arguments, limit)


def _why_no_cuda_compiler() -> str:
    """Why JAX's CUDA plug-in cannot be used, in one line; '' where it can."""
    advice = "pip install '.[preflight-cuda]'"
    jaxlib = importlib.metadata.version("jaxlib")
    for package in ("jax-cuda12-pjrt", "jax-cuda12-plugin"):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"{package} is not installed: {advice}"
        if found != jaxlib:
            return f"{package} {found} does not belong to jaxlib {jaxlib}: {advice}"
    return ""


def _cpu_devices(count: int) -> list[jax.Device]:
    if count > MAX_CPU_DEVICES:
        raise UserError(f"{count} devices wanted: at most {MAX_CPU_DEVICES} can be made of one CPU")
    with contextlib.suppress(RuntimeError):  # JAX has counted its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if count > len(devices):
        raise UserError(f"{count} devices wanted, but this process has {len(devices)} of the CPU")
    return devices[:count]


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hides what plug-ins write to the process's standard error about drivers that are not needed."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
