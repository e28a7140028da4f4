"""Device memory of the weights of a packed model, as bits and as floats, and what unpacking costs.

    python benchmarks/packed_memory.py MODEL.safetensors [--batches 1 100] [--repeats 5]

`load_packed` keeps bits and unpacks each layer in the program; here the same program runs with kernels that
were unpacked before, too. Prints a JSON line for each: bytes of the arrays that stay on the device between
calls, bytes that the compiled program needs besides them while it runs (by XLA's own analysis), and seconds
per call (median and fastest of the repeats).
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
    model = load_packed(arguments.model)
    names = list(model.packed.bits)
    floats = {name: jnp.asarray(model.packed.signs(name)) for name in names}
    weights = {"floats": {**model.weights, **floats}, "bits": model.weights}
    for batch in arguments.batches:
        shape = (batch, *model.description["image_shape"])
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        programs = {kind: jax.jit(model.apply).lower(w, images).compile() for kind, w in weights.items()}
        # Alternating, so that what else the machine does meets both alike; the first turn warms up.
        seconds: dict[str, list[float]] = {kind: [] for kind in weights}
        for _ in range(arguments.repeats + 1):
            for kind, program in programs.items():
                start = time.perf_counter()
                program(weights[kind], images).block_until_ready()
                seconds[kind].append(time.perf_counter() - start)
        for kind, program in programs.items():
            result = {
                "kernels": kind,
                "batch": batch,
                "weight_bytes": sum(weights[kind][name].nbytes for name in names),
                "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                "seconds": statistics.median(seconds[kind][1:]),
                "fastest": min(seconds[kind][1:]),
                "device": jax.devices()[0].device_kind,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
