"""Rate of the training step, its parts, and the same step in PyTorch beside it, in one run.

    python benchmarks/train_step.py --networks 20-1 20-4 --peers torch_eager --engine-python PYTHON

The step is that of the config files: of 18-2.5 all batch norm is learned, and its images come as batches. For
each combination of network, weights, dtype and batch: milliseconds per step with quartiles, images/s,
TFLOP/s (three passes of the convolutions, two operations a multiply-add), the share of the device's published
peak, or on a CPU of the SGEMM rate measured between the steps, seconds to trace and to compile, peak memory.

With --parts the step without one of its parts takes turns with the whole one; what it saves is the part's
cost: augmentation, binarisation (32-bit weights), batch norm (``max(-1, x)`` in its place), the weight update
(gradients as the result), dispatch by the host (eight steps in one program).

With --peers the step in PyTorch (peers/torch_step.py, in a process and interpreter of its own) takes turns,
after it was shown to give the same loss and gradients on the same weights and batch. All engines get the
same cores (--threads) and one sample each per round; ratios are of the same round, so that a noisy machine
disturbs all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Worker, cores, machine, markdown, process_mb, serve, spread, thread_environment, timed

PARTS = ("augmentation", "binarisation", "batch_norm", "update", "dispatch")
PEERS = {"torch_eager": False, "torch_compile": True}
STEPS_PER_DISPATCH = 8
RESIDENT_BATCHES = 8  # images on the device, in batches
SGEMM = 2048
CHECKED = 32  # images of the batch on which a peer must give the same
# Relative: of the loss; of each gradient's norm; the same where the peer computes in float64. Rounding moves
# a few activations across the corner of their ReLU, each then has all or none of its gradient: float32 on
# both sides differs by up to a few percent although each is right. bfloat16 keeps 8 bits: over 20 layers of
# few images 0.7 was met, with XLA's convolutions as with oneDNN's; gradients of two networks have 1.4.
TOLERANCE = {"float32": (1e-5, 5e-2, 2e-2), "bfloat16": (3e-2, 1.0, 1.0)}


# --- our step, in a process of its own ----------------------------------------------------------------------


class Ours:
    """The compiled programs of one setting: the step as the loop compiles it, and it without its parts."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import jax

        from binwrn_jax.cli.allocator import retain_freed_memory
        from binwrn_jax.parallel import sharding

        retain_freed_memory()  # as train.py does
        self.setting, self.jax = setting, jax
        self.config = network_config(setting)
        self.mesh = sharding.make_mesh(1)
        self.whole = sharding.replicated(self.mesh)
        rng = np.random.default_rng(0)
        count = setting["images"]
        data = {
            "images": rng.integers(0, 256, (count, *setting["image_shape"]), np.uint8),
            "labels": rng.integers(0, setting["classes"], count).astype(np.int32),
        }
        indices = [
            rng.integers(0, count, setting["batch"]).astype(np.int32) for _ in range(STEPS_PER_DISPATCH)
        ]
        if setting["streamed"]:  # batches from the host, here already on the device
            shared: dict[str, Any] = {}
            each = [{name: x[i] for name, x in data.items()} for i in indices]
        else:  # indices into a data set on the device
            shared = sharding.put(data, self.whole)
            each = [{"indices": i} for i in indices]
        self.batches = [
            {**shared, **sharding.put(e, sharding.inputs(self.mesh, setting["streamed"]))} for e in each
        ]
        stacked = self.jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        self.stacked = shared, sharding.put(stacked, self.whole)
        few = {name: x[: min(CHECKED, setting["batch"])] for name, x in data.items()}
        self.checked = sharding.put(few, sharding.split(self.mesh))
        self.programs = {part: self._compile(part) for part in ("whole", *setting["parts"])}

    def _compile(self, part: str) -> dict[str, Any]:
        """The step without a part, its state, and what compiling took."""
        import dataclasses

        from binwrn_jax.data.catalog import lookup
        from binwrn_jax.parallel import sharding
        from binwrn_jax.training import config as configs
        from binwrn_jax.training.resolve import resolve
        from binwrn_jax.training.state import init_state
        from binwrn_jax.training.step import jit_train_step
        from binwrn_jax.training.variants import apply_variants

        config = configs.ConfigDict(self.config.to_dict())
        if part in ("augmentation", "gradients"):
            config.augmentation = "none"
        if part == "binarisation":
            config.model.weights = "32bit"
        if part == "batch_norm":
            apply_variants(config, "nobn")
        streamed = part == "gradients" or self.setting["streamed"]
        facts = dataclasses.replace(
            lookup(config.data.name),
            num_classes=self.setting["classes"],
            streamed=streamed,
            image_shape=self.setting["image_shape"],
        )
        resolved = resolve(config, facts, 400 * config.batch_size)
        if part in ("update", "gradients"):
            resolved = dataclasses.replace(resolved, optimizer=gradients_as_state())
        model, optimizer = resolved.network, resolved.optimizer
        step = jit_train_step(resolved, self.mesh)
        if part == "dispatch":
            step = self.jax.jit(several(step), donate_argnums=0)
        state = init_state(model, optimizer, tuple(self.setting["image_shape"]), config.seed)
        state = sharding.put(state, self.whole)
        inputs = {"dispatch": self.stacked, "gradients": self.checked}.get(part, self.batches[0])
        begin = time.perf_counter()
        traced = step.lower(state, inputs)
        lowered = time.perf_counter()
        program = traced.compile()
        compiled = time.perf_counter()
        memory = program.memory_analysis()
        return {
            "run": program,
            "state": state,
            "trace_s": lowered - begin,
            "compile_s": compiled - lowered,
            "program_mb": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
        }

    def ready(self) -> dict[str, Any]:
        """What there is to know before the first step."""
        jax = self.jax
        keys = ("trace_s", "compile_s", "program_mb")
        return {
            "version": f"jax {jax.__version__}",
            "device": jax.devices()[0].device_kind,
            "programs": {name: {key: p[key] for key in keys} for name, p in self.programs.items()},
        }

    def time(self, steps: int, part: str = "whole") -> dict[str, float]:
        """Seconds per step of one program, of so many steps in a row."""
        program = self.programs[part]
        calls = math.ceil(steps / STEPS_PER_DISPATCH) if part == "dispatch" else steps

        def run(_: int) -> None:
            state = program["state"]
            for call in range(calls):
                inputs = self.stacked if part == "dispatch" else self.batches[call % len(self.batches)]
                state, metrics = program["run"](state, inputs)
            self.jax.block_until_ready((state, metrics))
            program["state"] = state

        return timed(run, calls * STEPS_PER_DISPATCH if part == "dispatch" else steps)

    def check(self, path: str) -> dict[str, float]:
        """Writes weights, batch, loss and gradients of the step, without augmentation, to an NPZ file."""
        program = self._compile("gradients")
        arrays = {
            f"params/{layer}/{name}": x
            for layer, p in program["state"].params.items()
            for name, x in p.items()
        }
        arrays = {name: np.array(x) for name, x in arrays.items()}
        arrays |= {name: np.asarray(x) for name, x in self.checked.items()}
        state, metrics = program["run"](program["state"], self.checked)
        for layer, p in state.opt_state.items():
            arrays |= {f"grads/{layer}/{name}": np.asarray(x) for name, x in p.items()}
        np.savez(path, loss=np.asarray(metrics["loss"]), **arrays)
        return {"loss": float(metrics["loss"])}

    def memory(self) -> dict[str, float]:
        """Peak MiB of this process, and of the device where it counts them."""
        found = {"process_mb": process_mb()}
        statistics_ = self.jax.devices()[0].memory_stats()
        if statistics_:
            found["device_mb"] = statistics_["peak_bytes_in_use"] / 2**20
        return found


