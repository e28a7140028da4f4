"""The float network of a packed file, in the formats that the engines of native_runtime.py read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def count_readers(operations: list[dict[str, Any]]) -> dict[str, int]:
    """How many operations read each value."""
    readers: dict[str, int] = {}
    for operation in operations:
        for name in operation["in"]:
            readers[name] = readers.get(name, 0) + 1
    return readers


def float_layers(packed: Any) -> list[dict[str, Any]]:
    """The operations; float weights ``[C_out, C_in / groups, F_h, F_w]`` have the affine after them in them.

    ``relu`` says whether a layer ends in one, ``max`` where it is cut above.
    """
    uses = count_readers(packed.operations)
    layers: list[dict[str, Any]] = []
    by_out: dict[str, dict[str, Any]] = {}
    for operation in packed.operations:
        layer = dict(operation)
        if layer["op"] == "conv":
            layer["weights"] = np.ascontiguousarray(packed.weights(layer["tensor"]).transpose(3, 2, 0, 1))
            layer["bias"] = np.zeros(layer["channels"][1], np.float32)
            layer["relu"] = False
        if layer["op"] == "affine":
            scale, offset = packed.affines[layer["tensor"]]
            before = by_out.get(layer["in"][0])
            assert layer.get("min") in (None, 0)
            if before and before["op"] == "conv" and uses[before["out"]] == 1:
                before["weights"] = np.ascontiguousarray(before["weights"] * scale.reshape(-1, 1, 1, 1))
                before["bias"], before["relu"] = offset, layer.get("min") is not None
                before["max"] = layer.get("max")
                before["out"] = layer["out"]
                by_out[layer["out"]] = before
                continue
            layer["scale"], layer["offset"], layer["relu"] = scale, offset, layer.get("min") is not None
        layers.append(layer)
        by_out[layer["out"]] = layer
    return layers


def write_onnx(layers: list[dict[str, Any]], shape: list[int], classes: int, path: Path) -> None:
    """Float ONNX: ``image``, float32 ``[N, C, H, W]``, to ``logits``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], {}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    for layer in layers:
        op, inputs, out = layer["op"], list(layer["in"]), layer["out"]
        shown = out if not layer.get("relu") else out + ".linear"
        window = {}
        if "window" in layer:
            (top, bottom), (left, right) = layer["pads"]
            window = {
                "kernel_shape": layer["window"],
                "strides": layer["stride"],
                "pads": [top, left, bottom, right],
            }
        if op == "conv":
            inputs += [constant(out + ".w", layer["weights"]), constant(out + ".b", layer["bias"])]
            nodes.append(helper.make_node("Conv", inputs, [shown], group=layer.get("groups", 1), **window))
        elif op == "affine" and (layer["scale"] == 1).all() and not layer["offset"].any():
            shown = inputs[0]  # a ReLU alone
        elif op == "affine":
            scale = constant(out + ".scale", layer["scale"].reshape(1, -1, 1, 1))
            offset = constant(out + ".offset", layer["offset"].reshape(1, -1, 1, 1))
            nodes.append(helper.make_node("Mul", [*inputs, scale], [out + ".scaled"]))
            nodes.append(helper.make_node("Add", [out + ".scaled", offset], [shown]))
        elif op == "average_pool":
            nodes.append(helper.make_node("AveragePool", inputs, [out], count_include_pad=0, **window))
        elif op == "max_pool":
            nodes.append(helper.make_node("MaxPool", inputs, [out], **window))
        elif op == "pad_channels":
            pads = constant(out + ".pads", np.int64([0, 0, 0, 0, 0, layer["added"], 0, 0]))
            nodes.append(helper.make_node("Pad", [*inputs, pads], [out]))
        elif op == "add":
            nodes.append(helper.make_node("Add", inputs, [out]))
        elif op == "global_pool":
            kind = "GlobalAveragePool" if layer["kind"] == "average" else "GlobalMaxPool"
            nodes.append(helper.make_node(kind, inputs, [out]))
        else:
            nodes.append(helper.make_node("GlobalAveragePool", inputs, ["mean"]))
            nodes.append(helper.make_node("Flatten", ["mean"], [out]))
        if layer.get("relu") and layer.get("max") is not None:
            limits = [constant(out + ".min", np.float32(0)), constant(out + ".max", np.float32(layer["max"]))]
            nodes.append(helper.make_node("Clip", [shown, *limits], [out]))
        elif layer.get("relu"):
            nodes.append(helper.make_node("Relu", [shown], [out]))
    height, width, channels = shape
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, height, width])
    logits = helper.make_tensor_value_info(layers[-1]["out"], TensorProto.FLOAT, ["n", classes])
    graph = helper.make_graph(nodes, "float", [image], [logits], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


class NcnnFiles:
    """ncnn's text and weight file, written layer by layer."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        self.lines: list[str] = []
        self.blobs = 0
        self.data = bytearray()
        self._uses = count_readers(layers)
        self._taken: dict[str, int] = {}

    def emit(self, kind: str, name: str, inputs: list[str], parameters: dict[int, Any]) -> None:
        """A layer whose one result has its name."""
        values = " ".join(f"{key}={value}" for key, value in parameters.items())
        self._line(f"{kind} {name} {len(inputs)} 1 {' '.join([*inputs, name])} {values}".rstrip(), 1)
        count = self._uses.get(name, 0)
        if count > 1:  # ncnn wants every value to have one reader
            copies = [f"{name}_{i}" for i in range(count)]
            self._line(f"Split split_{name} 1 {count} {name} {' '.join(copies)}", count)

    def _line(self, text: str, results: int) -> None:
        self.lines.append(text)
        self.blobs += results

    def source(self, name: str) -> str:
        """Where the next reader of a value finds it."""
        if self._uses[name] == 1:
            return name
        self._taken[name] = self._taken.get(name, -1) + 1
        return f"{name}_{self._taken[name]}"

    def add(self, layer: dict[str, Any]) -> None:
        op, inputs, out = layer["op"], [self.source(name) for name in layer["in"]], layer["out"]
        if "window" in layer:
            (kh, kw), (sh, sw) = layer["window"], layer["stride"]
            (top, bottom), (left, right) = layer["pads"]
        if op == "conv":
            weights, bias = layer["weights"], layer["bias"]
            parameters = {0: weights.shape[0], 1: kw, 11: kh, 3: sw, 13: sh, 4: left, 15: right, 14: top}
            parameters |= {16: bottom, 5: 1, 6: weights.size, 9: int(layer["relu"])}
            self.emit("Convolution", out, inputs, parameters)
            self.data.extend(b"\0\0\0\0" + np.float32(weights).tobytes() + np.float32(bias).tobytes())
        elif op == "affine":
            shown = out if not layer["relu"] else out + "_linear"
            self.emit("Scale", shown, inputs, {0: len(layer["scale"]), 1: 1})
            self.data.extend(layer["scale"].tobytes() + layer["offset"].tobytes())
            if layer["relu"]:
                self.emit("ReLU", out, [shown], {})
        elif op in ("average_pool", "max_pool"):
            parameters = {0: int(op == "average_pool"), 1: kw, 11: kh, 2: sw, 12: sh, 3: left, 14: right}
            self.emit("Pooling", out, inputs, parameters | {13: top, 15: bottom, 5: 1})
        elif op == "pad_channels":
            self.emit("Padding", out, inputs, {4: 0, 5: "0.0", 8: layer["added"]})
        elif op == "add":
            self.emit("BinaryOp", out, inputs, {0: 0})
        else:
            self.emit("Pooling", out, inputs, {0: 1, 4: 1})


def write_ncnn(layers: list[dict[str, Any]], shape: list[int], folder: Path) -> None:
    """ncnn's ``net.param`` and ``net.bin``."""
    height, width, channels = shape
    files = NcnnFiles(layers)
    files.emit("Input", "image", [], {0: width, 1: height, 2: channels})
    for layer in layers:
        files.add(layer)
    head = f"7767517\n{len(files.lines)} {files.blobs}\n"
    folder.joinpath("net.param").write_text(head + "\n".join(files.lines) + "\n")
    folder.joinpath("net.bin").write_bytes(bytes(files.data))
