"""Small networks of the families that people use, as somebody would write them: Flax Linen, NNX and Equinox.

Each is a function that gives ``(apply, variables, image shape)``, with parameters and moments that matter.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Network = tuple[Callable[[Any, Any], Any], Any, tuple[int, int, int]]


def floats(images):
    """Images 0..255 as numbers around zero."""
    return images.astype(jnp.float32) / 127.5 - 1


def trained(tree, seed=0):
    """The tree with moments, scales and biases as training leaves them: none of them 0 or 1."""
    rng = np.random.default_rng(seed)

    def new(path, leaf):
        word = str(getattr(path[-1], "key", getattr(path[-1], "name", path[-1])))
        if word in ("value", "[<flat index 0>]") and len(path) > 1:
            word = str(getattr(path[-2], "key", getattr(path[-2], "name", path[-2])))
        if not hasattr(leaf, "shape") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if word in ("var",):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32)
        if word in ("mean", "bias"):
            return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)
        if word == "scale":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            values = rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
            return jnp.asarray(values, jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(new, tree)


def linen(network: nn.Module, shape=(16, 16, 3), seed=0) -> Network:
    images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    variables = jax.eval_shape(network.init, jax.random.key(seed), images)
    return network.apply, trained(variables, seed), shape


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x)


class ResNet(nn.Module):
    """Post-activation, with a strided 1x1 convolution on the skip path and biases."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(Norm()(nn.Conv(8, (3, 3), use_bias=False)(floats(images))))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for features, stride in ((8, 1), (16, 2)):
            y = nn.relu(Norm()(nn.Conv(features, (3, 3), (stride, stride))(x)))
            y = Norm()(nn.Conv(features, (3, 3))(y))
            if stride > 1:
                x = Norm()(nn.Conv(features, (1, 1), (stride, stride), use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class PreActivationResNet(nn.Module):
    """Shortcuts that take each second pixel and pad the channels with zeros."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3))(floats(images))
        for features, stride in ((8, 1), (16, 2)):
            y = nn.Conv(features, (3, 3), (stride, stride))(nn.relu(Norm()(x)))
            y = nn.Conv(features, (3, 3))(nn.relu(Norm()(y)))
            x = x[:, ::stride, ::stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1]))) + y
        return nn.Dense(10)(nn.relu(Norm()(x)).mean((1, 2)))


class VGG(nn.Module):
    """Flattened images and hidden dense layers."""

    @nn.compact
    def __call__(self, images):
        x = floats(images)
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(24)(x)))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3))(floats(images))
        for block in range(2):
            for _ in range(2):
                y = nn.Conv(16, (1, 1), use_bias=False)(nn.relu(Norm()(x)))
                y = nn.Conv(6, (3, 3), use_bias=False)(nn.relu(Norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
            if block == 0:
                x = nn.avg_pool(nn.Conv(10, (1, 1))(nn.relu(Norm()(x))), (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(Norm()(x)).mean((1, 2)))


class MobileNet1(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu6(Norm()(nn.Conv(8, (3, 3), (2, 2), padding=((0, 1), (0, 1)))(floats(images))))
        for features, stride in ((16, 1), (24, 2)):
            depth = x.shape[-1]
            x = nn.Conv(depth, (3, 3), (stride, stride), feature_group_count=depth, use_bias=False)(x)
            x = nn.relu6(Norm()(x))
            x = nn.relu6(Norm()(nn.Conv(features, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNet2(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu6(Norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(floats(images))))
        for features, stride in ((8, 1), (12, 2)):
            y = nn.relu6(Norm()(nn.Conv(4 * x.shape[-1], (1, 1), use_bias=False)(x)))
            y = nn.Conv(y.shape[-1], (3, 3), (stride, stride), feature_group_count=y.shape[-1])(y)
            y = Norm()(nn.Conv(features, (1, 1), use_bias=False)(nn.relu6(Norm()(y))))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(10)(nn.relu6(Norm()(nn.Conv(32, (1, 1))(x))).mean((1, 2)))


class SqueezeExcite(nn.Module):
    gate: Callable[[Any], Any]
    act: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x):
        y = self.act(nn.Conv(4, (1, 1))(x.mean((1, 2), keepdims=True)))
        return x * self.gate(nn.Conv(x.shape[-1], (1, 1))(y))


class MobileNet3(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.hard_swish(Norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(floats(images))))
        for features, size in ((8, 3), (12, 5)):
            y = nn.hard_swish(Norm()(nn.Conv(16, (1, 1), use_bias=False)(x)))
            y = nn.Conv(16, (size, size), feature_group_count=16, use_bias=False)(y)
            y = SqueezeExcite(nn.hard_sigmoid, nn.relu)(nn.hard_swish(Norm()(y)))
            y = Norm()(nn.Conv(features, (1, 1), use_bias=False)(y))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(10)(nn.hard_swish(nn.Dense(24)(x.mean((1, 2)))))


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.silu(Norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(floats(images))))
        for features in (8, 12):
            y = nn.silu(Norm()(nn.Conv(24, (1, 1), use_bias=False)(x)))
            y = nn.silu(Norm()(nn.Conv(24, (5, 5), feature_group_count=24, use_bias=False)(y)))
            y = SqueezeExcite(nn.sigmoid, nn.silu)(y)
            y = Norm()(nn.Conv(features, (1, 1), use_bias=False)(y))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(10)(nn.silu(Norm()(nn.Conv(16, (1, 1))(x))).mean((1, 2)))


class RegNet(nn.Module):
    """Grouped convolutions, squeeze-and-excitation, dilation in the last block."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(Norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(floats(images))))
        for features, dilation in ((16, 1), (24, 2)):
            y = nn.relu(Norm()(nn.Conv(features, (1, 1), use_bias=False)(x)))
            y = nn.Conv(features, (3, 3), feature_group_count=features // 8, kernel_dilation=dilation)(y)
            y = SqueezeExcite(nn.sigmoid, nn.relu)(nn.relu(Norm()(y)))
            y = Norm()(nn.Conv(features, (1, 1), use_bias=False)(y))
            x = nn.relu(y + Norm()(nn.Conv(features, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class Mixed(nn.Module):
    """What is left: both GELUs, leaky ReLU, tanh, resizing, constant padding, all pools, a gate of pixels."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (3, 3), padding="VALID")(floats(images))
        x = nn.gelu(x) + nn.gelu(x, approximate=False)
        low = nn.avg_pool(nn.leaky_relu(x, 0.1), (3, 3), (2, 2), "SAME")
        low = nn.tanh(nn.Conv(8, (3, 3))(low))
        high = jax.image.resize(low, (len(x), 14, 14, 8), "nearest")
        x = jnp.concatenate([x, high, jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)], -1)
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0)), constant_values=0.5)
        x = nn.avg_pool(x, (3, 2), (2, 2), "SAME", count_include_pad=False)
        x = x * nn.sigmoid(nn.Conv(1, (1, 1))(x))
        x = nn.Conv(16, (3, 3), (1, 2), padding=1)(jnp.clip(x, -1, 2))
        return nn.Dense(10)(jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1) * 0.5 + 1)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=(2, 2), use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16 * 64, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.first(floats(images))))
        x = nnx.silu(self.second(x))
        return self.head(self.dropout(x.reshape(len(x), -1)))


def nnx_network() -> Network:
    network = NnxNet(nnx.Rngs(0))
    network.eval()
    graph, state = nnx.split(network)
    return lambda state, images: nnx.merge(graph, state)(images), trained(state), (16, 16, 3)


class EquinoxNet(eqx.Module):
    layers: list[Any]
    norm: eqx.nn.BatchNorm
    dense: eqx.nn.MLP
    gate: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.layers = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, key=keys[1]),
            eqx.nn.AvgPool2d(2, 2),
        ]
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="ema")
        self.gate = eqx.nn.Linear(12, 12, key=keys[2])
        self.dense = eqx.nn.MLP(12 * 4, 10, 20, 1, key=keys[3])

    def __call__(self, image, state):
        first, pool, second, average = self.layers
        x, state = self.norm(first(floats(image.transpose(2, 0, 1))), state)
        x = average(jax.nn.relu(second(pool(jax.nn.relu(x)))))
        x = x * jax.nn.sigmoid(self.gate(x.mean((1, 2))))[:, None, None]
        return self.dense(x.reshape(-1))


def equinox_network() -> Network:
    network, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    network = eqx.nn.inference_mode(network)

    def one(variables, image):
        return variables[0](image, variables[1])

    def apply(variables, images):
        return jax.vmap(lambda image: one(variables, image), axis_name="batch")(images)

    return apply, (network, trained(state)), (16, 16, 3)


NETWORKS: dict[str, Callable[[], Network]] = {
    "ResNet": lambda: linen(ResNet()),
    "pre-activation ResNet": lambda: linen(PreActivationResNet()),
    "VGG": lambda: linen(VGG()),
    "DenseNet": lambda: linen(DenseNet()),
    "MobileNet 1": lambda: linen(MobileNet1()),
    "MobileNet 2": lambda: linen(MobileNet2()),
    "MobileNet 3": lambda: linen(MobileNet3()),
    "EfficientNet": lambda: linen(EfficientNet()),
    "RegNet": lambda: linen(RegNet()),
    "mixed": lambda: linen(Mixed()),
    "NNX": nnx_network,
    "Equinox": equinox_network,
}
