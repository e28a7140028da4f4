"""Packed files with random integer networks, for the tests of all readers."""

import dataclasses

import numpy as np
from version2_networks import random_model

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.packed import PackedModel, serialise
from binwrn_jax.deploy.quantize import quantize

FEATURES = (
    "clip",
    "concat",
    "dilation",
    "elementwise",
    "float_kernels",
    "global_pool",
    "groups",
    "pad",
    "product",
    "resize",
)


def random_integer_model(seed, features=None):
    """A random network of float32 with these features, calibrated on random images; some values signed."""
    rng = np.random.default_rng([seed, 1])
    packed = random_model(seed, FEATURES if features is None else features)
    images = rng.integers(0, 256, (8, *packed.golden_image.shape), np.uint8)
    return with_signed_values(quantize(packed, images, ("mse", "percentile")[seed % 2]), rng)


def with_signed_values(packed, rng):
    """The same network with some values of type ``i8`` instead of ``u8``, with zero points 128 lower."""
    operations, integers = [], dict(packed.integers)
    together = {name for op in packed.operations if op["op"] == "concat" for name in op["in"]}
    for operation in packed.operations:
        if operation.get("type") == "u8" and operation["out"] not in together and rng.random() < 0.5:
            zero = operation.get("zero", 0) - 128
            operation = {**operation, "type": "i8", "zero": zero}
            if zero == 0:
                del operation["zero"]
            if operation["op"] == "table":
                name = operation["tensor"]
                integers[name] = (integers[name].astype(np.int16) - 128).astype(np.int8)
        operations.append(operation)
    metadata = {**packed.metadata, "operations": operations}
    packed = dataclasses.replace(packed, metadata=metadata, integers=integers)
    logits = numpy_reader.Model(metadata, packed.tensors).raw_logits(packed.golden_image[None])[0]
    return dataclasses.replace(packed, golden_logits=logits)


def random_integer_file(seed, features=None):
    """The file of `random_integer_model`, and some images for it, uint8 ``[3, H, W, C]``."""
    packed: PackedModel = random_integer_model(seed, features)
    images = np.random.default_rng(seed).integers(0, 256, (3, *packed.golden_image.shape), np.uint8)
    return serialise(packed), images
