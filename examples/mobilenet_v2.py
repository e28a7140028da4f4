"""MobileNetV2 with one bit per weight, its first and last layer float32: trained, exported, run everywhere.

About a minute on a CPU:

python examples/mobilenet_v2.py digits.safetensors
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import binwrn_jax
from binwrn_jax import binarize, by_path

# Kernels become -s and +s, but for those of the first and the last layer, which the mask leaves out.
ONE_BIT = by_path(lambda path: path.endswith("kernel") and not path.startswith(("stem", "head")))
STAGES = ((16, 1), (24, 2), (24, 1), (32, 2))  # channels and stride of each block


class MobileNetV2(nn.Module):
    """Inverted residuals with depthwise convolutions and ReLU6 (Sandler et al. 2018), for small images."""

    num_classes: int
    expansion: int = 3

    @nn.compact
    def __call__(self, images, train=False):
        """Logits of uint8 images ``[N, H, W, C]``."""

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        def convolution(x, features, size, **options):
            return norm(nn.Conv(features, (size, size), use_bias=False, **options)(x))

        x = nn.relu6(convolution(images.astype(jnp.float32) / 255, 16, 3, name="stem"))
        for features, stride in STAGES:
            wide = self.expansion * x.shape[-1]
            y = nn.relu6(convolution(x, wide, 1))
            y = nn.relu6(convolution(y, wide, 3, strides=stride, feature_group_count=wide))
            y = convolution(y, features, 1)
            x = x + y if x.shape == y.shape else y
        x = nn.relu6(convolution(x, 128, 1))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


class OneBitMobileNetV2(nn.Module):
    """The same as one module that binarises its own kernels, for `binwrn train` and `binwrn preflight`."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        """Logits of uint8 images ``[N, H, W, C]``."""

        def used(variables):
            return {"params": binarize(variables["params"], ONE_BIT)}

        # Latent kernels start as those of any network: they are binarised when they are used.
        kind = MobileNetV2 if self.is_initializing() else nn.map_variables(MobileNetV2, "params", used)
        return kind(self.num_classes, name="network")(images, train)


def create(config):
    """From this folder: ``binwrn train --config.model.type=mobilenet_v2:create``."""
    return OneBitMobileNetV2(config.num_classes)


BATCH = 32
network = MobileNetV2(num_classes=10)


def logits_of(variables, images, **options):
    """The network with the kernels that it is used with."""
    used = {**variables, "params": binarize(variables["params"], ONE_BIT)}
    return network.apply(used, images, **options)


def update(params, statistics, images):
    """The running averages of batch norm after one batch."""
    variables = {"params": params, "batch_stats": statistics}
    return logits_of(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]


def fit(images, labels, steps):
    """Trains with SGD and a cosine; then computes batch-norm moments (section 3.2.1 of the paper)."""
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    params, statistics = variables["params"], variables["batch_stats"]
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4, mask=ONE_BIT),
        optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9),
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, statistics, state, images, labels):
        def loss(params):
            variables = {"params": params, "batch_stats": statistics}
            logits, changes = logits_of(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changes["batch_stats"]

        grads, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(0, len(labels), BATCH)
        params, statistics, state = step(params, statistics, state, images[batch], labels[batch])
    batches = images[: len(images) // BATCH * BATCH].reshape(-1, BATCH, *images.shape[1:])
    statistics = binwrn_jax.recompute_moments(lambda old, x: update(params, old, x), statistics, batches)
    return {"params": params, "batch_stats": statistics}


def main(path: str, steps: int = 400) -> float:
    """Trains, exports and runs the files; returns the test error in percent."""
    train, test = binwrn_jax.load("digits", "train"), binwrn_jax.load("digits", "test")
    variables = fit(train.images, train.labels, steps)
    print(binwrn_jax.cost(logits_of, variables, (8, 8, 1)))
    print(binwrn_jax.export(logits_of, variables, path, (8, 8, 1), images=test.images))
    onnx = Path(path).with_suffix(".onnx")
    print(binwrn_jax.export(logits_of, variables, onnx, (8, 8, 1), images=test.images))
    predictors = {
        "JAX": binwrn_jax.open_model(path),
        "NumPy": binwrn_jax.open_model(path, runtime="numpy"),
        "C": binwrn_jax.open_model(path, runtime="native"),
        "ONNX Runtime": binwrn_jax.open_model(onnx),
    }
    error = 0.0
    for name, model in predictors.items():
        error = 100 * float((model(test.images).argmax(1) != test.labels).mean())
        print(f"test error by {name}: {error:.2f} %")
    return error


if __name__ == "__main__":
    main(*sys.argv[1:2])
