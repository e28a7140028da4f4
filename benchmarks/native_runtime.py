"""The native runtime against onnxruntime, OpenVINO, ncnn and torch with float weights, in one run.

python benchmarks/native_runtime.py model.packed --output result.json

Each engine lives in a process of its own; they take turns, one inference each per round, so that a noisy
machine disturbs all alike: ratios are of the same round. A rest between turns keeps threads that spin after
their work out of the next turn. Engines that are not installed are left out and said to be; --engine-python
names an interpreter that has them (pip install numpy onnxruntime openvino ncnn torch). All compute in
float32, which their logits are checked for, with the multiply-adds after a convolution folded into its
weights. ncnn has no batches: it gets one image at a time. Seconds are medians with quartiles, processor
time beside wall time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import spread
from peers.engines import ENGINES, SGEMM, worker
from peers.float_files import float_layers, write_ncnn, write_onnx

REST = 0.25  # seconds before each turn: threads of OpenMP and OpenBLAS go on spinning after their work


def start(name: str, arguments: argparse.Namespace, folder: Path, threads: int) -> Any:
    """A worker and its first line, or None and the reason."""
    python = sys.executable if name == "native" else arguments.engine_python
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(limits, str(threads)), "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, str(arguments.model), "--worker", name, "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    line = process.stdout.readline()
    if not line:
        return None, process.stderr.read().strip().splitlines()[-1:]
    return process, json.loads(line)


def program_memory(packed: Path) -> dict[str, Any]:
    """Peak resident memory and load time of the C program alone, on the golden image."""
    from binwrn_jax.deploy import native

    with tempfile.TemporaryDirectory() as folder:
        build = ["make", "-s", "-C", str(native.FOLDER), f"BUILD={folder}", f"{folder}/binwrn-run"]
        subprocess.run(build, check=True)
        results = []
        for _ in range(15):
            command = [f"{folder}/binwrn-run", str(packed), "golden"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            numbers = re.search(r"loaded in ([\d.]+) ms(?s:.*)peak memory ([\d.]+) MB", said)
            results.append((float(numbers[1]), float(numbers[2])))
    load = [r[0] for r in results]
    return {"peak_mb": max(r[1] for r in results), "load_ms": spread(load), "load_ms_least": min(load)}


def multiply_adds(packed: Any) -> int:
    """Of the convolutions, for one image."""
    shapes, ops = packed.value_shapes, packed.operations
    return sum(
        math.prod(shapes[op["out"]]) * math.prod(packed.kernel_shape(op["tensor"])[:3])
        for op in ops
        if op["op"] == "conv"
    )


def machine() -> str:
    """Processor, their number and the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return f"{cpu}, {os.cpu_count()} processors, {platform.platform()}"


def write_files(
    model: Path, packed: Any, images: int, folder: Path, engines: Sequence[str]
) -> dict[str, int]:
    """So many images and the float network for the engines; sizes of the files."""
    layers = float_layers(packed)
    shapes = packed.value_shapes
    for layer in layers:
        if layer["op"] == "pad_channels":
            layer["added"] = shapes[layer["out"]][2] - shapes[layer["in"][0]][2]
    shape, classes = packed.metadata["input"]["shape"], packed.metadata["num_classes"]
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), np.uint8)
    pixels[0] = packed.golden_image
    np.save(folder / "images.npy", pixels)
    write_onnx(layers, shape, classes, folder / "float.onnx")
    sizes = {"packed": model.stat().st_size, "float_onnx": (folder / "float.onnx").stat().st_size}
    if "ncnn" in engines:
        write_ncnn(layers, shape, folder)
        sizes["ncnn"] = (folder / "net.bin").stat().st_size
    (folder / "layers.pickle").write_bytes(pickle.dumps(layers))
    return sizes


