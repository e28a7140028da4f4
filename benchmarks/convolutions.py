"""Rates of single convolutions, forward and both gradients: the custom call, XLA, and PyTorch beside them.

    python benchmarks/convolutions.py --dtypes float32 bfloat16 --engine-python PYTHON

The 3x3 convolutions of the networks, one by one, in GFLOP/s (two operations a multiply-add, the border
counted as if it were computed). The engines take turns in each round, each with the same cores; medians.
PyTorch runs in a process and interpreter of its own (peers/torch_convolution.py, channels-last), and only
where --engine-python names one. Before they are measured all must have given the same results for the same
numbers. Ours hold the dispatch of a program, 0.1 to 0.3 ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from common import Worker, cores, machine, markdown, serve, spread, thread_environment, timed

PASSES = ("forward", "input gradient", "weight gradient")
# Side of the image, channels in, channels out, stride: of 20-1, 20-4 and 20-10.
SHAPES = (
    "32,16,16,1",
    "32,16,32,2",
    "8,64,64,1",
    "32,64,64,1",
    "16,128,256,2",
    "8,256,256,1",
    "32,160,160,1",
    "8,640,640,1",
)
# Of the norm, and of the product with a random vector relative to it.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Ours:
    """The passes of one shape in JAX: by the custom calls, and by XLA."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import jax
        import jax.numpy as jnp
        from peers.arrays import arrays

        from binwrn_jax.cli.allocator import retain_freed_memory
        from binwrn_jax.nn import cpu, operations

        retain_freed_memory()  # as train.py does
        self._jax = jax
        x, kernel, g = (jnp.asarray(a, setting["dtype"]) for a in arrays(setting))
        strides, pads = (setting["stride"],) * 2, ((1, 1), (1, 1))

        def forward(x: Any, kernel: Any) -> Any:
            return operations.xla_convolution(x, kernel, strides, pads)

        functions: dict[str, dict[str, Any]] = {
            "xla": {
                "forward": lambda x, kernel, g: forward(x, kernel),
                "input gradient": lambda x, kernel, g: jax.vjp(lambda x: forward(x, kernel), x)[1](g)[0],
                "weight gradient": lambda x, kernel, g: jax.vjp(lambda k: forward(x, k), kernel)[1](g)[0],
            }
        }
        if cpu.available(jnp.dtype(setting["dtype"])):
            functions["ours"] = {
                "forward": lambda x, kernel, g: cpu.conv_forward(x, kernel, strides, pads),
                "input gradient": lambda x, kernel, g: cpu.conv_input_gradient(x, kernel, g, strides, pads),
                "weight gradient": lambda x, kernel, g: cpu.conv_weight_gradient(x, kernel, g, strides, pads),
            }
        self._arguments = x, kernel, g
        self._programs = {
            engine: {name: jax.jit(f).lower(*self._arguments).compile() for name, f in passes.items()}
            for engine, passes in functions.items()
        }

    def ready(self) -> dict[str, Any]:
        """What there is, by engine."""
        version = f"jax {self._jax.__version__}"
        return {"versions": dict.fromkeys(self._programs, version)}

    def marks(self, engine: str) -> dict[str, list[float]]:
        """See `peers.arrays.mark`, by pass."""
        import numpy as np
        from peers.arrays import mark

        return {
            name: mark(np.asarray(program(*self._arguments), np.float32))
            for name, program in self._programs[engine].items()
        }

    def time(self, engine: str, what: str, steps: int) -> dict[str, float]:
        """Seconds of one pass, over so many."""
        program = self._programs[engine][what]

        def run(steps: int) -> None:
            for _ in range(steps):
                result = program(*self._arguments)
                result.block_until_ready()

        return timed(run, steps)


def worker() -> None:
    """Reads the setting, then requests."""
    engine = Ours(json.loads(sys.stdin.readline()))
    print(json.dumps(engine.ready()), flush=True)
    serve(engine)


