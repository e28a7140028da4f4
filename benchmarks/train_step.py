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
from pathlib import Path
from typing import Any

from common import Worker, cores, machine, markdown, spread, thread_environment
from peers.steps import SGEMM, network_config, worker

PARTS = ("augmentation", "binarisation", "batch_norm", "update", "dispatch")
PEERS = {"torch_eager": False, "torch_compile": True}
RESIDENT_BATCHES = 8  # images on the device, in batches
# Relative: of the loss; of each gradient's norm; the same where the peer computes in float64. Rounding moves
# a few activations across the corner of their ReLU, each then has all or none of its gradient: float32 on
# both sides differs by up to a few percent although each is right. bfloat16 keeps 8 bits: over 20 layers of
# few images 0.7 was met, with XLA's convolutions as with oneDNN's; gradients of two networks have 1.4.
TOLERANCE = {"float32": (1e-5, 5e-2, 2e-2), "bfloat16": (3e-2, 1.0, 1.0)}


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


Turn = tuple[str, str | None]  # what takes turns: an engine, and a part of our step
Samples = dict[Turn, list[dict[str, float]]]


def start_others(
    workers: dict[str, Worker], setting: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, str]:
    """Adds the SGEMM of a CPU and the peers that are installed to the workers; why others are left out."""
    if not setting["cuda"]:
        workers["sgemm"] = start("sgemm", setting, arguments)
    left_out = {}
    for engine in arguments.peers:
        try:
            workers[engine] = start(engine, setting, arguments)
        except RuntimeError as error:
            left_out[engine] = str(error)
            print(f"{engine}: left out: {error}")
    return left_out


def check_peers(workers: dict[str, Worker], dtype: str) -> dict[str, Any]:
    """The peers' loss and gradients against ours.

    Raises:
      SystemExit: they differ by more than rounding.
    """
    checks = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "given.npz")
        workers["ours"].ask(do="check", path=path)
        for engine in set(workers) & set(PEERS):
            checks[engine] = check = workers[engine].ask(do="check", path=path)
            loss, gradient, exact = TOLERANCE[dtype]
            if abs(check["loss"] - check["loss_ours"]) > loss * abs(check["loss_ours"]):
                raise SystemExit(f"{engine} computes another loss: {check}")
            if not (check["gradient_error"] < gradient and check["exact_error"] < exact):
                raise SystemExit(f"{engine} computes other gradients: {check}")
    return checks


def take_turns(
    workers: dict[str, Worker], parts: list[str], arguments: argparse.Namespace
) -> tuple[Samples, dict[Turn, int]]:
    """Samples of each turn, one a round, and how many steps each of them has."""
    turns: list[Turn] = [("ours", part) for part in ("whole", *parts)]
    turns += [(engine, None) for engine in workers if engine != "ours"]

    def sample(turn: Turn, steps: int) -> dict[str, float]:
        part = {"part": turn[1]} if turn[1] else {}
        return workers[turn[0]].ask(do="time", steps=steps, **part)

    # The first turn warms up and says how many steps make a sample long enough.
    steps = {turn: max(1, math.ceil(arguments.sample / sample(turn, 1)["wall"])) for turn in turns}
    samples: Samples = {turn: [] for turn in turns}
    for _ in range(arguments.rounds):
        for turn in turns:
            samples[turn].append(sample(turn, steps[turn]))
    return samples, steps


def rates(samples: Samples, setting: dict[str, Any], flops: float, top: float | None) -> dict[Turn, Any]:
    """Times and rates of each turn.

    Args:
      samples: of each turn.
      setting: with the images of a batch.
      flops: floating-point operations of a step.
      top: what the device can do in a second, where that is known.
    """
    whole = [s["wall"] for s in samples["ours", "whole"]]
    rows = {}
    for turn, values in samples.items():
        wall = [s["wall"] for s in values]
        middle = statistics.median(wall)
        rows[turn] = {
            "ms": [1e3 * s for s in spread(wall)],
            "cpu_ms": 1e3 * statistics.median(s["cpu"] for s in values),
            "page_faults": statistics.median(s.get("faults", math.nan) for s in values),
            "images_per_s": setting["batch"] / middle,
            "tflops": flops / middle / 1e12,
            "share_of_peak": flops / middle / top if top else None,
            "times_ours": spread([w / o for w, o in zip(wall, whole, strict=True)]),
        }
        if turn[0] == "ours" and turn[1] != "whole":
            rows[turn]["share_of_step"] = spread([1 - w / o for w, o in zip(wall, whole, strict=True)])
    return rows


def peak_flops(device: str, dtype: str, samples: Samples) -> float | None:
    """What the device can do in a second: as published, or on a CPU by the SGEMM that took turns."""
    from binwrn_jax.parallel.hardware import peak

    if device == "cpu":
        return 2 * SGEMM**3 / statistics.median(s["wall"] for s in samples["sgemm", None])
    published = peak(device)
    return published.flops(dtype) if published else None


def measure(setting: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """All engines and parts of one setting, round by round."""
    from binwrn_jax.graph.cost import training_flops
    from binwrn_jax.nn.wide_resnet import WideResNet

    workers = {"ours": start("ours", setting, arguments)}
    ready = workers["ours"].ready
    device = ready["device"]
    setting = {**setting, "cuda": device != "cpu"}
    try:
        left_out = start_others(workers, setting, arguments)
        checks = check_peers(workers, setting["dtype"]) if arguments.peers else {}
        samples, steps = take_turns(workers, setting["parts"], arguments)
        memory = {engine: worker.ask(do="memory") for engine, worker in workers.items() if engine != "sgemm"}
    finally:
        for worker in workers.values():
            worker.close()

    network = WideResNet(setting["depth"], setting["width"], setting["classes"])
    flops = setting["batch"] * training_flops(network, tuple(setting["image_shape"]))
    top = peak_flops(device, setting["dtype"], samples)
    rows = rates(samples, setting, flops, top)
    engines = {"ours": {**rows["ours", "whole"], **ready["programs"]["whole"], **memory["ours"]}}
    for engine in workers:
        if engine in PEERS:
            engines[engine] = {**rows[engine, None], **workers[engine].ready, **memory[engine]}
    return {
        **setting,
        "device": device,
        "version": ready["version"],
        "peak_tflops": top / 1e12 if top else None,
        "peak_is": "SGEMM measured" if device == "cpu" else "published",
        "engines": engines,
        "parts": {part: rows["ours", part] for part in setting["parts"]},
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