def gradients_as_state() -> Any:
    """An optimiser that updates nothing and keeps the gradients, so that XLA cannot leave them out."""
    import jax
    import jax.numpy as jnp
    import optax

    def zeros(tree: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, tree)

    return optax.GradientTransformation(zeros, lambda grads, state, params=None: (zeros(grads), grads))


def several(step: Any) -> Any:
    """As many steps in one program as there are batches: inputs are what they share, and the rest stacked."""
    import jax

    def steps(state: Any, inputs: tuple[Any, Any]) -> Any:
        shared, stacked = inputs
        return jax.lax.scan(lambda state, batch: step(state, {**shared, **batch}), state, stacked)

    return steps


def network_config(setting: dict[str, Any]) -> Any:
    """What is trained: for ImageNet by configs/imagenet.py, without ghost groups; else by the paper's text.

    The groups are left out because the peer has none: PyTorch's batch norm knows only the whole batch.
    """
    from binwrn_jax.training import config as configs
    from binwrn_jax.training.variants import apply_variants

    if setting["streamed"]:
        sys.path.insert(0, str(Path(__file__).parent.parent / "configs"))
        config = __import__("imagenet").get_config(setting["network"])
        config.model.ghost_size = 0
    else:
        config = configs.base_config()
        apply_variants(config, setting["network"])
    config.model.weights, config.model.dtype = setting["weights"], setting["dtype"]
    config.batch_size = setting["batch"]
    return config


