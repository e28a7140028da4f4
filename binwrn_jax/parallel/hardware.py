"""Published peaks of accelerators, by the name that JAX gives the device; the one such table."""

from __future__ import annotations

from typing import NamedTuple

GIB = 1024**3


class Peak(NamedTuple):
    """What one JAX device can do at most, as its maker publishes it, without sparsity.

    Attributes:
      bfloat16: floating-point operations per second of the matrix units on bfloat16.
      float32: the same on float32 operands at JAX's default precision: one bfloat16 pass on a TPU, TF32 on
        an NVIDIA GPU.
      memory: bytes of device memory.
      bandwidth: bytes per second to and from it.
      links: bytes per second that it can send to its neighbours, over all links together: the inter-chip
        interconnect of a TPU, NVLink of a GPU. 0 where there is none but PCIe.
      devices_per_chip: JAX devices on one chip; the other fields are of one device.
    """

    bfloat16: float
    float32: float
    memory: int
    bandwidth: float
    links: float = 0.0
    devices_per_chip: int = 1

    def flops(self, dtype: str) -> float:
        """Operations per second by the name of a compute dtype, ``'bfloat16'`` or ``'float32'``."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _tpu(tflops: float, gib: float, gb_per_s: float, ici_gb_per_s: float, devices: int = 1) -> Peak:
    """From the figures of a chip (cloud.google.com/tpu/docs, the page of each version).

    Google prints the interconnect as bytes in both directions together (v5e 400, v5p 1200, v6e 800, TPU7x
    1200 GB/s) or earlier as bits in one (v4 2400, v3 4 links of 656, v2 4 of 496 Gb/s): here one direction.
    """
    rate = tflops * 1e12 / devices
    share = 1e9 / devices
    return Peak(rate, rate, int(gib * GIB / devices), gb_per_s * share, ici_gb_per_s * share, devices)


def _gpu(
    bf16_tflops: float, tf32_tflops: float, gb: float, gb_per_s: float, nvlink_gb_per_s: float = 0
) -> Peak:
    """From NVIDIA's data sheet, dense (half of what is printed 'with sparsity'); NVLink in one direction."""
    return Peak(bf16_tflops * 1e12, tf32_tflops * 1e12, int(gb * 1e9), gb_per_s * 1e9, nvlink_gb_per_s * 1e9)


PEAKS: dict[str, Peak] = {
    "TPU v2": _tpu(46, 16, 700, 248, devices=2),
    "TPU v3": _tpu(123, 32, 900, 328, devices=2),
    "TPU v4": _tpu(275, 32, 1228, 300),
    "TPU v5 lite": _tpu(197, 16, 819, 200),
    "TPU v5e": _tpu(197, 16, 819, 200),
    "TPU v5": _tpu(459, 95, 2765, 600),
    "TPU v5p": _tpu(459, 95, 2765, 600),
    "TPU v6 lite": _tpu(918, 32, 1640, 400),
    "TPU v6e": _tpu(918, 32, 1640, 400),
    "TPU7x": _tpu(2307, 192, 7380, 600, devices=2),
    "NVIDIA A100-SXM4-40GB": _gpu(312, 156, 40, 1555, 300),
    "NVIDIA A100-PCIE-40GB": _gpu(312, 156, 40, 1555),
    "NVIDIA A100-SXM4-80GB": _gpu(312, 156, 80, 2039, 300),
    "NVIDIA A100 80GB PCIe": _gpu(312, 156, 80, 1935),
    "NVIDIA H100 80GB HBM3": _gpu(989.5, 494.7, 80, 3350, 450),
    "NVIDIA H100 PCIe": _gpu(756, 378, 80, 2000),
    "NVIDIA H100 NVL": _gpu(835, 417.5, 94, 3900),
    "NVIDIA H200": _gpu(989.5, 494.7, 141, 4800, 450),
    "NVIDIA GH200 480GB": _gpu(989.5, 494.7, 96, 4000),
    "NVIDIA B200": _gpu(2250, 1125, 180, 7700, 900),
    "NVIDIA A10": _gpu(125, 62.5, 24, 600),
    "NVIDIA A10G": _gpu(70, 35, 24, 600),
    "NVIDIA L4": _gpu(121, 60, 24, 300),
    "NVIDIA L40S": _gpu(362, 183, 48, 864),
    "NVIDIA RTX A6000": _gpu(154.8, 77.4, 48, 768),
    "NVIDIA GeForce RTX 3090": _gpu(71, 35.6, 24, 936),
    "NVIDIA GeForce RTX 4090": _gpu(165.2, 82.6, 24, 1008),
}


def peak(device_kind: str) -> Peak | None:
    """The peaks of ``jax.Device.device_kind``; None where they are not known, as of any CPU.

    >>> peak("TPU v4").flops("bfloat16") / 1e12
    275.0
    """
    return PEAKS.get(device_kind)