def measure(setting: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """All engines and passes of one shape and dtype, round by round."""
    environment = thread_environment(arguments.threads)
    workers = [Worker([sys.executable, __file__, "--worker"], setting, environment)]
    try:
        if arguments.engine_python:
            script = Path(__file__).parent / "peers" / "torch_convolution.py"
            workers.append(Worker([arguments.engine_python, str(script)], setting, environment))
        versions = {e: version for w in workers for e, version in w.ready["versions"].items()}
        owner = {e: w for w in workers for e in w.ready["versions"]}
        marks = {engine: w.ask(do="marks", engine=engine) for engine, w in owner.items()}
        for engine, what in itertools.product(marks, PASSES):
            (norm, along), (norm_xla, along_xla) = marks[engine][what], marks["xla"][what]
            error = max(abs(norm - norm_xla), abs(along - along_xla)) / norm_xla
            if not error < TOLERANCE[setting["dtype"]]:
                raise SystemExit(f"{engine} computes another {what} of {setting}: off by {error:.1e}")

        def sample(turn: tuple[str, str], steps: int) -> float:
            return owner[turn[0]].ask(do="time", engine=turn[0], what=turn[1], steps=steps)["wall"]

        turns = list(itertools.product(owner, PASSES))
        for turn in turns:
            sample(turn, 1)  # warm
        steps = {turn: max(1, math.ceil(arguments.sample / sample(turn, 1))) for turn in turns}
        seconds: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        for _ in range(arguments.rounds):
            for turn in turns:
                seconds[turn].append(sample(turn, steps[turn]))
    finally:
        for one in workers:
            one.close()
    out = math.ceil(setting["size"] / setting["stride"])
    flop = 2 * setting["batch"] * out**2 * 9 * setting["c_in"] * setting["c_out"]
    return {
        **setting,
        "versions": versions,
        "gflop": flop / 1e9,
        "ms": {e: {p: [1e3 * s for s in spread(seconds[e, p])] for p in PASSES} for e in owner},
        "gflops": {e: {p: flop / statistics.median(seconds[e, p]) / 1e9 for p in PASSES} for e in owner},
        "load": os.getloadavg()[0],
    }


def table(results: list[dict[str, Any]]) -> str:
    """GFLOP/s, a row for each shape and dtype, the passes side by side."""
    engines = [e for e in ("xla", "torch", "ours") if any(e in r["gflops"] for r in results)]
    rows = []
    for r in results:
        stride = f", stride {r['stride']}" if r["stride"] > 1 else ""
        rates = [r["gflops"].get(engine) for engine in engines]
        cells = [", ".join(f"{rate[p]:.0f}" for p in PASSES) if rate else "" for rate in rates]
        rows.append([f"{r['size']}x{r['size']}, {r['c_in']} to {r['c_out']}{stride}, {r['dtype']}", *cells])
    return markdown(("image, channels", *engines), rows)


def main() -> None:
    if sys.argv[1:] == ["--worker"]:
        worker()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="SIZE,IN,OUT,STRIDE")
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=tuple(TOLERANCE))
    parser.add_argument("--engine-python", help="interpreter that has torch and numpy")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sample", type=float, default=0.3, help="least seconds of a sample")
    parser.add_argument("--threads", type=int, default=len(cores()), help="cores for each engine")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, cores()[: arguments.threads])  # of the workers too

    report: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv), "results": []}
    for dtype, shape in itertools.product(arguments.dtypes, arguments.shapes):
        size, c_in, c_out, stride = map(int, shape.split(","))
        setting = {
            "size": size,
            "c_in": c_in,
            "c_out": c_out,
            "stride": stride,
            "batch": arguments.batch,
            "dtype": dtype,
            "threads": arguments.threads,
        }
        report["results"].append(measure(setting, arguments))
        print(table(report["results"][-1:]).splitlines()[-1], flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"\n{json.dumps(report['machine'])}\n\nGFLOP/s of {', '.join(PASSES)}:\n\n{table(report['results'])}"
    )


if __name__ == "__main__":
    main()
