"""Device memory of the weights of a packed model, with and without keep_packed, and what it costs.

    python benchmarks/packed_memory.py MODEL.safetensors [--batches 1 100] [--repeats 5]

Prints a JSON line for each setting: bytes of the arrays that stay on the device between calls, bytes that
the compiled program needs besides them while it runs (by XLA's own analysis), and seconds per call (median
and fastest of the repeats).
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
    models = {keep: load_packed(arguments.model, keep_packed=keep) for keep in (False, True)}
    for batch in arguments.batches:
        shape = (batch, *models[True].description["image_shape"])
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        programs = {
            keep: jax.jit(model.apply).lower(model.weights, images).compile()
            for keep, model in models.items()
        }
        # Alternating, so that what else the machine does meets both alike; the first turn warms up.
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.repeats + 1):
            for keep, program in programs.items():
                start = time.perf_counter()
                program(models[keep].weights, images).block_until_ready()
                seconds[keep].append(time.perf_counter() - start)
        for keep, program in programs.items():
            weights = models[keep].weights
            result = {
                "keep_packed": keep,
                "batch": batch,
                "weight_bytes": sum(weights[name].nbytes for name in models[keep].packed.bits),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                "seconds": statistics.median(seconds[keep][1:]),
                "fastest": min(seconds[keep][1:]),
                "device": jax.devices()[0].device_kind,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