class Sgemm:
    """The rate of a large float32 matrix product in NumPy, on the same cores: what a CPU can do."""

    def __init__(self) -> None:
        self._a = np.random.default_rng(0).normal(size=(SGEMM, SGEMM)).astype(np.float32)
        self._out = np.empty_like(self._a)

    def time(self, steps: int) -> dict[str, float]:
        def run(steps: int) -> None:
            for _ in range(steps):
                np.matmul(self._a, self._a, out=self._out)

        return timed(run, steps)


def worker() -> None:
    """Reads the setting, then requests."""
    setting = json.loads(sys.stdin.readline())
    if setting["engine"] == "sgemm":
        engine: Any = Sgemm()
        print(json.dumps({"version": f"numpy {np.__version__}"}), flush=True)
    else:
        engine = Ours(setting)
        print(json.dumps(engine.ready()), flush=True)
    serve(engine)


# --- the parent ---------------------------------------------------------------------------------------------


def start(engine: str, setting: dict[str, Any], arguments: argparse.Namespace) -> Worker:
    """The worker of an engine; all get the same cores."""
    if engine in PEERS:
        script = Path(__file__).parent / "peers" / "torch_step.py"
        command = [arguments.engine_python, str(script)]
        setting = {**setting, "compile": PEERS[engine]}
    else:
        command = [sys.executable, __file__, "--worker"]
    environment = thread_environment(setting["threads"])
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two engines share a GPU
    return Worker(command, {**setting, "engine": engine}, environment)


