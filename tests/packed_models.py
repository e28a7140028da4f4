"""The golden packed file, and the model that is in it."""

import dataclasses
from pathlib import Path

import numpy as np

from binwrn_jax.deploy import numpy_reader
from binwrn_jax.deploy.graph_file import pack_signs
from binwrn_jax.deploy.packed import PackedModel

GOLDEN = Path(__file__).parent / "golden" / "packed_v1.safetensors"


def golden_model() -> PackedModel:
    """Each operation once at least, with rows of 45 and 5 bits and padding that differs by side."""
    rng = np.random.default_rng(7)

    def affine(channels):
        return tuple(rng.integers(-4, 5, channels).astype(np.float32) / 4 for _ in range(2))

    operations = [
        {"op": "affine", "in": ["image"], "out": "a", "tensor": "affine0"},
        {"op": "conv", "in": ["a"], "out": "b", "tensor": "conv0", "window": [3, 5], "stride": [2, 1],
         "pads": [[0, 1], [2, 1]], "channels": [3, 5]},
        {"op": "affine", "in": ["b"], "out": "c", "tensor": "affine1", "min": -0.5},
        {"op": "max_pool", "in": ["c"], "out": "d", "window": [2, 3], "stride": [1, 2],
         "pads": [[1, 0], [0, 2]]},
        {"op": "average_pool", "in": ["c"], "out": "e", "window": [2, 3], "stride": [1, 2],
         "pads": [[1, 0], [0, 2]]},
        {"op": "add", "in": ["d", "e"], "out": "f"},
        {"op": "conv", "in": ["f"], "out": "g", "tensor": "conv1", "window": [1, 1], "stride": [1, 1],
         "pads": [[0, 0], [0, 0]], "channels": [5, 2]},
        {"op": "pad_channels", "in": ["g"], "out": "h", "channels": 3},
        {"op": "affine", "in": ["h"], "out": "i", "tensor": "affine2", "min": None},
        {"op": "global_average", "in": ["i"], "out": "logits"},
    ]  # fmt: skip
    bits = {
        "conv0": pack_signs(rng.choice([-1, 1], (3, 5, 3, 5))),
        "conv1": pack_signs(rng.choice([-1, 1], (1, 1, 5, 2))),
    }
    metadata = {
        "format": "binwrn-packed",
        "version": 1,
        "operations": operations,
        "input": {"shape": [6, 7, 3], "dtype": "uint8", "range": [0, 255], "resize": "bilinear"},
        "num_classes": 3,
        "class_names": ["zero", "one", "two"],
        "license": "CC0-1.0",
    }
    metadata["sha256"] = numpy_reader.checksum(metadata, bits)
    affines = {"affine0": affine(3), "affine1": affine(5), "affine2": affine(3)}
    image = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    packed = PackedModel(metadata, bits, affines, image, np.zeros(3, np.float32))
    logits = numpy_reader.Model(metadata, packed.tensors)(image[None])[0]
    return dataclasses.replace(packed, golden_logits=logits)
