"""From a Flax network to the operations of the packed format, and back: everything but the bits is folded.

A weight layer of the paper is BN -> ReLU -> conv with weights -s and +s. As s > 0, it commutes with
the ReLU and with the maximum of the variant without batch norm:

    s * max(0, x a + b) = max(0, x (s a) + s b)          s * max(-1, x) = max(-s, s x)

so that s joins the multiply-add *before* its convolution, whose weights then are -1 and +1. The last
batch norm and the temperature are one multiply-add before the global average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from binwrn_jax.errors import UserError
from binwrn_jax.nn.layers import BN_EPSILON, spatial_pads
from binwrn_jax.nn.rules import get_rule, he_scale
from binwrn_jax.nn.wide_resnet import WideResNet, architecture

Operation = dict[str, Any]
Affine = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Where the numbers of one ``affine`` operation come from.

    Attributes:
      tensor: its name in the file.
      batch_norm: name of the BN layer in it, or None.
      low: 0 for a ReLU after that, -1 for ``max(-1, x)``, None for nothing.
      scale_of: name of the convolution whose scale s is in it: the one that follows; or, where
        each output channel has its own scale (``bwn``), the one before.
      divisor: the temperature.
    """

    tensor: str
    batch_norm: str | None = None
    low: int | None = None
    scale_of: str | None = None
    divisor: float = 1.0


class Layout:
    """The operations of a network, without its numbers; each method adds some and names their result.

    Attributes:
      operations: as the file has them, but for ``min`` where that depends on a scale.
      folds: one for each ``affine``, in order.
    """

    def __init__(self, model: Any, image_shape: tuple[int, int, int]) -> None:
        self.model = model
        self.operations: list[Operation] = []
        self.folds: list[Fold] = []
        self._shapes: dict[str, tuple[int, int, int]] = {"image": image_shape}
        self._convs = 0

    def channels(self, x: str) -> int:
        """C of a value."""
        return self._shapes[x][2]

    def affine(self, x: str, **fold: Any) -> str:
        """A multiply-add, see `Fold`."""
        tensor = f"affine{len(self.folds)}"
        self.folds.append(Fold(tensor, **fold))
        return self._add("affine", [x], tensor, self._shapes[x], tensor=tensor, min=self.folds[-1].low)

    def weight_layer(
        self, x: str, batch_norm: str | None, low: int | None, features: int, window: int = 3, stride: int = 1
    ) -> str:
        """What the paper counts as a layer: multiply-add, threshold, convolution."""
        name, by_channel = f"conv{self._convs}", self.model.weights == "bwn"
        self._convs += 1
        x = self.affine(x, batch_norm=batch_norm, low=low, scale_of=None if by_channel else name)
        fields, shape = self._window(x, window, stride, features)
        channels = [self.channels(x), features]
        x = self._add("conv", [x], name, shape, tensor=name, **fields, channels=channels)
        return self.affine(x, scale_of=name) if by_channel else x

    def average_pool(self, x: str, window: int, stride: int) -> str:
        """Mean over the pixels inside the image."""
        fields, shape = self._window(x, window, stride, self.channels(x))
        return self._add("average_pool", [x], self._numbered("pool"), shape, **fields)

    def max_pool(self, x: str, window: int, stride: int) -> str:
        """Maximum over the pixels inside the image."""
        fields, shape = self._window(x, window, stride, self.channels(x))
        return self._add("max_pool", [x], self._numbered("pool"), shape, **fields)

    def pad_channels(self, x: str, channels: int) -> str:
        """Zeros after the channels."""
        shape = (*self._shapes[x][:2], channels)
        return self._add("pad_channels", [x], self._numbered("pad"), shape, channels=channels)

    def add(self, x: str, y: str) -> str:
        """The sum of two values."""
        return self._add("add", [x, y], self._numbered("add"), self._shapes[x])

    def global_average(self, x: str) -> str:
        """The logits."""
        return self._add("global_average", [x], "logits", (1, 1, self.channels(x)))

    def _window(
        self, x: str, window: int, stride: int, features: int
    ) -> tuple[dict[str, Any], tuple[int, int, int]]:
        height, width, _ = self._shapes[x]
        pads = spatial_pads((height, width), window, stride, self.model.padding)
        out = [
            (size + sum(pad) - window) // stride + 1 for size, pad in zip((height, width), pads, strict=True)
        ]
        fields = {"window": [window] * 2, "stride": [stride] * 2, "pads": [list(pad) for pad in pads]}
        return fields, (out[0], out[1], features)

    def _numbered(self, kind: str) -> str:
        return f"{kind}{sum(op['out'].startswith(kind) for op in self.operations)}"

    def _add(self, op: str, inputs: list[str], out: str, shape: tuple[int, int, int], **fields: Any) -> str:
        self.operations.append({"op": op, "in": inputs, "out": out, **fields})
        self._shapes[out] = shape
        return out


def wide_resnet_layout(model: WideResNet, image_shape: tuple[int, int, int]) -> Layout:
    """The operations of `binwrn_jax.nn.WideResNet`, in step with its ``__call__``."""
    net = Layout(model, image_shape)
    structure = architecture(model.depth, model.width)

    def activation(index: int) -> dict[str, Any]:
        if model.norm == "none":
            return {"batch_norm": None, "low": -1}
        return {"batch_norm": f"bn{index}", "low": 0}

    low = 0 if model.input_relu else None
    x = net.weight_layer("image", "bn0", low, structure.channels, structure.window, structure.stride)
    if structure.pool:
        x = net.max_pool(x, 3, 2)
    index = 1
    for scale, blocks in enumerate(structure.blocks):
        features = structure.channels * 2**scale
        for block in range(blocks):
            stride = 2 if scale > 0 and block == 0 else 1
            path = net.weight_layer(x, **activation(index), features=features, stride=stride)
            path = net.weight_layer(path, **activation(index + 1), features=features)
            index += 2
            if model.plain:
                x = path
            elif stride == 2:
                x = net.add(path, net.pad_channels(net.average_pool(x, 3, 2), features))
            else:
                x = net.add(path, x)

    x = net.weight_layer(x, **activation(index), features=model.num_classes, window=1)
    last_norm = f"bn{index + 1}" if model.norm == "batch" else None
    x = net.affine(x, batch_norm=last_norm, divisor=model.temperature)
    net.global_average(x)
    return net


