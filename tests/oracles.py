"""The network of the paper in plain NumPy, written from its text, in float64; and weights to feed it."""

from typing import Any

import jax
import numpy as np

EPSILON = 1e-5


def window_starts(size: int, window: int, stride: int, padding: str) -> list[int]:
    """First index (may be negative) of each window along an axis.

    MATLAB pads (F - 1)/2 on both sides; Keras pads in total what ceil(size / stride) windows need, the
    smaller half before.
    """
    count = -(-size // stride)
    missing = max((count - 1) * stride + window - size, 0)
    before = window // 2 if padding == "symmetric" else missing // 2
    return [i * stride - before for i in range(count)]


def conv(x: np.ndarray, w: np.ndarray, stride: int, padding: str) -> np.ndarray:
    n, height, width, _ = x.shape
    window = w.shape[0]
    rows = window_starts(height, window, stride, padding)
    cols = window_starts(width, window, stride, padding)
    out = np.zeros((n, len(rows), len(cols), w.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(cols):
            for a in range(window):
                for b in range(window):
                    if 0 <= top + a < height and 0 <= left + b < width:
                        out[:, i, j] += x[:, top + a, left + b] @ w[a, b]
    return out


def average_pool(x: np.ndarray, padding: str) -> np.ndarray:
    """3x3, stride 2: the mean of the pixels of the window that lie inside the image."""
    n, height, width, channels = x.shape
    rows, cols = window_starts(height, 3, 2, padding), window_starts(width, 3, 2, padding)
    out = np.zeros((n, len(rows), len(cols), channels))
    for i, top in enumerate(rows):
        for j, left in enumerate(cols):
            inside = x[:, max(top, 0) : top + 3, max(left, 0) : left + 3]
            out[:, i, j] = inside.mean((1, 2))
    return out


def max_pool(x: np.ndarray, padding: str) -> np.ndarray:
    """3x3, stride 2."""
    n, height, width, channels = x.shape
    rows, cols = window_starts(height, 3, 2, padding), window_starts(width, 3, 2, padding)
    out = np.zeros((n, len(rows), len(cols), channels))
    for i, top in enumerate(rows):
        for j, left in enumerate(cols):
            out[:, i, j] = x[:, max(top, 0) : top + 3, max(left, 0) : left + 3].max((1, 2))
    return out


class Network:
    """Forward pass with the variables of the Flax network, ``conv{i}`` and ``bn{i}`` in order of use.

    Args:
      variables: ``params`` and ``batch_stats``, NumPy arrays.
      fields: depth, weights, plain, padding, input_relu, norm, temperature.
    """

    def __init__(self, variables, **fields):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.depth = fields["depth"]
        self.one_bit = fields.get("weights", "1bit") == "1bit"
        self.plain = fields.get("plain", False)
        self.padding = fields.get("padding", "symmetric")
        self.input_relu = fields.get("input_relu", True)
        self.norm = fields.get("norm", "batch")
        self.temperature = fields.get("temperature", 1.0)
        self.batch_moments = {}  # layer: (mean, var), of the last pass in training

    def kernel(self, index):
        w = np.asarray(self.params[f"conv{index}"]["kernel"], np.float64)
        if not self.one_bit:
            return w
        fan_in = w.shape[0] * w.shape[1] * w.shape[2]
        s = 2 / np.sqrt(fan_in) if self.plain else np.sqrt(2 / fan_in)
        return np.where(w < 0, -s, s)

    def bn(self, x, index, train):
        name = f"bn{index}"
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.batch_moments[name] = mean, var
        else:
            mean, var = (np.asarray(self.stats[name][field], np.float64) for field in ("mean", "var"))
        x = (x - mean) / np.sqrt(var + EPSILON)
        if name in self.params:
            x = x * self.params[name]["scale"] + self.params[name]["offset"]
        return x

    def activate(self, x, index, train):
        if self.norm == "none":
            return np.maximum(x, -1)
        return np.maximum(self.bn(x, index, train), 0)

    def __call__(self, images, train):
        x = self.bn(images.astype(np.float64), 0, train)
        if self.input_relu:
            x = np.maximum(x, 0)
        if self.depth == 18:  # ImageNet: He et al. 2015b, two blocks at each of four scales
            x = max_pool(conv(x, self.kernel(0), 2, self.padding), self.padding)
            per_scale = 2
        else:
            x = conv(x, self.kernel(0), 1, self.padding)
            per_scale = (self.depth - 2) // 6
        for i in range(1, self.depth - 1, 2):
            block = (i - 1) // 2
            stride = 2 if block % per_scale == 0 and block > 0 else 1
            y = conv(self.activate(x, i, train), self.kernel(i), stride, self.padding)
            y = conv(self.activate(y, i + 1, train), self.kernel(i + 1), 1, self.padding)
            if self.plain:
                x = y
                continue
            if stride == 2:
                x = average_pool(x, self.padding)
                x = np.concatenate([x, np.zeros((*x.shape[:3], y.shape[3] - x.shape[3]))], axis=3)
            x = x + y
        last = self.depth - 1
        x = conv(self.activate(x, last, train), self.kernel(last), 1, self.padding)
        if self.norm == "batch":
            x = self.bn(x, self.depth, train)
        return x.mean((1, 2)) / self.temperature


def as_if_trained(model, image_shape, rng):
    """Random variables: gains near 1, and moments of the input that are those of pixels."""

    def value(path, leaf):
        field, layer = path[-1].key, path[-2].key
        x = rng.normal(size=leaf.shape)
        if field == "scale":
            x = 1 + 0.3 * x
        elif field == "var":
            x = np.exp(x) * (1000 if layer == "bn0" else 1)
        elif field == "mean" and layer == "bn0":
            x = 120 + 10 * x
        return x.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *image_shape), np.uint8))
    return jax.tree_util.tree_map_with_path(value, shapes)


def distance(a: Any, b: Any) -> float:
    """Largest difference of any latent weight."""
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)
