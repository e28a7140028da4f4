"""Functions that give networks, as ``--config.model.type=own_networks:create`` names them."""

import flax.linen as nn
import jax.numpy as jnp

from binwrn_jax import BinaryConv, BinaryDense


class Network(nn.Module):
    """Nested modules, batch norms of Flax, dropout: nothing of the paper's network."""

    num_classes: int
    width: int
    rule: str
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = images.astype(self.dtype) / 255
        for features in (self.width, 2 * self.width):
            x = Block(features, self.rule, self.dtype)(x, train)
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(len(x), -1))
        return BinaryDense(self.num_classes, rule=self.rule, dtype=self.dtype)(x).astype(jnp.float32)


class Block(nn.Module):
    features: int
    rule: str
    dtype: object

    @nn.compact
    def __call__(self, x, train):
        y = BinaryConv(self.features, 3, strides=2, rule=self.rule, dtype=self.dtype)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(y))


def create(config):
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.dtype]
    return Network(config.num_classes, int(4 * config.width), config.weights, dtype)


class WithoutTrain(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.mean((1, 2)))


class OtherLogits(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(7)(images.mean((1, 2)))


class WithCache(OtherLogits):
    @nn.compact
    def __call__(self, images, train=False):
        self.variable("cache", "count", jnp.zeros, ())
        return nn.Dense(10)(images.mean((1, 2)))


class Empty(nn.Module):
    def __call__(self, images, train=False):
        return jnp.zeros((len(images), 10)) + images.mean()


def without_train(config):
    return WithoutTrain()


def other_logits(config):
    return OtherLogits()


def with_cache(config):
    return WithCache()


def empty(config):
    return Empty()


def no_network(config):
    return lambda images: images


def failing(config):
    raise ValueError("two\nlines")
