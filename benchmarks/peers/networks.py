"""Packed networks of known families with weights that are not trained, for timing: most kernels one bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, versioned


class Builder:
    """Adds operations one by one; each method returns the name of its result."""

    def __init__(self, side: int, classes: int) -> None:
        self.rng = np.random.default_rng(0)
        self.classes, self.shapes = classes, {"image": (side, side, 3)}
        self.operations: list[dict[str, Any]] = []
        self.bits: dict[str, np.ndarray] = {}
        self.kernels: dict[str, np.ndarray] = {}
        self.affines: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, op: str, inputs: list[str], shape: tuple[int, int, int], **fields: Any) -> str:
        out = f"v{len(self.operations)}"
        self.operations.append({"op": op, "in": inputs, "out": out, **fields})
        self.shapes[out] = shape
        return out

    def affine(self, x: str, scale: np.ndarray, offset: np.ndarray, **limits: float | None) -> str:
        name = f"affine{len(self.affines)}"
        self.affines[name] = np.float32(scale), np.float32(offset)
        return self.add("affine", [x], self.shapes[x], tensor=name, **limits)

    def sum(self, x: str, y: str) -> str:
        """A sum and a ReLU."""
        channels = self.shapes[x][2]
        total = self.add("add", [x, y], self.shapes[x])
        return self.affine(total, np.ones(channels), np.zeros(channels), min=0)

    def conv(
        self, x: str, outputs: int, side: int, stride: int = 1, *, depthwise: bool = False,
        floats: bool = False, limits: dict[str, float] | None = None,
    ) -> str:  # fmt: skip
        """A convolution, padded by half its side, and a multiply-add with limits."""
        height, width, inputs = self.shapes[x]
        depth = 1 if depthwise else inputs
        name, k = f"conv{len(self.bits) + len(self.kernels)}", side * side * depth
        fields: dict[str, Any] = {"groups": inputs} if depthwise else {}
        if floats:
            fields["weights"] = "float32"
            self.kernels[name] = np.float32(self.rng.normal(size=(outputs, side, side, depth)))
        else:
            weights = self.rng.integers(0, 2, (outputs, k), np.uint8)
            self.bits[name] = np.packbits(weights, axis=1, bitorder="little")
        half = (side - 1) // 2
        size = [(n + 2 * half - side) // stride + 1 for n in (height, width)]
        y = self.add(
            "conv", [x], (*size, outputs), tensor=name, window=[side, side], stride=[stride, stride],
            pads=[[half, half]] * 2, channels=[inputs, outputs], **fields,
        )  # fmt: skip
        scale = self.rng.uniform(0.5, 1.5, outputs) / math.sqrt(k) / (128 if x == "image" else 1)
        return self.affine(y, scale, self.rng.normal(size=outputs) * 0.3, **(limits or {}))

    def finish(self, x: str) -> PackedModel:
        """The mean over the pixels, a dense layer in floats, and the golden logits."""
        channels = self.shapes[x][2]
        pooled = self.add("global_pool", [x], (1, 1, channels), kind="average")
        self.add("global_average", [self.conv(pooled, self.classes, 1, floats=True)], (1, 1, self.classes))
        metadata = versioned(
            {
                "format": "binwrn-packed",
                "operations": self.operations,
                "input": {"shape": list(self.shapes["image"]), "dtype": "uint8", "range": [0, 255]},
                "num_classes": self.classes,
                "class_names": [],
            }
        )
        metadata["sha256"] = numpy_reader.checksum(metadata, self.bits | self.kernels)
        image = self.rng.integers(0, 256, self.shapes["image"], np.uint8)
        logits = np.zeros(self.classes, np.float32)
        packed = PackedModel(metadata, self.bits, self.affines, image, logits, kernels=self.kernels)
        logits = numpy_reader.Model(metadata, packed.tensors)(image[None])[0]
        return dataclasses.replace(packed, golden_logits=logits)


RELU, RELU6 = {"min": 0.0}, {"min": 0.0, "max": 6.0}


def mobilenet_v1(side: int = 224) -> PackedModel:
    """MobileNet 1.0: depthwise 3x3 and pointwise layers of one bit, first and last layer floats."""
    n = Builder(side, 1000)
    x = n.conv("image", 32, 3, 2, floats=True, limits=RELU6)
    for outputs, stride in [
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ]:  # fmt: skip
        x = n.conv(x, n.shapes[x][2], 3, stride, depthwise=True, limits=RELU6)
        x = n.conv(x, outputs, 1, limits=RELU6)
    return n.finish(x)


def mobilenet_v2(side: int = 224) -> PackedModel:
    """MobileNetV2 1.0: inverted residuals; as `mobilenet_v1`."""
    n = Builder(side, 1000)
    x = n.conv("image", 32, 3, 2, floats=True, limits=RELU6)
    for expansion, outputs, repeats, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for i in range(repeats):
            before, inner = x, expansion * n.shapes[x][2]
            if expansion > 1:
                x = n.conv(x, inner, 1, limits=RELU6)
            x = n.conv(x, inner, 3, first if i == 0 else 1, depthwise=True, limits=RELU6)
            x = n.conv(x, outputs, 1)
            if i > 0:
                x = n.add("add", [x, before], n.shapes[x])
    return n.finish(n.conv(x, 1280, 1, limits=RELU6))


def resnet18(side: int = 224) -> PackedModel:
    """ResNet-18: dense 3x3 layers of one bit, first and last layer floats."""
    n = Builder(side, 1000)
    x = n.conv("image", 64, 7, 2, floats=True, limits=RELU)
    height, width, channels = n.shapes[x]
    pool = {"window": [3, 3], "stride": [2, 2], "pads": [[1, 1], [1, 1]]}
    x = n.add("max_pool", [x], ((height + 1) // 2, (width + 1) // 2, channels), **pool)
    for outputs, first in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        for stride in (first, 1):
            y = n.conv(n.conv(x, outputs, 3, stride, limits=RELU), outputs, 3)
            if stride > 1:
                x = n.conv(x, outputs, 1, stride)
            x = n.sum(y, x)
    return n.finish(x)


def resnet20(side: int = 32) -> PackedModel:
    """ResNet-20 for 32 x 32 pixels, four times as wide as the first one: dense 3x3 layers of one bit."""
    n = Builder(side, 10)
    x = n.conv("image", 64, 3, floats=True, limits=RELU)
    for outputs, first in [(64, 1), (128, 2), (256, 2)]:
        for stride in (first, 1, 1):
            y = n.conv(n.conv(x, outputs, 3, stride, limits=RELU), outputs, 3)
            if stride > 1:
                x = n.conv(x, outputs, 1, stride)
            x = n.sum(y, x)
    return n.finish(x)


NETWORKS: dict[str, Callable[[], PackedModel]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet20": resnet20,
}
