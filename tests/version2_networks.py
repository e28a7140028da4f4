"""Packed files of version 2 with random small networks, written by the writer of this package.

    content, images = random_file(seed, ["groups", "dilation"])
    content, images = random_file(seed)  # all features together

The golden logits in a file are those of NumPy's reader. `FEATURES` are those of docs/packed-format-2.md that
float files can have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from packed_networks import Network

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, serialise

FEATURES = tuple(name for name in numpy_reader.FEATURES if name != "int8")
PATTERNS = np.array([7, 56, 448, 73, 146, 292, 0, 511])  # few of them, so that coding pays


class Version2(Network):
    """A network with some features of version 2; each method returns the name of its result."""

    def __init__(
        self, rng: np.random.Generator, features: Iterable[str], shape: tuple[int, int, int]
    ) -> None:
        super().__init__(rng, shape, classes=int(rng.integers(1, 8)))
        self.features = sorted(features)
        images = rng.integers(0, 256, (4, *shape)).astype(np.float32)
        self.values = {"image": images}  # of each name, so that what follows can keep them moderate

    def _add(self, op: str, inputs: list[str], shape: Any, **fields: Any) -> str:
        out: str = super()._add(op, inputs, shape, **fields)
        tensors = {**self.bits, **self.kernels}
        for name, parts in self.affines.items():
            tensors |= {f"{name}.{part}": x for part, x in zip(("scale", "offset"), parts, strict=True)}
        values = [self.values[name] for name in inputs]
        self.values[out] = numpy_reader.compute(self.operations[-1], values, tensors)
        return out

    def pick(self, *choices: Any) -> Any:
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def some(self, feature: str) -> bool:
        """Whether to use a feature that the file has anyway."""
        return feature in self.features and self.rng.random() < 0.4

    def scaled(self, x: str, gain: float = 1.0, **limits: float | None) -> str:
        """A multiply-add that makes values of about `gain` that differ between images, as batch norm does."""
        name, values = f"affine{len(self.affines)}", self.values[x]
        channels = values.shape[3]
        mean, spread = values.mean((0, 1, 2)), values.std((0, 1, 2))
        scale = self.rng.uniform(0.5, 1.5, channels) * self.rng.choice([-1, 1], channels) * gain
        scale /= np.maximum(spread, 0.2 * np.abs(mean) + 0.05)  # not what rounding leaves of a constant
        offset = self.rng.normal(size=channels) * 0.3 * gain - mean * scale
        self.affines[name] = (np.float32(scale), np.float32(offset))
        return self._add("affine", [x], self.shapes[x], tensor=name, **limits)

    def convolution(
        self, x: str, *, wide: bool = False, floats: bool = False, grouped: bool = False, gaps: bool = False
    ) -> str:
        """A convolution and a multiply-add. The flags ask for features; others come in at random."""
        height, width, inputs = self.shapes[x]
        window = [3, 3] if wide else [self.pick(1, 2, 3), self.pick(1, 2, 3)]
        fields: dict[str, Any] = {}
        groups = 1
        if grouped or self.some("groups"):
            divisors = [n for n in range(2, inputs + 1) if inputs % n == 0]
            groups = int(divisors[0] if wide else self.pick(*divisors))
            fields["groups"] = groups
        if gaps or self.some("dilation"):
            fields["dilation"] = self.pick([2, 1], [1, 2], [2, 2], [3, 2])
        covers = [
            (side - 1) * gap + 1 for side, gap in zip(window, fields.get("dilation", [1, 1]), strict=True)
        ]
        pads = [[min(side - 1, self.pick(0, 1, 2, 3)) for _ in range(2)] for side in covers]
        for axis, size in enumerate((height, width)):
            if size + sum(pads[axis]) < covers[axis]:
                pads[axis] = [covers[axis] - 1, 0]
        outputs = groups * (int(32 / groups) if wide else max(1, int(self.pick(2, 4, 6, 8, 12)) // groups))
        stride = [1, 1] if min(height, width) < 6 else [self.pick(1, 1, 2), self.pick(1, 1, 2)]
        depth, name = inputs // groups, f"conv{len(self.bits) + len(self.kernels)}"
        k = math.prod(window) * depth
        if not wide and (floats or self.some("float_kernels")):
            fields["weights"] = "float32"
            self.kernels[name] = np.float32(self.rng.normal(size=(outputs, *window, depth)))
        elif wide:
            self.bits[name] = numpy_reader.bits_of(np.uint16(self.rng.choice(PATTERNS, (outputs, depth))))
        else:
            signs = self.rng.integers(0, 2, (outputs, k), np.uint8)
            self.bits[name] = np.packbits(signs, axis=1, bitorder="little")
        size = [
            (side + sum(pad) - cover) // step + 1
            for side, pad, cover, step in zip((height, width), pads, covers, stride, strict=True)
        ]
        common = {"tensor": name, "window": window, "stride": stride, "pads": pads}
        y = self._add("conv", [x], (*size, outputs), **common, channels=[inputs, outputs], **fields)
        return self.scaled(y, min=self.pick(None, 0.0, -0.5))

    # --- one block for each feature: at least one operation that has it ---

    def clip(self, x: str) -> str:
        low, high = self.pick((None, 1.5), (0, 2), (-1.0, 0.75), (-0.25, 0.5))
        return self.scaled(x, min=low, max=high)

    def concat(self, x: str) -> str:
        partners = [name for name, shape in self.shapes.items() if shape[:2] == self.shapes[x][:2]]
        partners = [name for name in partners if name != "image"]
        inputs = [x, *(self.pick(*partners) for _ in range(self.pick(1, 2)))]
        depth = sum(self.shapes[name][2] for name in inputs)
        return self._add("concat", inputs, (*self.shapes[x][:2], depth))

    def dilation(self, x: str) -> str:
        return self.convolution(x, gaps=True)

    def elementwise(self, x: str) -> str:
        function = self.pick("leaky_relu", *numpy_reader.ELEMENTWISE)
        x = self.scaled(x, self.pick(1.0, 3.0))
        alpha = {"alpha": self.pick(0.1, -0.5, 0, 2)} if function == "leaky_relu" else {}
        return self._add("elementwise", [x], self.shapes[x], function=function, **alpha)

    def entropy(self, x: str) -> str:
        return self.convolution(self.convolution(x, wide=True), wide=True)

    def float_kernels(self, x: str) -> str:
        return self.convolution(x, floats=True)

    def global_pool(self, x: str) -> str:
        kind = self.pick("average", "max")
        y = self._add("global_pool", [x], (1, 1, self.shapes[x][2]), kind=kind)
        return self._multiply(x, y) if "product" in self.features else y

    def groups(self, x: str) -> str:
        return self.convolution(self.even(x), grouped=True)

    def pad(self, x: str) -> str:  # type: ignore[override]
        height, width, channels = self.shapes[x]
        pads = self.pick([[1, 0], [0, 2]], [[0, 0], [1, 1]], [[2, 1], [0, 0]])
        shape = (height + sum(pads[0]), width + sum(pads[1]), channels)
        return self._add("pad", [x], shape, pads=pads, value=self.pick(0, 0.5, -1.25))

    def product(self, x: str) -> str:
        return self._multiply(x, self.pick(x, self.scaled(x, min=0.0)))

    def resize(self, x: str) -> str:
        height, width, channels = self.shapes[x]
        down, across = self.pick([2, 1], [1, 3], [2, 2], [3, 2]) if max(height, width) < 20 else [1, 2]
        method = self.pick("nearest", "bilinear")
        shape = (height * down, width * across, channels)
        return self._add("resize", [x], shape, factor=[down, across], method=method)

    def _multiply(self, x: str, y: str) -> str:
        return self._add("product", [x, y], self.shapes[x])

    def even(self, x: str) -> str:
        """The value with a number of channels that groups can divide."""
        channels = self.shapes[x][2]
        if channels % 2 == 0:
            return x
        return self._add("pad_channels", [x], (*self.shapes[x][:2], channels + 1), channels=channels + 1)


def random_model(seed: int, features: Iterable[str] | None = None) -> PackedModel:
    """A random network that uses these features of version 2, each at least once, and no others.

    Args:
      seed: the same gives the same.
      features: of `FEATURES`; None for all of them.
    """
    rng = np.random.default_rng(seed)
    wanted = sorted(FEATURES if features is None else features)
    shape = (int(rng.integers(4, 12)), int(rng.integers(4, 12)), int(rng.integers(1, 5)))
    net = Version2(rng, wanted, shape)
    x = net.even(net.scaled("image"))
    # Values of one pixel last, where nothing else than a product brings them back.
    order = [name for name in rng.permutation(wanted) if name != "temperature"]
    if "product" not in wanted:
        order.sort(key=lambda name: name == "global_pool")
    for name in order:
        block: Callable[[str], str] = getattr(net, name)
        x = net.even(x)
        x = block(net.convolution(x) if rng.random() < 0.4 else x)
        if rng.random() < 0.3 and min(net.shapes[x][:2]) > 3:
            x = net.pool(x, net.pick("average_pool", "max_pool"), (2, 3), (2, 1), ((0, 1), (1, 1)))
    temperature = {"temperature": 1.5} if "temperature" in wanted else {}
    return net.finish(net.scaled(x), **temperature)


def random_file(seed: int, features: Iterable[str] | None = None) -> tuple[bytes, np.ndarray]:
    """The file of `random_model`, and some images for it, uint8 ``[3, H, W, C]``."""
    packed = random_model(seed, features)
    coded = features is None or "entropy" in features
    images = np.random.default_rng(seed).integers(0, 256, (3, *packed.golden_image.shape), np.uint8)
    return serialise(packed, "entropy" if coded else None), images
