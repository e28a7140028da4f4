"""Device memory of the weights of a packed model, with and without keep_packed, and what it costs.

    python benchmarks/packed_memory.py MODEL.safetensors [--batches 1 100] [--repeats 5]

Prints a JSON line for each setting: bytes of the arrays that stay on the device between calls, bytes that
the compiled program needs besides them while it runs (by XLA's own analysis), and seconds per call (the
median of the repeats, after a first call that compiles).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from binwrn_jax import load_packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for keep_packed in (False, True):
        model = load_packed(arguments.model, keep_packed)
        weights = sum(x.nbytes for name, x in model.weights.items() if name in model.packed.bits)
        for batch in arguments.batches:
            shape = (batch, *model.description["image_shape"])
            images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
            program = jax.jit(model.apply).lower(model.weights, images).compile()
            program(model.weights, images).block_until_ready()
            seconds = []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                program(model.weights, images).block_until_ready()
                seconds.append(time.perf_counter() - start)
            result = {
                "keep_packed": keep_packed,
                "batch": batch,
                "weight_bytes": weights,
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                "seconds": statistics.median(seconds),
                "slowest": max(seconds),
                "device": jax.devices()[0].device_kind,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
