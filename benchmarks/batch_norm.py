"""Batch norm and ReLU with their gradient: as the networks compute them, and in two ways that they do not.

    python benchmarks/batch_norm.py --shapes 125,32,32,16 125,32,32,64

* ours: `binwrn_jax.nn.layers.BatchNorm`, on one CPU with the sums by `binwrn_jax.nn.cpu`;
* xla: the same gradient, written out, and the sums by XLA;
* derived: moments and normalisation in plain JAX, which derives the gradient.

They take turns in one process; milliseconds of wall and of processor time, and page faults, medians. All must
have given the same gradient before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import machine, markdown, spread, timed

from binwrn_jax.cli.allocator import retain_freed_memory
from binwrn_jax.nn import layers, operations

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the gradient's norm


def derived(x: jax.Array) -> jax.Array:
    """The same of ``[N, H, W, C]`` in plain JAX, float32."""
    x = x.astype(jnp.float32)
    mean = x.mean((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean((0, 1, 2), keepdims=True) + layers.BN_EPSILON)


def program(normalise: Callable[[jax.Array], jax.Array], x: jax.Array, g: jax.Array) -> Any:
    """Compiles ``(x, g) -> (y, dx)``."""

    def both(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: nn.relu(normalise(x).astype(x.dtype)), x)
        return y, pull(g)[0]

    return jax.jit(both).lower(x, g).compile()


def written_out(x: jax.Array) -> jax.Array:
    """The networks' layer, without what it learns."""
    layer = layers.BatchNorm(dtype=x.dtype)
    moments = {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])}
    return layer.apply({"batch_stats": moments}, x, True, mutable=["batch_stats"])[0]


def measure(shape: tuple[int, ...], dtype: str, rounds: int, sample: float) -> dict[str, Any]:
    """All three, round by round."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(2))
    programs = {"ours": program(written_out, x, g)}
    with operations.portable():
        programs["xla"] = program(written_out, x, g)
    programs["derived"] = program(derived, x, g)
    gradients = {name: np.asarray(run(x, g)[1], np.float32) for name, run in programs.items()}
    for name, gradient in gradients.items():
        error = np.linalg.norm(gradient - gradients["derived"]) / np.linalg.norm(gradients["derived"])
        if not error < TOLERANCE[dtype]:
            raise SystemExit(f"{name} computes another gradient: off by {error:.1e}")

    def run(name: str, steps: int) -> dict[str, float]:
        return timed(lambda n: [jax.block_until_ready(programs[name](x, g)) for _ in range(n)], steps)

    steps = {name: max(1, round(sample / run(name, 2)["wall"])) for name in programs}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name in programs:
            samples[name].append(run(name, steps[name]))
    return {
        "shape": list(shape),
        "dtype": dtype,
        "ms": {name: [1e3 * s for s in spread([v["wall"] for v in s_])] for name, s_ in samples.items()},
        "cpu_ms": {name: 1e3 * statistics.median(v["cpu"] for v in s_) for name, s_ in samples.items()},
        "page_faults": {name: statistics.median(v["faults"] for v in s_) for name, s_ in samples.items()},
        "load": os.getloadavg()[0],
    }


def main() -> None:
    retain_freed_memory()  # as train.py does
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["125,32,32,16", "125,32,32,64"], metavar="N,H,W,C")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=tuple(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sample", type=float, default=0.3, help="least seconds of a sample")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    results = [
        measure(tuple(map(int, shape.split(","))), dtype, arguments.rounds, arguments.sample)
        for dtype in arguments.dtypes
        for shape in arguments.shapes
    ]
    report = {"machine": machine(), "command": " ".join(sys.argv), "version": f"jax {jax.__version__}"}
    rows = [
        [
            f"{'x'.join(map(str, r['shape']))} {r['dtype']}",
            *(f"{r['ms'][name][1]:.2f}, {r['cpu_ms'][name]:.2f}" for name in r["ms"]),
        ]
        for r in results
    ]
    names = list(results[0]["ms"])
    print(json.dumps(report["machine"]) + "\n")
    print(markdown(("ms of wall, of processor time", *names), rows))
    if arguments.output:
        arguments.output.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
