"""A Flax Linen network in a loop of its own, one bit per weight, to a file: under a minute on a CPU.

python examples/linen_network.py digits.safetensors
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import binwrn_jax
from binwrn_jax import binarize, by_path

KERNELS = by_path(lambda path: path.endswith("kernel"))


class Network(nn.Module):
    """A small residual network, written without this package."""

    @nn.compact
    def __call__(self, images, train=False):
        """Logits of uint8 images ``[N, H, W, C]``."""

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(norm(nn.Conv(32, (3, 3))(images.astype(jnp.float32) / 255)))
        for features, stride in ((32, 1), (64, 2)):
            y = nn.relu(norm(nn.Conv(features, (3, 3), (stride, stride))(x)))
            y = norm(nn.Conv(features, (3, 3))(y))
            skip = x if stride == 1 else nn.Conv(features, (1, 1), (stride, stride))(x)
            x = nn.relu(y + skip)
        return nn.Dense(10)(x.mean((1, 2)))


network = Network()


def logits_of(variables, images, **options):
    """The network with the weights that it is used with: -s and +s."""
    used = {**variables, "params": binarize(variables["params"], KERNELS)}
    return network.apply(used, images, **options)


def main(path: str, steps: int = 300) -> float:
    """Trains, exports and opens the file again; returns the test error in percent."""
    train, test = binwrn_jax.load("digits", "train"), binwrn_jax.load("digits", "test")
    variables = network.init(jax.random.key(0), train.images[:1])
    params, stats = variables["params"], variables["batch_stats"]
    # Weight decay is for the latent kernels, by the same mask.
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4, mask=KERNELS),
        optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9),
    )
    state = optimizer.init(params)

    @jax.jit
    def step(params, stats, state, images, labels):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, changes = logits_of(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changes["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.integers(0, len(train.labels), 64)
        params, stats, state = step(params, stats, state, train.images[batch], train.labels[batch])

    variables = {"params": params, "batch_stats": stats}
    print(binwrn_jax.export(logits_of, variables, path, (8, 8, 1), images=test.images))
    model = binwrn_jax.open_model(path)
    error = 100 * float((model(test.images).argmax(1) != test.labels).mean())
    print(f"test error of {path}: {error:.2f} %")
    return error


if __name__ == "__main__":
    main(*sys.argv[1:2])
