"""NVIDIA GPUs as XLA's compiler is told about them: the facts that it would otherwise ask a driver for."""

from __future__ import annotations

import dataclasses

# Versions of what an NVIDIA machine of today has installed. They decide which instructions and which cuDNN
# operations the compiler may use.
CUDA_VERSION = "12.8.0"
DRIVER_VERSION = "13.0.0"
CUDNN_VERSION = (9, 10, 0)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One model of GPU, from NVIDIA's data sheet and the CUDA programming guide's table of capabilities.

    Attributes:
      kind: the name that JAX gives the device, a key of `binwrn_jax.parallel.hardware.PEAKS`.
      capability: compute capability, major and minor.
      cores: streaming multiprocessors.
      memory: bytes that a driver reports.
      bandwidth: bytes per second to and from memory.
      cache: bytes of the level-2 cache.
      clock: GHz, the highest.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    cache: int
    clock: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 85_100_068_864, 2_039_000_000_000, 40 * 2**20, 1.41),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 42_331_013_120, 1_555_000_000_000, 40 * 2**20, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 84_942_979_072, 3_352_000_000_000, 50 * 2**20, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 151_397_597_184, 4_800_000_000_000, 50 * 2**20, 1.98),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 191_514_411_008, 7_672_000_000_000, 126 * 2**20, 1.965),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 24_000_000_000, 300_000_000_000, 48 * 2**20, 2.04),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 48_000_000_000, 864_000_000_000, 96 * 2**20, 2.52),
    "a10g": Gpu("NVIDIA A10G", (8, 6), 80, 24_000_000_000, 600_000_000_000, 6 * 2**20, 1.71),
    "4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 24_000_000_000, 1_008_000_000_000, 72 * 2**20, 2.52),
}

# Of a multiprocessor, by compute capability: bytes of shared memory, bytes of it that one block can have,
# threads, and float32 units.
MULTIPROCESSOR = {
    (8, 0): (167_936, 166_912, 2048, 64),
    (8, 6): (102_400, 101_376, 1536, 128),
    (8, 9): (102_400, 101_376, 1536, 128),
    (9, 0): (233_472, 232_448, 2048, 128),
    (10, 0): (233_472, 232_448, 2048, 128),
}


def target_config(gpu: Gpu) -> str:
    """The GPU as the text of XLA's message ``stream_executor.GpuTargetConfigProto``."""
    major, minor = gpu.capability
    shared, shared_of_block, threads, units = MULTIPROCESSOR[gpu.capability]
    dnn = ".".join(map(str, CUDNN_VERSION))
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores} fpus_per_core: {units} clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory} memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {threads}
  shared_memory_per_core: {shared} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_of_block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  runtime_version: "{CUDA_VERSION}" driver_version: "{DRIVER_VERSION}" dnn_version: "{dnn}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN_VERSION[0]} minor: {CUDNN_VERSION[1]} patch: {CUDNN_VERSION[2]} }}
device_description_str: "{gpu.kind}"
"""
