"""Packed models of networks that are not trained: small ones of any operations, and the paper's."""

import dataclasses
import math

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, versioned


class Network:
    """Builds a packed model operation by operation; each method returns the name of its result."""

    def __init__(self, rng, shape, classes=5):
        self.rng, self.operations, self.shapes = rng, [], {"image": shape}
        self.bits, self.kernels, self.affines, self.classes = {}, {}, {}, classes

    def _add(self, op, inputs, shape, **fields):
        out = f"v{len(self.operations)}"
        self.operations.append({"op": op, "in": inputs, "out": out, **fields})
        self.shapes[out] = shape
        return out

    def _slide(self, x, window, stride, pads):
        height, width, _ = self.shapes[x]
        return [
            (size + sum(pad) - side) // step + 1
            for size, side, step, pad in zip((height, width), window, stride, pads, strict=True)
        ]

    def affine(self, x, low=0.0):
        name, channels = f"affine{len(self.affines)}", self.shapes[x][2]
        small = 1 / 128 if x == "image" else 0.1
        scale = self.rng.normal(size=channels) * small
        self.affines[name] = (np.float32(scale), np.float32(self.rng.normal(size=channels) * 0.3))
        return self._add("affine", [x], self.shapes[x], tensor=name, min=low)

    def conv(self, x, channels, window=(3, 3), stride=(1, 1), pads=((1, 1), (1, 1))):
        name, k = f"conv{len(self.bits) + len(self.kernels)}", math.prod(window) * self.shapes[x][2]
        weights = self.rng.integers(0, 2, (channels, k), np.uint8)
        self.bits[name] = np.packbits(weights, axis=1, bitorder="little")
        fields = {"window": list(window), "stride": list(stride), "pads": [list(pad) for pad in pads]}
        shape = (*self._slide(x, window, stride, pads), channels)
        return self._add("conv", [x], shape, tensor=name, channels=[self.shapes[x][2], channels], **fields)

    def pool(self, x, op="average_pool", window=(3, 3), stride=(2, 2), pads=((0, 1), (0, 1))):
        fields = {"window": list(window), "stride": list(stride), "pads": [list(pad) for pad in pads]}
        return self._add(op, [x], (*self._slide(x, window, stride, pads), self.shapes[x][2]), **fields)

    def pad(self, x, channels):
        return self._add("pad_channels", [x], (*self.shapes[x][:2], channels), channels=channels)

    def add(self, x, y):
        return self._add("add", [x, y], self.shapes[x])

    def finish(self, x, **more):
        self._add(
            "global_average", [self.affine(self.conv(x, self.classes, (1, 1), pads=[[0, 0]] * 2), None)], 0
        )
        return self.model(**more)

    def model(self, **more):
        """The model of operations that end in logits."""
        metadata = {
            "format": "binwrn-packed",
            "operations": self.operations,
            "input": {"shape": list(self.shapes["image"]), "dtype": "uint8", "range": [0, 255]},
            "num_classes": self.classes,
            "class_names": [f"klass {i} ü" for i in range(self.classes)],
            "dataset": "cifar10",
            **more,
        }
        metadata = versioned(metadata)
        metadata["sha256"] = numpy_reader.checksum(metadata, self.bits | self.kernels)
        image = self.rng.integers(0, 256, self.shapes["image"], np.uint8)
        logits = np.zeros(self.classes, np.float32)
        packed = PackedModel(metadata, self.bits, self.affines, image, logits, kernels=self.kernels)
        logits = numpy_reader.Model(metadata, packed.tensors)(image[None])[0]
        return dataclasses.replace(packed, golden_logits=logits)


def residual(rng, shape=(12, 10, 3), width=16):
    """The network of the paper in small: pre-activation blocks, one of them down-sampling."""
    n = Network(rng, shape)
    x = n.conv(n.affine("image", None), width)
    x = n.add(n.conv(n.affine(n.conv(n.affine(x), width)), width), x)
    y = n.conv(n.affine(n.conv(n.affine(x), 2 * width, stride=(2, 2), pads=((0, 1), (0, 1)))), 2 * width)
    return n.finish(n.affine(n.add(y, n.pad(n.pool(x), 2 * width))))


def any_network(rng):
    """All operations in any order, any sides and channels, values used several times or not at all."""
    shape = (*(int(n) for n in rng.integers(1, 20, 2)), int(rng.integers(1, 8)))
    n = Network(rng, shape, classes=int(rng.integers(1, 20)))
    values = [n.affine("image", None)]
    for _ in range(rng.integers(3, 14)):
        x = values[-1] if rng.random() < 0.6 else values[rng.integers(len(values))]
        height, width, channels = n.shapes[x]
        window = [int(rng.integers(1, 6)) for _ in range(2)]
        pads = [[int(rng.integers(0, side)) for _ in range(2)] for side in window]
        stride = [int(rng.integers(1, 4)) for _ in range(2)]
        fits = all(
            size + sum(pad) >= side for size, side, pad in zip((height, width), window, pads, strict=True)
        )
        match rng.integers(0, 7):
            case 0 | 1 if fits:
                kept = rng.random() < 0.5  # often of the same shape, so that sums have partners
                if kept:
                    window, stride, pads = (3, 3), (1, 1), ((1, 1), (1, 1))
                out = n.conv(
                    x if rng.random() < 0.3 else n.affine(x),
                    channels if kept else int(rng.integers(1, 40)),
                    window,
                    stride,
                    pads,
                )
            case 2 if fits:
                out = n.pool(x, "average_pool" if rng.random() < 0.5 else "max_pool", window, stride, pads)
            case 3:
                out = n.pad(x, channels + int(rng.integers(0, 5)))
            case 4:
                out = n.affine(x, [0.0, None, -1, 0.25][rng.integers(4)])
            case _:
                partners = [v for v in values if n.shapes[v] == n.shapes[x]]
                out = n.add(x, partners[rng.integers(len(partners))])
        values.append(out)
    return n.finish(values[-1])


def wide_resnet(depth, width, shape=(32, 32, 3), seed=0):
    """The paper's network with weights that are not trained."""
    rng = np.random.default_rng(seed)
    n = Network(rng, shape, classes=10)
    x, blocks, channels = n.conv(n.affine("image", None), 16 * width), (depth - 2) // 6, 16 * width
    for scale in range(3):
        for block in range(blocks):
            if scale and block == 0:
                channels *= 2
                stride, pads = (2, 2), ((0, 1), (0, 1))
                skip = n.pad(n.pool(x), channels)
            else:
                stride, pads, skip = (1, 1), ((1, 1), (1, 1)), x
            y = n.conv(n.affine(x), channels, stride=stride, pads=pads)
            x = n.add(n.conv(n.affine(y), channels), skip)
    return n.finish(n.affine(x))
