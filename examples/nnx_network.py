"""A Flax NNX network with layers of one bit per weight, trained and exported: under a minute on a CPU.

python examples/nnx_network.py digits.onnx
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import binwrn_jax
from binwrn_jax.nn.nnx_layers import BinaryConv, BinaryDense


class Network(nnx.Module):
    """Two convolutions and a dense layer, batch norm between them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = BinaryConv(1, 32, 3, use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.second = BinaryConv(32, 64, 3, strides=2, use_bias=False, rngs=rngs)
        self.second_norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dense = BinaryDense(64 * 16, 10, rngs=rngs)

    def __call__(self, images):
        """Logits of uint8 images ``[N, H, W, C]``."""
        x = nnx.relu(self.first_norm(self.first(images.astype(jnp.float32) / 255)))
        x = nnx.relu(self.second_norm(self.second(x)))
        return self.dense(x.reshape(len(x), -1))


def main(path: str, steps: int = 300) -> float:
    """Trains, exports and opens the file again; returns the test error in percent."""
    train, test = binwrn_jax.load("digits", "train"), binwrn_jax.load("digits", "test")
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(3e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels):
        def loss(network):
            return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    rng = np.random.default_rng(0)
    network.train()
    for _ in range(steps):
        batch = rng.integers(0, len(train.labels), 64)
        step(network, optimizer, train.images[batch], train.labels[batch])

    network.eval()
    graph, state = nnx.split(network)

    def apply(state, images):
        return nnx.merge(graph, state)(images)

    print(binwrn_jax.export(apply, state, path, (8, 8, 1), images=test.images))
    model = binwrn_jax.open_model(path)
    error = 100 * float((model(test.images).argmax(1) != test.labels).mean())
    print(f"test error of {path}: {error:.2f} %")
    return error


if __name__ == "__main__":
    main(*sys.argv[1:2])