def layout_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Layout:
    """The operations of a network of `binwrn_jax.nn`.

    Args:
      model: not of 32-bit weights.
      image_shape: ``(H, W, C)``.

    Raises:
      UserError: there are no bits to pack.
    """
    if model.weights == "32bit":
        raise UserError("this model has 32-bit weights: only the 1-bit rules make packed models")
    return wide_resnet_layout(model, image_shape)


def _channel_scales(model: Any, kernel: np.ndarray) -> np.ndarray:
    """Magnitude of the weights that the network uses, by output channel: float64 ``[C_out]``."""
    scale = he_scale(kernel.shape, plain=model.plain)
    effective = np.asarray(get_rule(model.weights)(jnp.asarray(kernel), scale))
    return np.abs(effective[0, 0, 0]).astype(np.float64)


def fold(layout: Layout, variables: dict[str, Any]) -> tuple[list[Operation], dict[str, Affine]]:
    """The operations with all their numbers, and the multiply-adds.

    Computed in float64 and rounded once, to float32.

    Args:
      layout: of the network.
      variables: its ``params`` and ``batch_stats``.

    Returns:
      ``(operations, {tensor: (scale, offset)})``.
    """
    params, stats = variables["params"], variables["batch_stats"]
    operations = {op.get("tensor", op["out"]): dict(op) for op in layout.operations}
    affines = {}
    for item in layout.folds:
        operation = operations[item.tensor]
        scale, offset = np.float64(1), np.float64(0)
        if item.batch_norm is not None:
            moments, learned = stats[item.batch_norm], params.get(item.batch_norm, {})
            mean, var = (np.asarray(moments[key], np.float64) for key in ("mean", "var"))
            scale = np.asarray(learned.get("scale", 1), np.float64) / np.sqrt(var + BN_EPSILON)
            offset = np.asarray(learned.get("offset", 0), np.float64) - mean * scale
        factor = 1 / item.divisor
        if item.scale_of is not None:
            factor = _channel_scales(layout.model, np.asarray(params[item.scale_of]["kernel"]))
            if layout.model.weights != "bwn":
                factor = factor[0]  # the same in all channels
        channels = layout.channels(operation["in"][0])
        affines[item.tensor] = tuple(
            np.broadcast_to(value * factor, (channels,)).astype(np.float32) for value in (scale, offset)
        )
        if item.low is not None:
            operation["min"] = float(np.float32(item.low * factor)) if item.low else 0.0
    return list(operations.values()), affines


def unfold(
    layout: Layout, affines: dict[str, Affine], signs: Callable[[str], np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Flax variables that give the same logits as a packed model, to go on training from.

    The latent weights are -s and +s: their signs are those of the file, how far each was from changing
    its sign is lost. BN moments come out as they were; where a layer also learned a scale and an
    offset, one multiply-add cannot tell them from the moments: they become 1 and 0.

    Args:
      layout: of the network.
      affines: ``{tensor: (scale, offset)}`` of the file.
      signs: gives the -1 and +1 of a convolution, float32 ``[F, F, C_in, C_out]``.

    Returns:
      ``params`` and ``batch_stats``, float32.

    Raises:
      UserError: the numbers are none that this network could have had.
    """
    model = layout.model
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for item in layout.folds:
        scale, offset = (np.asarray(value, np.float64) for value in affines[item.tensor])
        factor = 1 / item.divisor
        if item.scale_of is not None:
            kernel = signs(item.scale_of)
            if model.weights == "bwn":
                magnitude = scale
            elif model.weights == "binaryconnect":
                magnitude = factor = 1.0
            elif model.weights == "bwn_layer" and item.batch_norm is None:
                magnitude = factor = scale[0]
            else:
                magnitude = factor = he_scale(kernel.shape, plain=model.plain)
            params[item.scale_of] = {"kernel": (kernel * magnitude).astype(np.float32)}
        if item.batch_norm is None:
            continue
        slope, offset = scale / factor, offset / factor
        ok = (slope > 1e-15) & (slope <= BN_EPSILON**-0.5 * (1 + 1e-6))
        safe = np.where(ok, slope, 1)
        mean = np.where(ok, -offset / safe, 0)
        var = np.where(ok, np.maximum(safe**-2.0 - BN_EPSILON, 0), 1 - BN_EPSILON)
        if model.affine or item.batch_norm == "bn0":
            learned = {"scale": np.where(ok, 1, slope), "offset": np.where(ok, 0, offset)}
            params[item.batch_norm] = {key: value.astype(np.float32) for key, value in learned.items()}
        elif not ok.all():
            raise UserError(f"{item.tensor} of the packed model is no batch norm without learned scale")
        stats[item.batch_norm] = {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}
    return {"params": params, "batch_stats": stats}


def same_structure(layout: Layout, operations: list[Operation]) -> bool:
    """Whether a file's operations are those of a network, apart from their numbers."""

    def structure(operation: Operation) -> Operation:
        low = operation.get("min")
        return {**operation, "min": low if low is None else float(np.sign(low))}

    return [structure(op) for op in layout.operations] == [structure(op) for op in operations]
