"""An Equinox network with one bit per weight, trained and exported: under a minute on a CPU.

python examples/equinox_network.py digits.safetensors
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import binwrn_jax
from binwrn_jax import binarize, by_path

WEIGHTS = by_path(lambda path: path.endswith("weight"))


class Network(eqx.Module):
    """Channels first, one image at a time, as Equinox has it."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 32, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.dense = eqx.nn.Linear(64 * 4, 10, key=keys[2])

    def __call__(self, image):
        """Logits of one uint8 image ``[H, W, C]``."""
        x = image.transpose(2, 0, 1).astype(jnp.float32) / 255
        x = self.pool(jax.nn.relu(self.first(x)))
        x = self.pool(jax.nn.relu(self.second(x)))
        return self.dense(x.reshape(-1))


def apply(network, images):
    """Logits of a batch; kernels of Equinox have their output channels first."""
    return jax.vmap(binarize(network, WEIGHTS, layout="OIHW"))(images)


def main(path: str, steps: int = 300) -> float:
    """Trains, exports and opens the file again; returns the test error in percent."""
    train, test = binwrn_jax.load("digits", "train"), binwrn_jax.load("digits", "test")
    network = Network(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = optimizer.init(eqx.filter(network, eqx.is_array))

    @eqx.filter_jit
    def step(network, state, images, labels):
        def loss(network):
            return optax.softmax_cross_entropy_with_integer_labels(apply(network, images), labels).mean()

        updates, state = optimizer.update(eqx.filter_grad(loss)(network), state)
        return eqx.apply_updates(network, updates), state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(0, len(train.labels), 64)
        network, state = step(network, state, train.images[batch], train.labels[batch])

    print(binwrn_jax.export(apply, network, path, (8, 8, 1), images=test.images))
    model = binwrn_jax.open_model(path)
    error = 100 * float((model(test.images).argmax(1) != test.labels).mean())
    print(f"test error of {path}: {error:.2f} %")
    return error


if __name__ == "__main__":
    main(*sys.argv[1:2])
