"""A small packed model for each float feature of version 2, with every field of it: the golden files.

`PYTHONPATH=.:tests python -m version2_models` writes them and prints the examples of the document. They are
made of simple numbers, so that they have the same bytes everywhere but for the golden logits.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, serialise, versioned

FOLDER = Path(__file__).parent / "golden"
SHAPE, CLASSES = (5, 6, 3), 4


def golden_path(feature: str) -> Path:
    return FOLDER / f"packed_v2_{feature}.safetensors"


class Small:
    """Operations and tensors of a small network, whose numbers are quarters."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(11)
        self.operations: list[dict[str, Any]] = []
        self.bits: dict[str, np.ndarray] = {}
        self.kernels: dict[str, np.ndarray] = {}
        self.affines: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def op(self, op: str, *inputs: str, **fields: Any) -> str:
        out = f"v{len(self.operations)}"
        self.operations.append({"op": op, "in": list(inputs), "out": out, **fields})
        return out

    def affine(self, x: str, channels: int, by: float = 0.25, **fields: Any) -> str:
        name = f"affine{len(self.affines)}"
        scale, offset = (self.rng.integers(1, 5, channels) * self.rng.choice([-1, 1], channels) for _ in "ab")
        self.affines[name] = np.float32(scale * by), np.float32(offset / 4)
        return self.op("affine", x, tensor=name, **fields)

    def conv(self, x: str, inputs: int, outputs: int, window: tuple[int, int] = (3, 3), **more: Any) -> str:
        name = f"conv{len(self.bits) + len(self.kernels)}"
        kernel = self.rng.integers(0, 2, (outputs, *window, inputs // more.get("groups", 1)))
        if more.get("weights") == "float32":
            numbers = self.rng.integers(1, 5, kernel.shape) * (2 * kernel - 1)
            self.kernels[name] = np.float32(numbers / 4)
        else:
            bits = kernel.astype(np.uint8).reshape(outputs, -1)
            self.bits[name] = np.packbits(bits, axis=1, bitorder="little")
        fields = {"window": list(window), "stride": [1, 1], "pads": [[side // 2] * 2 for side in window]}
        return self.op("conv", x, tensor=name, **{**fields, "channels": [inputs, outputs], **more})

    def start(self) -> str:
        """The image as numbers of about 1, in 4 channels."""
        return self.affine(self.conv(self.affine("image", SHAPE[2], 1 / 256), SHAPE[2], 4), 4)

    def finish(self, x: str, channels: int) -> PackedModel:
        self.op("global_average", self.conv(x, channels, CLASSES, (1, 1)))
        metadata = versioned(
            {
                "format": numpy_reader.FORMAT,
                "operations": self.operations,
                "input": {"shape": list(SHAPE), "dtype": "uint8", "range": [0, 255], "resize": "bilinear"},
                "num_classes": CLASSES,
                "class_names": [],
                "license": "CC0-1.0",
            }
        )
        metadata["sha256"] = numpy_reader.checksum(metadata, self.bits | self.kernels)
        image = self.rng.integers(0, 256, SHAPE, dtype=np.uint8)
        packed = PackedModel(
            metadata, self.bits, self.affines, image, np.zeros(CLASSES, np.float32), kernels=self.kernels
        )
        logits = numpy_reader.Model(metadata, packed.tensors)(image[None])[0]
        return dataclasses.replace(packed, golden_logits=logits)


def clip(net: Small) -> PackedModel:
    x = net.affine(net.start(), 4, min=-0.5, max=0.75)
    return net.finish(net.affine(net.conv(x, 4, 4), 4, min=None, max=2), 4)


def concat(net: Small) -> PackedModel:
    x = net.start()
    return net.finish(net.op("concat", x, net.conv(x, 4, 3), x), 11)


def dilation(net: Small) -> PackedModel:
    x = net.conv(net.start(), 4, 5, (3, 2), stride=[1, 2], pads=[[4, 1], [0, 2]], dilation=[2, 3])
    return net.finish(net.conv(x, 5, 5, (2, 1), pads=[[1, 0], [0, 0]], dilation=[3, 1]), 5)


def elementwise(net: Small) -> PackedModel:
    x = net.start()
    functions = [net.op("elementwise", net.affine(x, 4, 2.0), function=f) for f in numpy_reader.ELEMENTWISE]
    leaky = net.op("elementwise", x, function="leaky_relu", alpha=-0.25)
    for y in functions:
        leaky = net.op("add", leaky, net.affine(y, 4))
    return net.finish(leaky, 4)


def float_kernels(net: Small) -> PackedModel:
    x = net.conv(net.start(), 4, 5, (2, 3), stride=[1, 2], pads=[[0, 1], [2, 0]], weights="float32")
    return net.finish(net.conv(x, 5, 2, (1, 1), weights="float32"), 2)


def global_pool(net: Small) -> PackedModel:
    x = net.start()
    mean, largest = (net.op("global_pool", x, kind=kind) for kind in ("average", "max"))
    return net.finish(net.conv(net.op("add", mean, net.affine(largest, 4)), 4, 4, (1, 1)), 4)


def groups(net: Small) -> PackedModel:
    x = net.conv(net.start(), 4, 8, (3, 3), groups=4)  # depthwise, two outputs each: rows of 9 bits
    return net.finish(net.conv(x, 8, 6, (3, 1), stride=[2, 1], groups=2), 6)


def pad(net: Small) -> PackedModel:
    x = net.op("pad", net.start(), pads=[[1, 0], [0, 3]], value=-1.25)
    return net.finish(net.conv(net.op("pad", x, pads=[[0, 0], [2, 2]], value=0), 4, 4), 4)


def product(net: Small) -> PackedModel:
    x = net.start()
    window = {"window": list(SHAPE[:2]), "stride": [1, 1], "pads": [[0, 0], [0, 0]]}
    gate = net.affine(net.op("average_pool", x, **window), 4)
    return net.finish(net.op("product", net.op("product", x, gate), net.affine(x, 4, min=0.25)), 4)


def resize(net: Small) -> PackedModel:
    x = net.op("resize", net.start(), factor=[2, 1], method="nearest")
    x = net.op("resize", net.conv(x, 4, 3), factor=[1, 3], method="bilinear")
    return net.finish(net.conv(net.op("resize", x, factor=[2, 2], method="bilinear"), 3, 3), 3)


MODELS: dict[str, Callable[[Small], PackedModel]] = {
    "clip": clip,
    "concat": concat,
    "dilation": dilation,
    "elementwise": elementwise,
    "float_kernels": float_kernels,
    "global_pool": global_pool,
    "groups": groups,
    "pad": pad,
    "product": product,
    "resize": resize,
}


def golden_model(feature: str) -> PackedModel:
    """The model in a golden file, with logits computed here."""
    return MODELS[feature](Small())


# --- the examples of the document ---------------------------------------------------------------------------


def numbers(*rows: list[float]) -> np.ndarray:
    """A value of one channel: rows of pixels."""
    return np.float32(rows)[None, :, :, None]


def channels(*pixels: list[float]) -> np.ndarray:
    """A value of one row: the channels of each pixel."""
    return np.float32(pixels)[None, None]


X = {"in": ["x"], "out": "y"}
ONE = {"stride": [1, 1], "pads": [[0, 0], [0, 0]]}
XS = [-4, -1, -0.5, 0, 0.5, 1, 4]
Example = tuple[str, dict[str, Any], list[np.ndarray], dict[str, np.ndarray]]
EXAMPLES: list[Example] = [
    (
        "clip",
        {"op": "affine", **X, "tensor": "a", "min": 0.0, "max": 6},
        [channels([-1, 2], [2, 5])],
        {"a.scale": np.float32([2, 1.5]), "a.offset": np.float32([0.5, -1])},
    ),
    ("concat", {"op": "concat", "in": ["x", "z", "x"], "out": "y"}, [channels([1, 2]), channels([3])] , {}),
    (
        "dilation",
        {"op": "conv", **X, "tensor": "c", "window": [1, 2], "stride": [1, 1], "pads": [[0, 0], [2, 0]],
         "channels": [1, 1], "dilation": [1, 3]},
        [numbers([1, 2, 4, 8, 16])],
        {"c": np.uint8([[0b10]])},
    ),
    *(
        ("elementwise", {"op": "elementwise", **X, "function": function, **more}, [numbers(XS)], {})
        for function, more in (
            ("leaky_relu", {"alpha": 0.25}), *((name, {}) for name in numpy_reader.ELEMENTWISE)
        )
    ),
    (
        "float_kernels",
        {"op": "conv", **X, "tensor": "c", "window": [1, 2], **ONE, "channels": [2, 1], "weights": "float32"},
        [channels([1, 10], [100, 1000])],
        {"c": np.float32([0.5, -1, 2, 0.25]).reshape(1, 1, 2, 2)},
    ),
    *(
        ("global_pool", {"op": "global_pool", **X, "kind": kind}, [numbers([1, 2], [3, 6])], {})
        for kind in ("average", "max")
    ),
    (
        "groups",
        {"op": "conv", **X, "tensor": "c", "window": [1, 1], **ONE, "channels": [4, 2], "groups": 2},
        [channels([1, 10, 100, 1000])],
        {"c": np.uint8([[0b01], [0b10]])},
    ),
    ("pad", {"op": "pad", **X, "pads": [[1, 0], [0, 2]], "value": 0.5}, [numbers([1, 2])], {}),
    (
        "product",
        {"op": "product", "in": ["x", "z"], "out": "y"},
        [channels([1, 2], [3, 4]), channels([10, -1])],
        {},
    ),
    *(
        ("resize", {"op": "resize", **X, "factor": [1, 2], "method": method}, [numbers([0, 4, 12])], {})
        for method in ("nearest", "bilinear")
    ),
]  # fmt: skip


def _shown(value: np.ndarray) -> str:
    """The numbers of a value: channels of a pixel in brackets, rows apart by semicolons."""
    _, _, _, depth = value.shape

    def pixel(numbers: np.ndarray) -> str:
        texts = [f"{x:.6g}" for x in numbers]
        return texts[0] if depth == 1 else f"[{' '.join(texts)}]"

    return "; ".join(" ".join(pixel(x) for x in row) for row in value[0])


def _example(example: Example) -> list[str]:
    _, operation, inputs, tensors = example
    values = dict(zip(dict.fromkeys(operation["in"]), inputs, strict=True))
    result = numpy_reader.compute(operation, [values[name] for name in operation["in"]], tensors) + 0.0
    lines = [", ".join(f'"{key}": {json.dumps(value)}' for key, value in operation.items() if key != "out")]
    lines += [f"    {name}: {_hex(array)}" for name, array in tensors.items()]
    lines += [f"    {name} = {_shown(x)}" for name, x in values.items()]
    exact = operation["op"] != "elementwise" or operation["function"] == "leaky_relu"
    lines.append(f"    y = {_shown(result)}" + (f"    {_hex(result)}" if exact else ""))
    return lines


def _hex(array: np.ndarray) -> str:
    """The bytes of an array, as a file has them, number by number."""
    size = array.dtype.itemsize
    content = np.ascontiguousarray(array).tobytes()
    return " ".join(content[i : i + size].hex() for i in range(0, len(content), size))


def examples_text() -> str:
    """The examples as the document has them, each line with the feature's name before it."""
    lines: list[str] = []
    feature = ""
    for example in EXAMPLES:
        if example[0] != feature:
            feature = example[0]
            lines.append(f"{feature}:")
        lines += ["  " + line for line in _example(example)]
    return "\n".join("    " + line for line in lines)


def main() -> None:
    """Writes the golden files, and prints the examples."""
    for feature in MODELS:
        golden_path(feature).write_bytes(serialise(golden_model(feature)))
    print(examples_text())


if __name__ == "__main__":
    main()