def start_all(
    arguments: argparse.Namespace, folder: Path, threads: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Workers of the engines that are installed, each with its first line, and errors of their logits."""
    processes, reference, errors = {}, None, {}
    for engine in arguments.engines:
        process, first = start(engine, arguments, folder, threads)
        if process is None:
            print(f"{engine}: left out: {first}")
            continue
        processes[engine] = process, first
        if engine == "native":
            reference = np.array(first["logits"])
        elif first["logits"] and reference is not None:
            error = np.abs(np.array(first["logits"]) - reference).max() / np.abs(reference).max()
            # bfloat16 would differ by some 1e-2
            assert error < 1e-5, f"{engine} computes something else: {error}"
            errors[engine] = float(error)
    return processes, errors


def take_turns(processes: dict[str, Any], batch: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What the engines said in each round."""
    samples: dict[str, list[dict[str, float]]] = {engine: [] for engine in processes}
    for _ in range(rounds if batch == 1 else max(5, rounds // 4)):
        for engine, (process, _) in processes.items():
            time.sleep(REST)
            process.stdin.write(f"{3 if batch == 1 else 1} {batch}\n")
            process.stdin.flush()
            samples[engine].append(json.loads(process.stdout.readline()))
    return samples


def summary(values: list[dict[str, float]], native: list[dict[str, float]], work: float) -> dict[str, Any]:
    """Seconds and rates of one engine.

    Args:
      values: what it said in each round.
      native: what the native runtime said in the same rounds.
      work: floating-point operations of one inference.
    """
    wall, used = ([value[key] for value in values] for key in ("wall", "cpu"))
    return {
        "wall_s": spread(wall),
        "wall_s_least": min(wall),
        "cpu_s": spread(used),
        "cpu_s_least": min(used),
        "effective_gflops": work / statistics.median(wall) / 1e9,
        "effective_gflops_cpu_least": work / min(used) / 1e9,
        "times_native_wall": spread([w / n["wall"] for w, n in zip(wall, native, strict=True)]),
        "times_native_cpu": spread([w / n["cpu"] for w, n in zip(used, native, strict=True)]),
    }


def print_row(row: dict[str, Any]) -> None:
    low, middle, high = (1e3 * value for value in row["wall_s"])
    error = row["logit_error"]
    print(
        f"  {row['engine']:12} wall {middle:8.1f} ms"
        f" ({low:.1f}..{high:.1f}, least {1e3 * row['wall_s_least']:.1f})"
        f"  cpu {1e3 * row['cpu_s'][1]:8.1f} ms (least {1e3 * row['cpu_s_least']:.1f})"
        f"  {row['effective_gflops']:6.0f} GFLOP/s"
        f"  x native: wall {row['times_native_wall'][1]:.2f}"
        f" cpu {row['times_native_cpu'][1]:.2f}"
        f"  peak {row['peak_mb']:.0f} MB  first answer {row['first_answer_s']:.2f} s"
        + (f"  logits within {error:.1e}" if error is not None else ""),
        flush=True,
    )


def measure(arguments: argparse.Namespace, folder: Path, threads: int, macs: int) -> list[dict[str, Any]]:
    """All engines with so many threads, for each batch."""
    processes, errors = start_all(arguments, folder, threads)
    rows = []
    for batch in arguments.batches:
        samples = take_turns(processes, batch, arguments.rounds)
        print(f"\n{threads} threads, batch {batch}, load {os.getloadavg()[0]:.1f}")
        for engine, values in samples.items():
            work = 2 * SGEMM**3 if engine == "sgemm" else 2 * macs * batch
            row = {
                "engine": engine,
                "threads": threads,
                "batch": batch,
                **summary(values, samples["native"], work),
                "logit_error": errors.get(engine),
                "peak_mb": values[-1]["peak_mb"],
                "first_answer_s": processes[engine][1]["first_answer_s"],
                "load": os.getloadavg()[0],
            }
            rows.append(row)
            print_row(row)
    for process, _ in processes.values():
        process.stdin.close()
        process.wait()
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="packed file")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=tuple(ENGINES))
    parser.add_argument("--engine-python", default=sys.executable, help="interpreter with the other engines")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        worker(arguments.worker, arguments.folder, str(arguments.model), arguments.threads[0])
        return

    from binwrn_jax.deploy.packed import read_packed

    packed = read_packed(arguments.model)
    report: dict[str, Any] = {
        "machine": machine(),
        "load_before": os.getloadavg(),
        "multiply_adds_per_image": multiply_adds(packed),
        "native_program": program_memory(arguments.model),
        "results": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = max(arguments.batches) + 4
        report["file_bytes"] = write_files(arguments.model, packed, images, folder, arguments.engines)
        for threads in arguments.threads:
            report["results"] += measure(arguments, folder, threads, report["multiply_adds_per_image"])
    report["load_after"] = os.getloadavg()
    print(
        f"\nbinwrn-run alone: {report['native_program']}\nfiles: {report['file_bytes']}\n{report['machine']}"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