def measure(setting: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """All engines and parts of one setting, round by round."""
    from binwrn_jax.graph.cost import training_flops
    from binwrn_jax.parallel.hardware import peak

    workers: dict[str, Worker] = {"ours": start("ours", setting, arguments)}
    ready = workers["ours"].ready
    on_cpu = ready["device"] == "cpu"
    setting = {**setting, "cuda": not on_cpu}
    left_out, checks = {}, {}
    try:
        if on_cpu:
            workers["sgemm"] = start("sgemm", setting, arguments)
        for engine in arguments.peers:
            try:
                workers[engine] = start(engine, setting, arguments)
            except RuntimeError as error:
                left_out[engine] = str(error)
                print(f"{engine}: left out: {error}")
        if arguments.peers:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "given.npz")
                workers["ours"].ask(do="check", path=path)
                for engine in set(workers) & set(PEERS):
                    checks[engine] = check = workers[engine].ask(do="check", path=path)
                    loss, gradient, exact = TOLERANCE[setting["dtype"]]
                    if abs(check["loss"] - check["loss_ours"]) > loss * abs(check["loss_ours"]):
                        raise SystemExit(f"{engine} computes another loss: {check}")
                    if not (check["gradient_error"] < gradient and check["exact_error"] < exact):
                        raise SystemExit(f"{engine} computes other gradients: {check}")

        # What takes turns: (worker, part or None).
        turns = [("ours", part) for part in ("whole", *setting["parts"])]
        turns += [(engine, None) for engine in workers if engine != "ours"]

        def sample(turn: tuple[str, str | None], steps: int) -> dict[str, float]:
            part = {"part": turn[1]} if turn[1] else {}
            return workers[turn[0]].ask(do="time", steps=steps, **part)

        # The first turn warms up and says how many steps make a sample long enough.
        steps = {turn: max(1, math.ceil(arguments.sample / sample(turn, 1)["wall"])) for turn in turns}
        samples: dict[tuple[str, str | None], list[dict[str, float]]] = {turn: [] for turn in turns}
        for _ in range(arguments.rounds):
            for turn in turns:
                samples[turn].append(sample(turn, steps[turn]))
        memory = {engine: worker.ask(do="memory") for engine, worker in workers.items() if engine != "sgemm"}
    finally:
        for worker in workers.values():
            worker.close()

    whole = [s["wall"] for s in samples["ours", "whole"]]
    flops = setting["batch"] * training_flops(
        setting["depth"], setting["width"], setting["classes"], tuple(setting["image_shape"])
    )
    published = peak(ready["device"])
    if on_cpu:
        top: float | None = 2 * SGEMM**3 / statistics.median(s["wall"] for s in samples["sgemm", None])
    else:
        top = published.flops(setting["dtype"]) if published else None

    def row(turn: tuple[str, str | None]) -> dict[str, Any]:
        wall = [s["wall"] for s in samples[turn]]
        middle = statistics.median(wall)
        return {
            "ms": [1e3 * s for s in spread(wall)],
            "cpu_ms": 1e3 * statistics.median(s["cpu"] for s in samples[turn]),
            "page_faults": statistics.median(s.get("faults", math.nan) for s in samples[turn]),
            "images_per_s": setting["batch"] / middle,
            "tflops": flops / middle / 1e12,
            "share_of_peak": flops / middle / top if top else None,
            "times_ours": spread([w / o for w, o in zip(wall, whole, strict=True)]),
        }

    engines = {"ours": {**row(("ours", "whole")), **ready["programs"]["whole"], **memory["ours"]}}
    for engine in workers:
        if engine in PEERS:
            engines[engine] = {**row((engine, None)), **workers[engine].ready, **memory[engine]}
    parts = {part: row(("ours", part)) for part in setting["parts"]}
    for part, values in parts.items():
        pairs = zip(whole, (s["wall"] for s in samples["ours", part]), strict=True)
        values["share_of_step"] = spread([1 - without / w for w, without in pairs])
    return {
        **setting,
        "device": ready["device"],
        "version": ready["version"],
        "peak_tflops": top / 1e12 if top else None,
        "peak_is": "SGEMM measured" if on_cpu else "published",
        "engines": engines,
        "parts": parts,
        "checks": checks,
        "left_out": left_out,
        "steps_per_sample": {" ".join(filter(None, turn)): n for turn, n in steps.items()},
        "load": os.getloadavg()[0],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Engines of all settings."""
    rows = []
    for r in results:
        for engine, e in r["engines"].items():
            low, middle, high = e["ms"]
            share = f"{100 * e['share_of_peak']:.0f} %" if e["share_of_peak"] else "?"
            ratio = "" if engine == "ours" else "{1:.2f} ({0:.2f}..{2:.2f})".format(*e["times_ours"])
            compiling = e["trace_s"] + e["compile_s"] if engine == "ours" else e["first_step_s"]
            rows.append(
                [
                    f"{r['network']} {r['weights']} {r['dtype']}, batch {r['batch']}, {engine}",
                    f"{middle:.1f} ({low:.1f}..{high:.1f})",
                    f"{e['images_per_s']:.0f}",
                    f"{e['tflops']:.3f}",
                    share,
                    ratio,
                    f"{compiling:.1f}",
                    f"{e.get('device_mb', e['process_mb']):.0f}",
                ]
            )
    header = (
        "step",
        "ms (quartiles)",
        "images/s",
        "TFLOP/s",
        "of peak",
        "time / ours",
        "compile s",
        "peak MB",
    )
    return markdown(header, rows)


def parts_table(results: list[dict[str, Any]]) -> str:
    """Share of the step that goes away with each part."""
    rows = []
    for r in results:
        cells = []
        for part in PARTS:
            if part not in r["parts"]:
                cells.append("")
                continue
            low, middle, high = (100 * s for s in r["parts"][part]["share_of_step"])
            ms = r["parts"][part]["ms"][1]
            cells.append(f"{middle:.1f} % ({low:.1f}..{high:.1f}), {ms:.2f} ms left")
        rows.append([f"{r['network']} {r['weights']} {r['dtype']}, batch {r['batch']}", *cells])
    return markdown(("step", *(part.replace("_", " ") for part in PARTS)), rows)


def main() -> None:
    if sys.argv[1:] == ["--worker"]:
        worker()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["20-1"], help="such as 20-4; 18-2.5 is ImageNet's")
    parser.add_argument("--dataset", default="cifar10", help="whose image size and classes to take")
    parser.add_argument("--weights", nargs="+", default=["1bit"], choices=("1bit", "32bit"))
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--batches", nargs="+", type=int, default=[125])
    parser.add_argument("--parts", nargs="*", default=[], choices=(*PARTS, "all"), metavar="PART")
    parser.add_argument("--peers", nargs="*", default=[], choices=tuple(PEERS))
    parser.add_argument("--engine-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sample", type=float, default=1.0, help="least seconds of a sample")
    parser.add_argument("--threads", type=int, default=len(cores()), help="cores for each engine")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    from binwrn_jax.data.catalog import lookup

    os.sched_setaffinity(0, cores()[: arguments.threads])  # of the workers too

    report: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv), "results": []}
    settings = itertools.product(arguments.networks, arguments.weights, arguments.dtypes, arguments.batches)
    for network, weights, dtype, batch in settings:
        depth, width = network.split("-")
        data = lookup("imagenet2012" if depth in ("18", "34") else arguments.dataset)
        setting = {
            "network": network,
            "depth": int(depth),
            "width": float(width),
            "weights": weights,
            "dtype": dtype,
            "batch": batch,
            "image_shape": list(data.image_shape),
            "classes": data.num_classes,
            "streamed": data.streamed,
            "images": RESIDENT_BATCHES * batch,
            "threads": len(cores()),
            "parts": list(PARTS) if "all" in arguments.parts else arguments.parts,
        }
        config = network_config(setting)
        setting["affine"], setting["weight_decay"] = config.model.affine, config.optimizer.weight_decay
        report["results"].append(measure(setting, arguments))
        print(table(report["results"][-1:]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{json.dumps(report['machine'])}\n\n{table(report['results'])}")
    if arguments.parts:
        print(f"\nShare of the step that goes away with the part:\n\n{parts_table(report['results'])}")
    for r in report["results"]:
        for engine, check in r["checks"].items():
            print(
                f"{r['network']} {r['weights']} {r['dtype']}: {engine} loss {check['loss']:.6f}, "
                f"ours {check['loss_ours']:.6f}; gradients differ by {check['gradient_error']:.1e} at most, "
                f"from its network in float64 by {check['exact_error']:.1e}"
            )


if __name__ == "__main__":
    main()
