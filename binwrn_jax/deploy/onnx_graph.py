"""The operations of a packed network as ONNX nodes, of opset 18."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from binwrn_jax.deploy.packed import PackedModel

OPSET = 18  # the first with BitwiseAnd

Operation = dict[str, Any]


class OnnxGraph:
    """Nodes and initialisers of an ONNX graph in the making.

    Args:
      onnx: the package.
      packed: the network.
    """

    def __init__(self, onnx: Any, packed: PackedModel) -> None:
        self._onnx, self._packed = onnx, packed
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def build(self) -> None:
        """Adds the nodes from ``images``, uint8 ``[N, H, W, C]``, to ``logits``, float32 ``[N, classes]``."""
        pixels = self.node("Cast", ["images"], "pixels", to=self._onnx.TensorProto.FLOAT)
        values = {"image": self.node("Transpose", [pixels], "image", perm=[0, 3, 1, 2])}
        operations = self._packed.operations
        for index, operation in enumerate(operations):
            # Numbered, so that no name in a packed file can clash with the names given here.
            out = "logits" if operation is operations[-1] else f"value{index}"
            OPERATIONS[operation["op"]](self, operation, [values[name] for name in operation["in"]], out)
            values[operation["out"]] = out

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds an initialiser once; returns its name."""
        if name not in self.initializers:
            self.initializers[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """An int64 ``[len(values)]`` constant, as shapes and axes are given."""
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """A float32 scalar."""
        return self.constant(name, np.array(value, np.float32))

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        self.nodes.append(self._onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    # --- one method for each operation of the format -------------------------------------------------------

    def affine(self, operation: Operation, inputs: list[str], out: str) -> None:
        """``min(max, max(min, x scale + offset))`` by channel."""
        name, low, high = operation["tensor"], operation.get("min"), operation.get("max")
        scale, offset = (part.reshape(1, -1, 1, 1) for part in self._packed.affines[name])
        y = self.node("Mul", [*inputs, self.constant(f"{name}.scale", scale)], f"{name}.scaled")
        shifted = out if low is None and high is None else f"{name}.shifted"
        y = self.node("Add", [y, self.constant(f"{name}.offset", offset)], shifted)
        if high is not None:
            least = "" if low is None else self.number(f"{name}.min", low)
            self.node("Clip", [y, least, self.number(f"{name}.max", high)], out)
        elif low == 0:
            self.node("Relu", [y], out)
        elif low is not None:
            self.node("Max", [y, self.number(f"{name}.min", low)], out)

    def convolution(self, operation: Operation, inputs: list[str], out: str) -> None:
        """Of bits, or of a kernel that stays float32."""
        name = operation["tensor"]
        if name in self._packed.bits:
            kernel = self._signs(name)
        else:
            stored = self._packed.kernels[name]  # [C_out, F_h, F_w, C_in / groups]
            kernel = self.constant(f"{name}.kernel", stored.transpose(0, 3, 1, 2))
        more = {"dilations": operation["dilation"]} if "dilation" in operation else {}
        if "groups" in operation:
            more["group"] = operation["groups"]
        self.node("Conv", [*inputs, kernel], out, **_window(operation), **more)

    def _signs(self, name: str) -> str:
        """The nodes from bits to float weights, ``[C_out, C_in / groups, F_h, F_w]``."""
        rows, (height, width, depth, outputs) = self._packed.bits[name], self._packed.kernel_shape(name)
        k = height * width * depth
        bits = self.constant(f"{name}.bits", rows)
        column = self.node("Unsqueeze", [bits, self.integers(2)], f"{name}.bytes")
        masks = self.constant("masks", np.left_shift(1, np.arange(8)).astype(np.uint8))
        masked = self.node("BitwiseAnd", [column, masks], f"{name}.masked")
        is_one = self.node("Cast", [masked], f"{name}.is_one", to=self._onnx.TensorProto.BOOL)
        plus, minus = self.number("plus_one", 1), self.number("minus_one", -1)
        signs = self.node("Where", [is_one, plus, minus], f"{name}.signs")
        signs = self.node("Reshape", [signs, self.integers(outputs, 8 * rows.shape[1])], f"{name}.rows")
        if 8 * rows.shape[1] != k:
            inputs = [signs, self.integers(0), self.integers(k), self.integers(1)]
            signs = self.node("Slice", inputs, f"{name}.cut")
        signs = self.node("Reshape", [signs, self.integers(outputs, height, width, depth)], f"{name}.ohwi")
        return self.node("Transpose", [signs], f"{name}.weights", perm=[0, 3, 1, 2])

    def average_pool(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The mean of the pixels inside the image."""
        self.node("AveragePool", inputs, out, count_include_pad=0, **_window(operation))

    def max_pool(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The largest of the pixels inside the image."""
        self.node("MaxPool", inputs, out, **_window(operation))

    def global_pool(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The mean or the largest of all pixels, as an image of one."""
        self.node("GlobalAveragePool" if operation["kind"] == "average" else "GlobalMaxPool", inputs, out)

    def global_average(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The logits."""
        self.node("Flatten", [self.node("GlobalAveragePool", inputs, "mean")], out)

    def pad_channels(self, operation: Operation, inputs: list[str], out: str) -> None:
        """Zeros after the channels."""
        added = operation["channels"] - self._packed.value_shapes[operation["in"][0]][-1]
        self.node("Pad", [*inputs, self.integers(0, 0, 0, 0, 0, added, 0, 0)], out)

    def pad(self, operation: Operation, inputs: list[str], out: str) -> None:
        """A border of one value."""
        (top, bottom), (left, right) = operation["pads"]
        pads = self.integers(0, 0, top, left, 0, 0, bottom, right)
        self.node("Pad", [*inputs, pads, self.number(f"{out}.border", operation["value"])], out)

    def add(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The sum of two values."""
        self.node("Add", inputs, out)

    def product(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The product of two values, the second perhaps of one pixel."""
        self.node("Mul", inputs, out)

    def concat(self, operation: Operation, inputs: list[str], out: str) -> None:
        """The channels of all inputs."""
        self.node("Concat", inputs, out, axis=1)

    def resize(self, operation: Operation, inputs: list[str], out: str) -> None:
        """Enlarging by whole factors."""
        down, across = operation["factor"]
        scales = self.constant(f"{out}.scales", np.array([1, 1, down, across], np.float32))
        if operation["method"] == "nearest":
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        else:
            how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        self.node("Resize", [*inputs, "", scales], out, **how)

    def elementwise(self, operation: Operation, inputs: list[str], out: str) -> None:
        """A function of each number."""
        function, (x,) = operation["function"], inputs
        if function == "leaky_relu":
            self.node("LeakyRelu", [x], out, alpha=float(operation["alpha"]))
        elif function == "hard_sigmoid":
            self.node("HardSigmoid", [x], out, alpha=1 / 6, beta=0.5)
        elif function in ("sigmoid", "tanh", "hard_swish"):
            self.node({"hard_swish": "HardSwish"}.get(function, function.capitalize()), [x], out)
        elif function == "silu":
            self.node("Mul", [x, self.node("Sigmoid", [x], f"{out}.gate")], out)
        else:
            self._gelu(x, out, function)

    def _gelu(self, x: str, out: str, function: str) -> None:
        """``x (1 + f(x)) / 2``; the operator Gelu came with opset 20."""
        if function == "gelu":
            inner = self.node("Mul", [x, self.number("half_sqrt_2", math.sqrt(0.5))], f"{out}.inner")
            curve = self.node("Erf", [inner], f"{out}.curve")
        else:
            # sqrt(2 / pi) x (1 + 0.044715 x^2)
            square = self.node("Mul", [x, x], f"{out}.square")
            square = self.node("Mul", [square, self.number("gelu_cubic", 0.044715)], f"{out}.cubic")
            factor = self.node("Add", [square, self.number("plus_one", 1)], f"{out}.factor")
            inner = self.node("Mul", [x, self.number("gelu_linear", math.sqrt(2 / math.pi))], f"{out}.linear")
            curve = self.node("Tanh", [self.node("Mul", [inner, factor], f"{out}.inner")], f"{out}.curve")
        both = self.node("Add", [curve, self.number("plus_one", 1)], f"{out}.both")
        half = self.node("Mul", [x, self.number("half", 0.5)], f"{out}.half")
        self.node("Mul", [half, both], out)


def _window(operation: Operation) -> dict[str, list[int]]:
    """The attributes that convolutions and pools share."""
    (top, bottom), (left, right) = operation["pads"]
    return {
        "kernel_shape": operation["window"],
        "strides": operation["stride"],
        "pads": [top, left, bottom, right],
    }


OPERATIONS: dict[str, Callable[[OnnxGraph, Operation, list[str], str], None]] = {
    "affine": OnnxGraph.affine,
    "conv": OnnxGraph.convolution,
    **{
        name: getattr(OnnxGraph, name)
        for name in (
            *("average_pool", "max_pool", "global_pool", "global_average", "pad_channels", "pad"),
            *("add", "product", "concat", "resize", "elementwise"),
        )
    },
}
