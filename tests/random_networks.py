"""Flax networks drawn at random from the operations that can be exported.

    apply, variables, shape = random_network(seed)

A network is a list of layers, each a tuple of a name and numbers, so that a failure can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from networks import Network, Norm, floats, trained

from binwrn_jax import binarize, by_path

Layer = tuple[Any, ...]
Shape = tuple[int, int, int]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "clip": lambda x: jnp.clip(x, -0.75, 1.5),
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.1),
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "hard_sigmoid": nn.hard_sigmoid,
    "hard_swish": nn.hard_swish,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,
}


class Drawn(nn.Module):
    """The network of a list of layers."""

    layers: tuple[Layer, ...]
    classes: int

    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = floats(images)
        for layer in self.layers:
            x = Step(layer)(x)
        return nn.Dense(self.classes)(x)


class Step(nn.Module):
    """One layer."""

    layer: Layer

    @nn.compact
    def __call__(self, x: Any) -> Any:
        kind, *numbers = self.layer
        match kind, numbers:
            case "conv", [features, options]:
                return nn.Conv(features, **dict(options))(x)
            case "norm", []:
                return Norm()(x)
            case "residual", [options]:
                return x + nn.Conv(x.shape[3], **dict(options))(x)
            case "concat", [features]:
                return jnp.concatenate([x, nn.Conv(features, (1, 1))(x)], -1)
            case "gate", [function]:
                y = nn.Conv(x.shape[3], (1, 1))(x.mean((1, 2), keepdims=True))
                return x * ACTIVATIONS[function](y)
            case "product", [function]:
                return x * ACTIVATIONS[function](nn.Conv(x.shape[3], (1, 1))(x))
            case "max_pool", [window, strides, padding]:
                return nn.max_pool(x, window, strides, padding)
            case "avg_pool", [window, strides, padding, counted]:
                return nn.avg_pool(x, window, strides, padding, count_include_pad=counted)
            case _:
                return _move(x, kind, *numbers)


def _move(x: Any, kind: str, *numbers: Any) -> Any:
    """A layer without parameters."""
    match kind, list(numbers):
        case "activation", [name]:
            return ACTIVATIONS[name](x)
        case "pad", [pads, value]:
            return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)
        case "channels", [more]:
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
        case "resize", [factors, method]:
            count, height, width, channels = x.shape
            shape = (count, height * factors[0], width * factors[1], channels)
            return jax.image.resize(x, shape, method)
        case "every", [rows, columns]:
            return x[:, ::rows, ::columns]
        case "numbers", [scale, offset]:
            return (x * scale + offset) / 1.5 - jnp.linspace(0, 1, x.shape[3])
        case "turn", [name]:  # the same in another layout
            return ACTIVATIONS[name](x.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
        case "mean", []:
            return x.mean((1, 2))
        case "both", []:
            return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)
        case "flatten", []:
            return x.reshape(len(x), -1)
    raise ValueError(kind)


KINDS = (
    *("conv", "conv", "conv", "norm", "activation", "activation", "residual", "concat", "gate", "product"),
    *("max_pool", "avg_pool", "pad", "channels", "resize", "every", "numbers", "turn"),
)


class Draw:
    """Draws the layers of a network."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape: Shape = (self.number(4, 12), self.number(4, 12), self.pick(1, 3, 3, 4))

    def number(self, low: int, high: int) -> int:
        """From low to high."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def layers(self) -> tuple[Layer, ...]:
        """Between a first convolution and the dense layer at the end."""
        shape, layers = self.shape, []
        for kind in ["conv", *(self.pick(*KINDS) for _ in range(self.number(3, 9)))]:
            layer = getattr(self, kind)(shape)
            if layer is not None:
                layers.append(layer)
                shape = _shape_after(layer, shape)
        small = shape[0] * shape[1] * shape[2] <= 600
        return (*layers, (self.pick("mean", "both", "flatten" if small else "mean"),))

    def conv(self, shape: Shape) -> Layer | None:
        height, width, channels = shape
        kernel = (self.number(1, 4), self.number(1, 4))
        dilation = self.pick((1, 1), (1, 1), (2, 1), (2, 3))
        covers = [(side - 1) * gap + 1 for side, gap in zip(kernel, dilation, strict=True)]
        explicit = tuple((self.number(0, side), self.number(0, side)) for side in covers)
        padding = self.pick("SAME", "SAME", explicit, "VALID")
        if padding == "VALID" and (covers[0] > height or covers[1] > width):
            padding = "SAME"
        if padding == explicit and (covers[0] > height or covers[1] > width):
            padding = tuple((side, side) for side in covers)
        groups = self.pick(1, 1, channels, *(n for n in range(2, channels) if channels % n == 0))
        features = groups * self.pick(1, 2) if groups > 4 else groups * self.number(1, 8 // groups)
        strides = (self.number(1, 2), self.number(1, 2)) if min(height, width) > 4 else (1, 1)
        options = {
            "kernel_size": kernel, "strides": strides, "padding": padding, "kernel_dilation": dilation,
            "feature_group_count": groups, "use_bias": self.pick(True, False),
        }  # fmt: skip
        return "conv", features, tuple(options.items())

    def norm(self, shape: Shape) -> Layer:
        return ("norm",)

    def activation(self, shape: Shape) -> Layer:
        return "activation", self.pick(*ACTIVATIONS)

    def residual(self, shape: Shape) -> Layer:
        options = {"kernel_size": (3, 3), "kernel_dilation": self.pick((1, 1), (2, 2))}
        return "residual", tuple(options.items())

    def concat(self, shape: Shape) -> Layer:
        return "concat", self.number(1, 5)

    def gate(self, shape: Shape) -> Layer:
        return "gate", self.pick("sigmoid", "hard_sigmoid")

    def product(self, shape: Shape) -> Layer:
        return "product", self.pick("tanh", "sigmoid", "relu6")

    def max_pool(self, shape: Shape) -> Layer | None:
        window = (self.number(1, 3), self.number(1, 3))
        if window[0] > shape[0] or window[1] > shape[1]:
            return None
        return "max_pool", window, (self.number(1, 2), self.number(1, 2)), self.pick("SAME", "VALID")

    def avg_pool(self, shape: Shape) -> Layer | None:
        pool = self.max_pool(shape)
        return None if pool is None else ("avg_pool", *pool[1:], self.pick(True, False))

    def pad(self, shape: Shape) -> Layer:
        return "pad", self.pick(((1, 0), (0, 2)), ((1, 1), (2, 2))), self.pick(0.0, 0.5, -1.0)

    def channels(self, shape: Shape) -> Layer:
        return "channels", self.number(1, 3)

    def resize(self, shape: Shape) -> Layer | None:
        if max(shape[:2]) > 12:
            return None
        # JAX interpolates a single pixel by one product along both axes, which is not recognised.
        method = "nearest" if max(shape[:2]) == 1 else self.pick("nearest", "bilinear")
        return "resize", self.pick((2, 2), (1, 2), (3, 1)), method

    def every(self, shape: Shape) -> Layer | None:
        return ("every", *self.pick((2, 2), (1, 2))) if min(shape[:2]) > 3 else None

    def numbers(self, shape: Shape) -> Layer:
        return "numbers", self.pick(0.5, -1.0), self.pick(0.0, 1.0)

    def turn(self, shape: Shape) -> Layer:
        return "turn", self.pick(*ACTIVATIONS)


def _shape_after(layer: Layer, shape: Shape) -> Shape:
    """The shape of one image after a layer."""
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    found = jax.eval_shape(Step(layer).init_with_output, jax.random.key(0), images)[0].shape
    return found[1], found[2], found[3]


def random_network(seed: int) -> Network:
    """A network, with some of its kernels as bits inside ``apply``, the first one's always."""
    draw = Draw(seed)
    network = Drawn(draw.layers(), draw.number(1, 12))
    images = jax.ShapeDtypeStruct((1, *draw.shape), jnp.uint8)
    variables = trained(jax.eval_shape(network.init, jax.random.key(seed), images), seed)
    kept = {name for name in variables["params"] if draw.rng.random() < 0.3} - {"Step_0"}
    mask = by_path(lambda path: path.endswith("kernel") and path.split("/")[0] not in kept)
    rule = draw.pick("1bit", "bwn")

    def apply(tree: Any, images: Any) -> Any:
        return network.apply({**tree, "params": binarize(tree["params"], mask, rule=rule)}, images)

    return apply, variables, draw.shape
